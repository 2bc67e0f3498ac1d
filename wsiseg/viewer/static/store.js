// All objects, their classes, and what a person changed, with undo. Tells listeners what to draw anew.

import { Shapes, unpack } from "./shapes.js";

const REVIEWS = ["", "accepted", "rejected"];
const DELETED = 255;

export class Store extends EventTarget {
  constructor() {
    super();
    this.shapes = new Shapes();
    this.classes = []; // { name, key, color, opacity, visible }; key is the name as files have it
    this.colors = Object.create(null); // by key, which may be "constructor": those that a person chose
    this.isRecolored = false; // since the last save
    this.classOf = new Uint32Array(0);
    this.probability = new Float32Array(0);
    this.area = new Float32Array(0);
    this.state = new Uint8Array(0); // index into REVIEWS, or DELETED
    this.read = new Uint8Array(0); // the decisions as the files have them
    this.done = [];
    this.undone = [];
    this.savedStep = undefined; // the last step that is in the file; undefined is the beginning
  }

  get count() {
    return this.shapes.count;
  }

  // Take in a block of packed objects.
  add(buffer) {
    const block = unpack(buffer);
    for (const { index, name, color } of block.classes) {
      this.classes[index] ??= { name: name || "no class", key: name, color, opacity: 1, visible: true };
    }
    this.shapes.add(block);
    for (const [mine, theirs] of [["classOf", "class"], ["probability", "probability"], ["area", "area"], ["state", "review"], ["read", "review"]]) {
      const all = new this[mine].constructor(this.shapes.count);
      all.set(this[mine]);
      all.set(block[theirs], this[mine].length);
      this[mine] = all;
    }
    this.tell("added", { buffer });
  }

  // Edits that the server knows of: saved earlier in this session, or never saved by one that ended.
  restore({ deleted, review, rings, colors }) {
    const objects = new Set([...this.shapes.changed.keys(), ...Object.keys(rings).map(Number)]);
    this.state.set(this.read);
    for (const o of deleted) this.state[o] = DELETED;
    for (const [o, decision] of Object.entries(review)) {
      if (this.state[o] !== DELETED) this.state[o] = REVIEWS.indexOf(decision);
    }
    for (const o of objects) this.shapes.change(o, rings[o]?.map((ring) => ring.flat()) ?? null);
    this.colors = Object.assign(Object.create(null), colors);
    for (const style of this.classes) style.color = this.colors[style.key] ?? style.color;
    this.tell("styled");
    this.tell("changed", { objects: [...objects] });
  }

  review(o) {
    return REVIEWS[this.state[o]] ?? "";
  }

  // Of the outline as it was read; NaN where that is not known, or it is another outline now.
  measured(o) {
    const isChanged = this.shapes.changed.has(o);
    return { area: isChanged ? NaN : this.area[o], probability: isChanged ? NaN : this.probability[o] };
  }

  isShown(o) {
    return this.state[o] !== DELETED && this.classes[this.classOf[o]].visible;
  }

  isDeleted(o) {
    return this.state[o] === DELETED;
  }

  counts() {
    const counts = this.classes.map(() => 0);
    for (let o = 0; o < this.count; o++) if (this.state[o] !== DELETED) counts[this.classOf[o]]++;
    return counts;
  }

  setStyle(index, values) {
    Object.assign(this.classes[index], values);
    this.tell("styled");
  }

  // color: [r, g, b]. Not a step to undo: choose another one.
  recolor(index, color) {
    this.colors[this.classes[index].key] = color;
    this.isRecolored = true;
    this.setStyle(index, { color });
  }

  decide(o, decision) {
    this.act(`${decision || "undecided"}`, o, { state: REVIEWS.indexOf(decision) });
  }

  delete(o) {
    this.act("deleted", o, { state: DELETED });
  }

  // rings: arrays of x, y, x, y, …
  reshape(o, rings) {
    this.act("outline changed", o, { rings });
  }

  act(label, object, after) {
    const before = { state: this.state[object], rings: this.shapes.changed.get(object) ?? null };
    const step = { label, object, before, after: { ...before, ...after } };
    this.done.push(step);
    this.undone = [];
    this.lay(object, step.after);
  }

  undo() {
    return this.move(this.done, this.undone, "before");
  }

  redo() {
    return this.move(this.undone, this.done, "after");
  }

  move(from, to, side) {
    const step = from.pop();
    if (!step) return null;
    to.push(step);
    this.lay(step.object, step[side]);
    return step;
  }

  lay(object, { state, rings }) {
    const before = [...this.shapes.box(object)];
    this.state[object] = state;
    const reshaped = rings !== (this.shapes.changed.get(object) ?? null);
    if (reshaped) {
      this.shapes.change(object, rings);
      rings = this.shapes.changed.get(object) ?? null;
    }
    this.tell("changed", { objects: [object], reshaped, before });
  }

  get isDirty() {
    return this.done.at(-1) !== this.savedStep || this.isRecolored;
  }

  saved(step) {
    this.savedStep = step;
    this.tell("saved");
  }

  // What wsiseg/viewer/edits.py reads.
  edits() {
    const edits = { deleted: [], review: {}, rings: {}, colors: this.colors };
    for (let o = 0; o < this.count; o++) {
      if (this.state[o] === DELETED) edits.deleted.push(o);
      else if (this.state[o] !== this.read[o]) edits.review[o] = REVIEWS[this.state[o]];
    }
    for (const [o, rings] of this.shapes.changed) edits.rings[o] = rings.map(pairs);
    return edits;
  }

  tell(kind, detail = {}) {
    this.dispatchEvent(new CustomEvent(kind, { detail }));
  }
}

function pairs(ring) {
  const rounded = Array.from(ring, (value) => Math.round(value * 100) / 100);
  return Array.from({ length: ring.length / 2 }, (_, i) => rounded.slice(2 * i, 2 * i + 2));
}
