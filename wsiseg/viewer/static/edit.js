// Change one outline: drag, add and remove its points, with the mouse or with keys.

import { screenPath } from "./polygons.js";

const REACH_PX = 9;
const MIDDLE_FROM_PX = 26; // edges shorter than this show no point that could be added

export class Editor {
  // announce tells screen readers, warn everybody.
  constructor(store, draw, announce, warn) {
    Object.assign(this, { store, draw, announce, warn, object: -1, rings: [], ring: 0, point: 0, dragging: false, past: [] });
  }

  get isOpen() {
    return this.object >= 0;
  }

  open(object) {
    this.object = object;
    this.rings = this.store.shapes.rings(object).map((ring) => Array.from(ring));
    this.before = JSON.stringify(this.rings);
    [this.ring, this.point, this.dragging, this.past] = [0, 0, false, []];
    this.draw();
  }

  // Keep the changes; nothing is kept where nothing changed.
  close() {
    const { object } = this;
    this.object = -1;
    if (JSON.stringify(this.rings) !== this.before) this.store.reshape(object, this.rings);
    this.draw();
  }

  cancel() {
    this.object = -1;
    this.draw();
  }

  // Before each change, so that `undo` goes back to here.
  remember() {
    this.past.push([this.rings.map((ring) => [...ring]), this.ring, this.point]);
  }

  // Whether there was a change to take back.
  undo() {
    if (!this.past.length) return false;
    [this.rings, this.ring, this.point] = this.past.pop();
    this.dragging = false;
    this.announce("Undone");
    this.draw();
    return true;
  }

  // Pointer down at screen position x, y: whether a point was taken hold of.
  press(x, y, view, remove) {
    const hit = this.nearest(x, y, view);
    if (!hit) return false;
    [this.ring, this.point] = [hit.ring, hit.point];
    if (remove && !hit.middle) this.remove();
    else {
      if (hit.middle) this.insert();
      this.dragging = true;
      this.grabbed = hit.middle; // what was just added is one step with where it is dragged
    }
    this.draw();
    return true;
  }

  drag(x, y, view) {
    if (!this.grabbed) this.remember();
    this.grabbed = true;
    this.moveTo((x - view.x) / view.scale, (y - view.y) / view.scale);
  }

  release() {
    this.dragging = false;
  }

  // Whether the key was for the editor.
  key({ key, shiftKey, repeat }, view) {
    if (repeat && ["i", "Delete", "Backspace"].includes(key)) return true; // held down, these act once
    const step = (shiftKey ? 10 : 1) / Math.min(view.scale, 1);
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    const ring = this.rings[this.ring];
    if (moves[key]) {
      const [dx, dy] = moves[key];
      this.remember();
      this.moveTo(ring[2 * this.point] + dx, ring[2 * this.point + 1] + dy);
    } else if (key === "." || key === ",") this.choose(key === "." ? 1 : -1);
    else if (key === "i") this.insert();
    else if (key === "Delete" || key === "Backspace") this.remove();
    else return false;
    return true;
  }

  choose(by) {
    const points = this.rings[this.ring].length / 2;
    this.point += by;
    if (this.point >= points || this.point < 0) {
      this.ring = (this.ring + by + this.rings.length) % this.rings.length;
      this.point = by > 0 ? 0 : this.rings[this.ring].length / 2 - 1;
    }
    this.announce(`Point ${this.point + 1} of ${this.rings[this.ring].length / 2}`);
    this.draw();
  }

  moveTo(x, y) {
    this.rings[this.ring].splice(2 * this.point, 2, x, y);
    this.draw();
  }

  // A new point halfway to the next one.
  insert() {
    this.remember();
    const ring = this.rings[this.ring];
    const next = (2 * this.point + 2) % ring.length;
    const middle = [(ring[2 * this.point] + ring[next]) / 2, (ring[2 * this.point + 1] + ring[next + 1]) / 2];
    this.point++;
    ring.splice(2 * this.point, 0, ...middle);
    this.announce("Point added");
    this.draw();
  }

  remove() {
    const ring = this.rings[this.ring];
    if (ring.length <= 6) return this.warn("An outline keeps three points: delete the object instead");
    this.remember();
    ring.splice(2 * this.point, 2);
    this.point %= ring.length / 2;
    this.announce("Point removed");
    this.draw();
  }

  nearest(x, y, view) {
    let best = null;
    const consider = (ring, point, px, py, middle, reach) => {
      const distance = Math.hypot(px * view.scale + view.x - x, py * view.scale + view.y - y);
      if (distance <= reach && (!best || distance < best.distance)) best = { ring, point, middle, distance };
    };
    this.each((ring, point, px, py) => consider(ring, point, px, py, false, REACH_PX));
    if (!best) this.eachMiddle(view, (ring, point, px, py) => consider(ring, point, px, py, true, REACH_PX));
    return best;
  }

  each(visit) {
    this.rings.forEach((ring, r) => {
      for (let i = 0; i < ring.length; i += 2) visit(r, i / 2, ring[i], ring[i + 1]);
    });
  }

  eachMiddle(view, visit) {
    this.rings.forEach((ring, r) => {
      for (let i = 0; i < ring.length; i += 2) {
        const j = (i + 2) % ring.length;
        if (Math.hypot(ring[j] - ring[i], ring[j + 1] - ring[i + 1]) * view.scale < MIDDLE_FROM_PX) continue;
        visit(r, i / 2, (ring[i] + ring[j]) / 2, (ring[i + 1] + ring[j + 1]) / 2);
      }
    });
  }

  paint(context, view) {
    if (!this.isOpen) return false;
    const path = screenPath(this.rings, view);
    const color = this.store.classes[this.store.classOf[this.object]].color.join(" ");
    context.fillStyle = `rgb(${color} / .18)`;
    context.fill(path, "evenodd");
    outline(context, path, `rgb(${color})`, 2);
    const dot = (x, y, radius, fill, line) => {
      const [sx, sy] = [x * view.scale + view.x, y * view.scale + view.y];
      if (sx < -9 || sy < -9 || sx > view.width + 9 || sy > view.height + 9) return;
      context.beginPath();
      context.arc(sx, sy, radius, 0, 7);
      context.fillStyle = fill;
      context.strokeStyle = line;
      context.fill();
      context.stroke();
    };
    context.lineWidth = 1.5;
    this.eachMiddle(view, (r, i, x, y) => dot(x, y, 3, "rgb(255 255 255 / .65)", "rgb(0 0 0 / .5)"));
    this.each((r, i, x, y) => {
      const chosen = r === this.ring && i === this.point;
      dot(x, y, chosen ? 6 : 4.5, chosen ? "#ffd33d" : "#fff", "#222");
    });
    return true;
  }
}

// A line that is seen on any ground.
export function outline(context, path, color, width) {
  context.setLineDash([]);
  context.lineJoin = "round";
  context.lineWidth = width + 2.5;
  context.strokeStyle = "rgb(255 255 255 / .9)";
  context.stroke(path);
  context.lineWidth = width;
  context.strokeStyle = color;
  context.stroke(path);
}
