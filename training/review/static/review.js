// Puts the page of `wsiseg data review` together. Every decision is saved when it is made: there is nothing to save.

import { bindKeys } from "../static/keys.js";
import { post, request, SILENT } from "../static/http.js";
import { $, announce, banner, bindClicks, fatal, toggleTheme } from "../static/page.js";
import { Scale } from "../static/scale.js";
import { Stage } from "../static/stage.js";
import { Brush } from "./brush.js";
import { Labels } from "./labels.js";

const PARTS = ["mask", "chain"];

const json = (path) => request(path).then((response) => response.json());
const review = await json("review").catch(fatal);
const { states } = review;
const stage = new Stage($("slide"));
const brush = new Brush(draw, announce, banner);

let at = -1; // the question that is shown
let question = null; // what the server says of it
let labels = null; // its mask
let theirs = null; // another reviewer's mask, shown in place of it
let scale = null;
let isShown = true;

// One thing after the other: what is asked of the server, in the order in which it was done.
let last = Promise.resolve();
function inTurn(act) {
  last = last.then(act).catch((error) => banner(error.message, true));
  return last;
}

// Which questions, and the way through them.

const isDecided = (state) => PARTS.every((part) => state[part]);
const filters = {
  all: () => true,
  undecided: (state) => !isDecided(state),
  disagreed: (state) => state.disagreed,
  changed: (state) => state.changed,
};

function chosen() {
  return states.map((_, i) => i).filter((i) => filters[$("filter").value](states[i]));
}

async function step(by) {
  await keep();
  const among = chosen();
  if (!among.length) return banner({ undecided: "Nothing is left to decide", disagreed: "Nobody disagrees with you", changed: "Nothing has changed" }[$("filter").value]);
  if (by < 0) among.reverse();
  const ahead = among.filter((i) => (i - at) * by > 0);
  if (by > 0 && !ahead.length) banner(states.every(isDecided) ? "All is decided" : "From the beginning");
  return showFirst([...ahead, ...among.slice(0, among.length - ahead.length)]);
}

// The first of these that can be shown. What cannot be read is told, and blocks no other.
async function showFirst(indices) {
  for (const index of indices) {
    try {
      return await show(index);
    } catch (error) {
      if (index === indices.at(-1) || error.message === SILENT) throw error;
      banner(`Question ${index + 1} cannot be shown: ${error.message}`, true);
    }
  }
}

async function show(index) {
  const before = question?.image;
  await reload(index);
  const { image, width, height, mpp, query } = question;
  if (image !== before || !stage.view()) {
    const slide = { width, height, shown: [0, 0, width, height], origin: [0, 0] };
    await stage.open(slide, { type: "image", url: `questions/${index}/image`, buildPyramid: false });
    scale = new Scale($("scale-bar"), $("place"), { mpp: mpp && [mpp, mpp] });
    draw();
  }
  announce(`Question ${at + 1} of ${states.length}: ${query}`);
}

// What the server now says of the question.
async function reload(index = at) {
  const [details, values] = await Promise.all([json(`questions/${index}`), pixels(index)]);
  [at, question, states[index]] = [index, details, details.state];
  theirs = null;
  labels = new Labels(details.width, details.height, values, details.color);
  $("chain-text").value = details.corrected || details.chain;
  refresh();
}

async function pixels(index, name = "") {
  const response = await request(`questions/${index}/labels?${new URLSearchParams({ name })}`);
  return new Uint16Array(await response.arrayBuffer());
}

// What a person decides.

async function decide(verdicts) {
  took(await post(`questions/${at}`, verdicts));
  await reload(); // with what others said of it
}

function took(changes) {
  for (const [i, state] of changes) states[i] = state;
}

// Keep what is being changed: a mask that was painted, a chain that was typed. If that fails, both stay as they are.
async function keep() {
  if (!question) return; // none could be read
  const text = $("chain-text").value.trim();
  if (brush.isOpen) {
    if (brush.isChanged) {
      const options = { method: "POST", headers: { "Content-Type": "application/octet-stream" }, body: brush.labels.values };
      took(await (await request(`questions/${at}/labels`, options)).json());
    }
    const { isChanged } = brush;
    brush.close();
    if (isChanged) await reload();
  }
  if (text !== (question.corrected || question.chain).trim()) {
    $("chain-text").value = text;
    await decide(text === question.chain.trim() ? { chain: "" } : { chain: "corrected", text });
  }
  refresh();
}

// Both parts, as far as they are not corrected, and on to the next question.
function both(verdict) {
  return inTurn(async () => {
    if (verdict === "rejected") brush.close();
    else await keep();
    const open = PARTS.filter((part) => verdict === "rejected" || states[at][part] !== "corrected");
    await decide(Object.fromEntries(open.map((part) => [part, verdict])));
    await step(1);
  });
}

// One part, but what is corrected is accepted already; the same verdict again takes it back.
function one(part, verdict) {
  return inTurn(async () => {
    if (verdict === "rejected" && part === "mask") brush.close();
    await keep();
    const stays = verdict === "accepted" && states[at][part] === "corrected";
    if (!stays) await decide({ [part]: states[at][part] === verdict ? "" : verdict });
    announce(`${part} ${states[at][part] || "undecided"}`);
  });
}

function toggleBrush() {
  return inTurn(async () => {
    if (brush.isOpen) return keep();
    brush.open(labels);
    isShown = true;
    $("stage").focus();
    announce("Painting the mask. Arrows move the brush, Space puts it down or lifts it, Enter is done");
    refresh();
  });
}

function undo() {
  return inTurn(async () => {
    if (brush.isOpen) {
      if (brush.undo()) return;
      if (brush.isChanged) return banner("Earlier strokes cannot be undone: Escape gives up the painting");
      return escape();
    }
    const [index, changes] = await post("undo");
    if (index === null) return banner("Nothing was decided since the page's command was started");
    took(changes);
    await show(index);
    banner("Undone");
  });
}

function escape() {
  brush.close();
  refresh();
}

// What is shown.

function refresh() {
  const state = states[at];
  const decided = states.filter(isDecided).length;
  $("progress").max = states.length;
  $("progress").value = decided;
  $("progress-count").textContent = `${decided.toLocaleString()} of ${states.length.toLocaleString()} decided`;
  $("position").textContent = `${at + 1} of ${states.length}`;
  $("query").textContent = question.query;
  $("image-name").textContent = [question.image, question.label].filter(Boolean).join(" · ");
  const counted = labels.isEmpty ? `No ${question.concept}: nothing is to be outlined` : question.concept;
  $("mask-says").textContent = counted;
  $("mask-color").style.setProperty("--color", `rgb(${question.color.join(" ")})`);
  for (const part of PARTS) {
    $(`${part}-state`).textContent = state[part] || "undecided";
    $(`${part}-state`).className = `badge ${state[part]}`;
    for (const [button, verdict] of [["accept", "accepted"], ["reject", "rejected"]]) {
      $(`${part}-${button}`).setAttribute("aria-pressed", state[part] === verdict);
    }
  }
  $("mask-edit").setAttribute("aria-pressed", brush.isOpen || state.mask === "corrected");
  $("mask-edit").textContent = brush.isOpen ? "Done" : "Correct";
  $("brush-hint").hidden = !brush.isOpen;
  $("chain-original").hidden = state.chain !== "corrected";
  $("changed").hidden = !state.changed;
  $("others").hidden = !question.others.length;
  $("others-said").replaceChildren(...question.others.map(({ name, part, verdict, text }) => {
    const line = document.createElement("li");
    line.textContent = `${name}: ${part} ${verdict}${text && `: “${text}”`} `;
    if (part === "mask" && verdict === "corrected") {
      const button = document.createElement("button");
      button.textContent = "Look";
      button.title = "Their mask in place of yours (O)";
      button.setAttribute("aria-pressed", theirs?.name === name);
      button.addEventListener("click", () => inTurn(() => look(name)));
      line.append(button);
    }
    return line;
  }));
  $("stage").classList.toggle("painting", brush.isOpen);
  draw();
}

// Another's mask in place of one's own; once more, and one's own is back.
async function look(name) {
  if (theirs?.name === name) theirs = null;
  else {
    theirs = new Labels(question.width, question.height, await pixels(at, name), question.color);
    theirs.name = name;
  }
  announce(theirs ? `The mask of ${name}` : "Your mask");
  refresh();
}

function draw() {
  draw.frame ??= requestAnimationFrame(() => {
    draw.frame = null;
    const view = stage.view();
    if (!view) return;
    const canvas = $("overlay");
    const context = canvas.getContext("2d");
    const density = window.devicePixelRatio || 1;
    [canvas.width, canvas.height] = [Math.round(view.width * density), Math.round(view.height * density)];
    context.setTransform(density, 0, 0, density, 0, 0);
    if (isShown) (brush.labels ?? theirs ?? labels).paint(context, view);
    if (brush.isOpen) brush.paint(context, view);
    scale?.update(view);
  });
}

stage.viewer.addHandler("update-viewport", draw);
stage.viewer.addHandler("resize", draw);
stage.viewer.addHandler("tile-load-failed", () => banner("The image cannot be read", true));

// The pointer.

function onImage({ x, y }) {
  const view = stage.view();
  return [(x - view.x) / view.scale, (y - view.y) / view.scale];
}

stage.viewer.addHandler("canvas-press", ({ position, originalEvent }) => {
  $("stage").focus({ preventScroll: true });
  if (brush.isOpen && !originalEvent.shiftKey) brush.press(...onImage(position), originalEvent.altKey || brush.erases);
});
stage.viewer.addHandler("canvas-drag", (event) => {
  if (!brush.isOpen || event.originalEvent.shiftKey) return;
  event.preventDefaultAction = true;
  brush.moveTo(...onImage(event.position));
});
stage.viewer.addHandler("canvas-drag-end", (event) => {
  if (brush.isOpen) event.preventDefaultAction = true; // no gliding on
});
stage.viewer.addHandler("canvas-release", () => brush.isOpen && brush.release());
stage.viewer.addHandler("canvas-double-click", (event) => {
  if (brush.isOpen) event.preventDefaultAction = true;
});
$("stage").addEventListener("pointermove", ({ clientX, clientY, buttons }) => {
  if (!brush.isOpen || buttons) return;
  const box = $("stage").getBoundingClientRect();
  if (!brush.isDown) brush.moveTo(...onImage({ x: clientX - box.left, y: clientY - box.top }));
});

// Buttons and keys.

function filter(value) {
  $("filter").value = $("filter").value === value ? "all" : value;
  filtered();
}

function filtered() {
  announce(`${$("filter").selectedOptions[0].textContent}: ${chosen().length}`);
  if (!chosen().includes(at)) inTurn(() => step(1));
}

const bindings = [
  { keys: ["a"], does: "Accept what is not corrected, next", run: () => both("accepted") },
  { keys: ["r"], does: "Reject mask and chain, next", run: () => both("rejected") },
  { keys: ["m"], does: "Reject the mask", run: () => one("mask", "rejected") },
  { keys: ["c"], does: "Reject the chain", run: () => one("chain", "rejected") },
  { keys: ["e"], does: "Correct the mask", run: toggleBrush },
  { keys: ["/"], does: "Correct the chain", run: () => $("chain-text").focus() },
  { keys: ["n", "]"], does: "Next question", repeats: true, run: () => inTurn(() => step(1)) },
  { keys: ["p", "["], does: "Previous question", repeats: true, run: () => inTurn(() => step(-1)) },
  { keys: ["u"], does: "Only undecided", run: () => filter("undecided") },
  { keys: ["d"], does: "Only where others disagree", run: () => filter("disagreed") },
  { keys: ["ctrl+z"], does: "Undo", repeats: true, run: undo },
  { keys: ["Enter"], does: "Painting is done", run: () => brush.isOpen && toggleBrush() },
  { keys: [], shown: ["Space"], does: "Painting: brush down, up" },
  { keys: [], shown: ["X"], does: "Painting: erase or paint" },
  { keys: [], shown: ["[", "]"], does: "Painting: size of the brush" },
  { keys: [], shown: ["I", "Delete"], does: "Painting: fill hole, remove object" },
  { keys: ["ArrowLeft"], shown: ["←", "→", "↑", "↓"], does: "Move the image, or the brush", repeats: true, run: () => stage.pan(-0.2, 0) },
  { keys: ["ArrowRight"], repeats: true, run: () => stage.pan(0.2, 0) },
  { keys: ["ArrowUp"], repeats: true, run: () => stage.pan(0, -0.2) },
  { keys: ["ArrowDown"], repeats: true, run: () => stage.pan(0, 0.2) },
  { keys: ["+", "="], does: "Zoom in", repeats: true, run: () => stage.zoom(1.5) },
  { keys: ["-"], does: "Zoom out", repeats: true, run: () => stage.zoom(1 / 1.5) },
  { keys: ["h", "0"], does: "Whole image", run: () => stage.home() },
  { keys: ["v"], does: "Hide or show the mask", run: () => ((isShown = !isShown), announce(isShown ? "Shown" : "Hidden"), draw()) },
  { keys: ["o"], does: "Look at another's mask", run: () => $("others-said").querySelector("button")?.click() },
  { keys: ["t"], does: "Dark or light", run: toggleTheme },
  { keys: ["Escape"], does: "Give up painting or typing", run: escape },
  { keys: ["?"], does: "This list", run: () => $("help").showModal() },
];
bindKeys(bindings, $("help"), (pressed) => brush.isOpen && brush.key(pressed));

$("chain-text").addEventListener("keydown", (event) => {
  if (event.key === "Escape") $("chain-text").value = question.corrected || question.chain; // keys.js leaves the box
  else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("chain-text").blur();
});
$("chain-text").addEventListener("change", () => inTurn(keep));

bindClicks({
  "accept": () => both("accepted"),
  "reject": () => both("rejected"),
  "mask-accept": () => one("mask", "accepted"),
  "mask-reject": () => one("mask", "rejected"),
  "mask-edit": toggleBrush,
  "chain-accept": () => one("chain", "accepted"),
  "chain-reject": () => one("chain", "rejected"),
  "chain-original": () => inTurn(() => decide({ chain: "" })),
  "previous": () => inTurn(() => step(-1)),
  "next": () => inTurn(() => step(1)),
  "undo": undo,
}, stage);
$("filter").addEventListener("change", () => {
  $("stage").focus(); // in the list, letters choose
  filtered();
});
window.addEventListener("beforeunload", (event) => {
  if (brush.isChanged) event.preventDefault();
});

// Begin, where there is something to decide.

document.title = `${review.store} · wsiseg review`;
$("store-name").textContent = review.store;
$("reviewer").textContent = review.name;
const first = Math.max(states.findIndex((state) => !isDecided(state)), 0);
const all = [...states.keys()];
await showFirst([...all.slice(first), ...all.slice(0, first)]).catch(fatal);
document.documentElement.dataset.ready = "yes"; // for those who drive the page by script
