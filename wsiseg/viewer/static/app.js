// Puts the page together: what happens when something is clicked, pressed or found.

import * as api from "./api.js";
import { Editor, outline } from "./edit.js";
import { bindKeys } from "./keys.js";
import { $, alarm, announce, banner, bindClicks, fatal, toggleTheme } from "./page.js";
import { Panel, number } from "./panel.js";
import { Polygons, screenPath } from "./polygons.js";
import { QueryPanel } from "./query.js";
import { Scale } from "./scale.js";
import { Stage } from "./stage.js";
import { Store } from "./store.js";

const CLASS_KEYS = 9; // keys 1 to 9

const slide = await api.slide().catch(fatal);
const store = new Store();
const panel = new Panel(store);
const stage = new Stage($("slide"));
const view = () => stage.view();
const layer = new Polygons($("outlines"), $("overlay"), store, view);
const scale = new Scale($("scale-bar"), $("place"), slide);
const editor = new Editor(store, () => layer.soon(), announce, banner);
const query = new QueryPanel({
  region: () => stage.region(),
  draw: () => layer.soon(),
  show: (box) => stage.show(box, 1.4),
  found: takeIn,
  announce,
});

let selected = -1;
let hovered = -1;

// Objects in the order in which they are stepped through.

let order = null;
let place = 0; // in it, of the object that is chosen, or was last
let byDoubt = []; // all there are, the most doubtful first: a million take seconds to sort

function ordered() {
  if (order) return order;
  const skipDecided = $("undecided").checked;
  const first = $("by-doubt").checked ? mostDoubtfulFirst() : null;
  order = [];
  for (let i = 0; i < store.count; i++) {
    const o = first ? first[i] : i;
    if (store.isShown(o) && !(skipDecided && store.review(o) && o !== selected)) order.push(o);
  }
  return order;
}

function mostDoubtfulFirst() {
  if (byDoubt.length < store.count) {
    const doubt = (o) => (Number.isNaN(store.probability[o]) ? 2 : store.probability[o]);
    byDoubt = Array.from({ length: store.count }, (_, o) => o).sort((a, b) => doubt(a) - doubt(b));
  }
  return byDoubt;
}

function step(by) {
  if (editor.isOpen) editor.close();
  const objects = ordered();
  const skipDecided = $("undecided").checked;
  if (objects.every((o) => skipDecided && store.review(o))) return banner("There is nothing to step through");
  const at = objects.indexOf(selected);
  const next = at < 0 ? Math.min(place, objects.length) - (by < 0 ? 1 : 0) : at + by;
  select(objects[(next + objects.length) % objects.length], { move: true });
}

function select(object, { move = false } = {}) {
  if (editor.isOpen && editor.object !== object) editor.close();
  selected = object;
  if ($("undecided").checked) order = null;
  if (move && object >= 0) stage.show(store.shapes.box(object));
  refresh();
  if (object >= 0) {
    const style = store.classes[store.classOf[object]];
    const { probability } = store.measured(object);
    const sure = Number.isNaN(probability) ? "" : `, probability ${number(probability)}`;
    announce(`${style.name}, object ${position()}${sure}, ${store.review(object) || "undecided"}`);
  }
}

function position() {
  const at = ordered().indexOf(selected);
  const all = ordered().length.toLocaleString();
  return at < 0 ? all : `${(at + 1).toLocaleString()} of ${all}`;
}

function refresh() {
  const at = ordered().indexOf(selected);
  if (at >= 0) place = at;
  panel.classes();
  panel.object(selected, position(), editor.isOpen).catch((error) => banner(error.message, true));
  $("undo").disabled = !store.done.length && !editor.isOpen;
  $("redo").disabled = !store.undone.length || editor.isOpen;
  $("save").disabled = saving || !store.count || !(store.isDirty || !slide.out || unsaved);
  layer.soon();
}

// What a person does to an object.

function decide(decision) {
  if (selected < 0) return banner("No object is chosen: N goes to the first");
  if (editor.isOpen) editor.close();
  store.decide(selected, store.review(selected) === decision ? "" : decision);
  announce(store.review(selected) || "undecided");
}

function remove() {
  if (selected < 0) return;
  editor.cancel();
  const object = selected;
  const objects = ordered();
  const next = objects[objects.indexOf(object) + 1];
  store.delete(object);
  // Delete pressed once more deletes nothing that nobody has seen: N goes there first.
  select(next !== undefined && stage.isSeen(store.shapes.box(next)) ? next : -1);
  banner("Deleted. Ctrl+Z brings it back");
}

function toggleEdit() {
  if (editor.isOpen) editor.close();
  else if (selected >= 0) {
    editor.open(selected);
    stage.show(store.shapes.box(selected), 2.5, 8);
    leave();
    $("stage").focus();
    announce("Editing the outline. Comma and full stop choose a point, arrows move it, Enter is done");
  }
  refresh();
}

function undo() {
  if (editor.isOpen) {
    if (!editor.undo()) editor.cancel();
    return refresh();
  }
  const undone = store.undo();
  if (undone) reveal(undone, "Undone");
}

function redo() {
  if (editor.isOpen) return; // what is undone there are points
  const redone = store.redo();
  if (redone) reveal(redone, "Done again");
}

function reveal({ object, label }, what) {
  select(store.isShown(object) ? object : -1);
  if (!stage.isSeen(store.shapes.box(object))) stage.show(store.shapes.box(object));
  announce(`${what}: ${label}`);
}

let { unsaved, saves } = slide; // whether something was found since the last save; how many saves this page knows of
let saving = false;

async function save() {
  if (editor.isOpen) editor.close();
  if ($("save").disabled) return;
  // What is done or found while the server writes is not saved yet.
  const [step, was] = [store.done.at(-1), unsaved];
  const { isRecolored } = store;
  unsaved = store.isRecolored = false;
  $("save").disabled = saving = true;
  clearTimeout(keepDraft.timer);
  try {
    const saved = await api.save(store.edits(), saves);
    slide.out = saved.out;
    saves = saved.saves;
    keepDraft.isKept = false;
    store.saved(step);
    banner(`Saved ${saved.written.toLocaleString()} objects to ${saved.out}${saved.note && ` (${saved.note})`}`, saved.note);
  } catch (error) {
    unsaved ||= was;
    store.isRecolored ||= isRecolored;
    banner(error.message, true);
  }
  saving = false;
  keepDraft(); // of what was done meanwhile, or is not saved after all
  refresh();
}

// What is changed and not saved is known to the server all the same: it may die, or the page be closed. What is found
// it keeps by itself.

function keepDraft() {
  clearTimeout(keepDraft.timer);
  if (saving || draftWaits) return;
  if (!(store.isDirty || keepDraft.isKept)) return;
  keepDraft.timer = setTimeout(() => {
    keepDraft.isKept = true;
    api.keepDraft(store.edits(), saves).catch((error) => banner(error.message, true));
  }, 700);
}

let draftWaits = slide.hasDraft; // until it is taken up or dropped nothing else is done: a save would drop it

$("draft").addEventListener("close", () => draftWaits && $("draft").showModal()); // Escape decides nothing

function draftIsDecided() {
  draftWaits = false;
  $("draft").close();
}

async function takeDraft() {
  try {
    const { edits } = await api.takeDraft();
    unsaved = true;
    draftIsDecided();
    await load(); // of another page, too, which took it up before
    store.restore(edits);
    $("stage").focus();
    banner("Taken up: save it to keep it");
  } catch (error) {
    banner(error.message, true);
  }
}

async function dropDraft() {
  try {
    await api.dropDraft();
    draftIsDecided();
    $("stage").focus();
  } catch (error) {
    banner(error.message, true);
  }
}

let loading = Promise.resolve();

// The outlines that the page does not have yet; one load after the other, or what a query found would come twice.
function load() {
  loading = loading.catch(() => {}).then(async () => {
    const isFirst = !store.count;
    store.add(await api.polygons(store.count));
    if (isFirst) store.restore(slide.edits); // whichever load it was: without them a save would take them back
  });
  return loading;
}

// Take in what a query found.
async function takeIn({ first }) {
  unsaved = true;
  await load().catch((error) => fatal(new Error(`What was found cannot be shown: ${error.message}`)));
  if (selected < 0 && !editor.isOpen) select(first);
}

// The pointer.

let pointed = null; // where it is on the stage

function under(x, y) {
  const { scale: s, x: dx, y: dy } = view();
  return store.shapes.at((x - dx) / s, (y - dy) / s, (o) => store.isShown(o));
}

async function hover(x, y) {
  const v = view();
  if (!v) return;
  pointed = [x, y];
  scale.at((x - v.x) / v.scale, (y - v.y) / v.scale, v);
  const object = editor.isOpen ? -1 : under(x, y);
  const tip = $("tip");
  if (object >= 0) tip.style.translate = `${Math.min(x + 14, v.width - 314)}px ${Math.min(y + 14, v.height - 130)}px`;
  if (object === hovered) return;
  hovered = object;
  layer.soon();
  $("stage").classList.toggle("over", object >= 0);
  tip.hidden = object < 0;
  if (object < 0) return;
  const facts = [];
  const { area, probability } = store.measured(object);
  if (!Number.isNaN(area)) facts.push(`${number(area)} µm²`);
  if (!Number.isNaN(probability)) facts.push(`probability ${number(probability)}`);
  if (store.review(object)) facts.push(store.review(object));
  const [name, line, said] = [document.createElement("b"), document.createElement("span"), document.createElement("span")];
  name.textContent = store.classes[store.classOf[object]].name;
  line.textContent = facts.join(" · ");
  line.className = "muted";
  said.className = "said";
  tip.replaceChildren(name, line, said);
  await new Promise((resolve) => setTimeout(resolve, 120)); // not for each of those that are passed over
  if (hovered === object) said.textContent = await panel.said(object).catch(() => "");
}

let pointer = null;
$("stage").addEventListener("pointermove", ({ clientX, clientY, target }) => {
  const box = $("stage").getBoundingClientRect();
  const next = target.closest(".zoom") ? null : [clientX - box.left, clientY - box.top];
  if (!pointer) requestAnimationFrame(() => (pointer && hover(...pointer), (pointer = null)));
  pointer = next;
});
function leave() {
  hovered = -1;
  $("tip").hidden = true;
  $("stage").classList.remove("over");
  layer.soon();
}

$("stage").addEventListener("pointerleave", () => {
  leave();
  pointed = null;
  scale.at(null);
});

stage.viewer.addHandler("canvas-press", ({ position: p, originalEvent }) => {
  $("stage").focus({ preventScroll: true });
  if (editor.isOpen) editor.press(p.x, p.y, view(), originalEvent.altKey);
});
stage.viewer.addHandler("canvas-drag", (event) => {
  if (!editor.dragging) return;
  event.preventDefaultAction = true;
  editor.drag(event.position.x, event.position.y, view());
});
stage.viewer.addHandler("canvas-drag-end", (event) => {
  if (editor.dragging) event.preventDefaultAction = true; // no gliding on
});
stage.viewer.addHandler("canvas-release", () => setTimeout(() => editor.release()));
stage.viewer.addHandler("canvas-click", ({ quick, position: p }) => {
  if (!quick || editor.isOpen) return;
  select(under(p.x, p.y));
});
stage.viewer.addHandler("canvas-double-click", (event) => {
  if (editor.isOpen) event.preventDefaultAction = true;
});

// Drawing.

layer.painters.push(
  (context, v) => query.paint(context, v),
  (context, v) => {
    const marked = [hovered, selected].filter((o) => o >= 0 && o !== editor.object && store.isShown(o));
    for (const object of new Set(marked)) {
      const color = store.classes[store.classOf[object]].color.join(" ");
      outline(context, screenPath(store.shapes.rings(object), v), `rgb(${color})`, object === selected ? 3 : 2);
    }
    return marked.length;
  },
  (context, v) => editor.paint(context, v),
  (context, v) => {
    scale.update(v);
    if (pointed) scale.at((pointed[0] - v.x) / v.scale, (pointed[1] - v.y) / v.scale, v);
  },
);
layer.worker.addEventListener("error", ({ message }) => {
  alarm(`The outlines can no longer be drawn${message ? ` (${message})` : ""}: save, then reload this page`);
});
stage.viewer.addHandler("update-viewport", () => layer.draw());
stage.viewer.addHandler("resize", () => layer.soon());
stage.viewer.addHandler("tile-load-failed", () => banner("A part of the slide cannot be read", true));

for (const kind of ["added", "styled", "changed", "saved"]) {
  store.addEventListener(kind, () => {
    order = null;
    keepDraft();
    if (kind === "styled" && selected >= 0 && !store.isShown(selected)) return select(-1); // none is judged unseen
    refresh();
  });
}

// Buttons and keys.

function toggleClasses(indexes) {
  const visible = !indexes.some((index) => store.classes[index]?.visible);
  for (const index of indexes) if (store.classes[index]) store.setStyle(index, { visible });
  announce(visible ? "Shown" : "Hidden");
}

function flip(id) {
  $(id).click();
  announce(`${$(id).parentElement.textContent.trim()}: ${$(id).checked ? "on" : "off"}`);
}

function escape() {
  if (editor.isOpen) editor.cancel();
  else select(-1); // a query has its own button: what it found so far is dropped
  refresh();
}

const bindings = [
  { keys: ["/"], does: "Type a query", run: () => $("query").focus() },
  { keys: ["n", "]"], does: "Next object", repeats: true, run: () => step(1) },
  { keys: ["p", "["], does: "Previous object", repeats: true, run: () => step(-1) },
  { keys: ["d"], does: "Most doubtful first", run: () => flip("by-doubt") },
  { keys: ["u"], does: "Only undecided", run: () => flip("undecided") },
  { keys: ["a"], does: "Accept", run: () => decide("accepted") },
  { keys: ["r"], does: "Reject", run: () => decide("rejected") },
  { keys: ["e"], does: "Edit the outline", run: toggleEdit },
  { keys: ["Enter"], does: "Editing is done", run: () => editor.isOpen && toggleEdit() },
  { keys: [], shown: [",", "."], does: "Editing: previous, next point" },
  { keys: [], shown: ["I"], does: "Editing: add a point" },
  { keys: ["Delete", "Backspace"], does: "Delete object or point", run: remove },
  { keys: ["ctrl+z"], does: "Undo", repeats: true, run: undo },
  { keys: ["ctrl+shift+z", "ctrl+y"], does: "Redo", repeats: true, run: redo },
  { keys: ["ctrl+s"], does: "Save", run: save },
  { keys: ["ArrowLeft"], shown: ["←", "→", "↑", "↓"], does: "Move the slide", repeats: true, run: () => stage.pan(-0.2, 0) },
  { keys: ["ArrowRight"], repeats: true, run: () => stage.pan(0.2, 0) },
  { keys: ["ArrowUp"], repeats: true, run: () => stage.pan(0, -0.2) },
  { keys: ["ArrowDown"], repeats: true, run: () => stage.pan(0, 0.2) },
  { keys: ["+", "="], does: "Zoom in", repeats: true, run: () => stage.zoom(1.5) },
  { keys: ["-"], does: "Zoom out", repeats: true, run: () => stage.zoom(1 / 1.5) },
  { keys: ["h", "0"], does: "Whole slide", run: () => stage.home() },
  { keys: ["f"], does: "Go to the chosen object", run: () => selected >= 0 && stage.show(store.shapes.box(selected)) },
  { keys: ["v"], does: "Hide or show all outlines", run: () => toggleClasses([...store.classes.keys()]) },
  { keys: [], shown: ["1", "…", "9"], does: "Hide or show one class" },
  { keys: ["t"], does: "Dark or light", run: toggleTheme },
  { keys: ["Escape"], does: "Give up, choose nothing", run: escape },
  { keys: ["?"], does: "This list", run: () => $("help").showModal() },
];
bindKeys(bindings, $("help"), (pressed) => {
  if (draftWaits) return true; // its dialog is closed for a moment after Escape
  const digit = Number(pressed.key);
  if (digit >= 1 && digit <= CLASS_KEYS) {
    if (!pressed.repeat) toggleClasses([digit - 1]);
    return true;
  }
  return editor.isOpen && editor.key(pressed, view());
});

bindClicks({
  "previous": () => step(-1),
  "next": () => step(1),
  "accept": () => decide("accepted"),
  "reject": () => decide("rejected"),
  "edit": toggleEdit,
  "delete": remove,
  "undo": undo,
  "redo": redo,
  "save": save,
  "draft-take": takeDraft,
  "draft-drop": dropDraft,
}, stage);
for (const id of ["by-doubt", "undecided"]) {
  $(id).addEventListener("change", () => {
    order = null;
    place = 0;
    refresh();
  });
}
window.addEventListener("beforeunload", (event) => {
  if (store.isDirty || unsaved || saving) event.preventDefault();
});

// Begin.

document.title = `${slide.name} · wsiseg`;
$("slide-name").textContent = slide.name;
const um = slide.mpp ? `${Number(slide.mpp[0].toPrecision(4))} µm/px` : "no scale";
$("slide-facts").textContent = `${slide.shown[2].toLocaleString()} × ${slide.shown[3].toLocaleString()} px · ${um}`;
$("place").hidden = true;
if (slide.objects) $("no-classes").textContent = `Reading ${slide.objects.toLocaleString()} outlines …`;
await stage.open(slide, {
  width: slide.width,
  height: slide.height,
  tileSize: slide.tile,
  tileOverlap: slide.overlap,
  minLevel: slide.firstLevel,
  maxLevel: slide.lastLevel,
  getTileUrl: api.tileUrl,
});
stage.recall();
stage.viewer.addHandler("animation-finish", () => stage.remember());
if (slide.objects) await load().catch((error) => fatal(new Error(`The outlines cannot be shown: ${error.message}`)));
refresh();
if (draftWaits) $("draft").showModal();
if (slide.warning) banner(slide.warning, true);
if (slide.running !== null) query.follow(slide.running);
document.documentElement.dataset.ready = "yes"; // for those who drive the page by script
