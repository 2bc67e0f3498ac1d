// The box in which one asks: start, watch and cancel a query.

import * as api from "./api.js";

const MOST_LINES = 300;

export class QueryPanel {
  // found(event) is called when a query is done, with the last event.
  constructor({ region, draw, show, found, announce }) {
    Object.assign(this, { region, draw, show, found, announce, tiles: [], number: null });
    this.form = document.getElementById("ask");
    this.text = document.getElementById("query");
    this.start = document.getElementById("ask-start");
    this.stop = document.getElementById("ask-cancel");
    this.run = document.getElementById("run");
    this.bar = document.getElementById("run-progress");
    this.counter = document.getElementById("run-count");
    this.state = document.getElementById("run-state");
    this.log = document.getElementById("run-log");
    this.written = document.getElementById("run-writing");
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.ask();
    });
    this.text.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.form.requestSubmit();
    });
    this.stop.addEventListener("click", () => this.cancel());
  }

  get isRunning() {
    return this.number !== null;
  }

  async ask() {
    const query = this.text.value.trim();
    if (!query || this.isRunning) return;
    const region = this.form.elements.scope.value === "view" ? this.region() : null;
    try {
      this.follow((await api.ask(query, region)).number);
    } catch (error) {
      const { running } = await api.slide().catch(() => ({ running: null }));
      if (running !== null) return this.follow(running); // one that this page lost sight of
      this.run.hidden = false;
      this.end(error.message, true);
    }
  }

  // Watch a query, from its beginning.
  follow(number) {
    this.number = number;
    this.tiles = [];
    this.log.replaceChildren();
    this.run.hidden = false;
    this.bar.removeAttribute("value");
    this.counter.textContent = "";
    this.tell("Starting …");
    this.start.hidden = true;
    this.stop.hidden = false;
    api.listen(number, (event) => this[event.kind](event));
  }

  cancel() {
    if (!this.isRunning) return;
    this.tell("Cancelling …");
    api.cancel(this.number).catch((error) => this.tell(error.message, true));
  }

  loading() {
    this.tell("Loading the model …");
  }

  started() {
    this.tell("Looking …");
    this.announce("Looking at the tiles");
  }

  progress({ done, total }) {
    this.bar.max = total;
    this.bar.value = done;
    this.counter.textContent = `${done.toLocaleString()} of ${total.toLocaleString()} tiles`;
  }

  // What the model is writing about the tiles before it, at every token. Screen readers hear the whole of it later.
  writing({ texts }) {
    const items = texts.filter(Boolean).map((text) => {
      const item = document.createElement("li");
      item.textContent = text;
      return item;
    });
    this.written.replaceChildren(...items);
  }

  tile(event) {
    this.tiles.push(event);
    const item = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    button.className = event.segmented ? "found" : "";
    button.title = `P(segment) ${event.probability.toFixed(2)}: show this tile`;
    const said = document.createElement("span");
    said.textContent = event.said;
    button.append(document.createElement("i"), said);
    const [x, y, width, height] = event.box;
    button.addEventListener("click", () => this.show([x, y, x + width, y + height]));
    item.append(button);
    const follow = this.log.scrollTop + this.log.clientHeight >= this.log.scrollHeight - 30;
    this.log.append(item);
    if (this.log.childElementCount > MOST_LINES) this.log.firstElementChild.remove();
    if (follow) this.log.scrollTop = this.log.scrollHeight;
    this.draw();
  }

  async done(event) {
    const outlines = `${event.found.toLocaleString()} outline${event.found === 1 ? "" : "s"}`;
    const known = event.found - event.new ? `, ${(event.found - event.new).toLocaleString()} of them already outlined` : "";
    this.end([...(event.found ? [`Found ${outlines}${known}.`] : []), ...event.notes].join(" "));
    if (event.new) await this.found(event);
  }

  failed({ message }) {
    this.end(message, true);
  }

  cancelled() {
    this.end("Cancelled; nothing was kept.");
  }

  end(message, isBad = false) {
    this.number = null;
    this.written.replaceChildren();
    this.start.hidden = false;
    this.stop.hidden = true;
    if (!this.bar.hasAttribute("value")) this.bar.value = 0;
    this.tell(message, isBad);
    this.announce(message);
    this.draw();
  }

  tell(message, isBad = false) {
    this.state.textContent = message;
    this.state.classList.toggle("bad", isBad);
  }

  // While it runs: the tiles that were looked at, those with something in them stronger.
  paint(context, view) {
    if (!this.isRunning) return false;
    context.lineWidth = 1;
    context.setLineDash([]);
    for (const { box, segmented } of this.tiles) {
      const [x, y, width, height] = box.map((value) => value * view.scale);
      context.fillStyle = segmented ? "rgb(91 58 153 / .22)" : "rgb(91 58 153 / .05)";
      context.strokeStyle = segmented ? "rgb(91 58 153 / .7)" : "rgb(91 58 153 / .2)";
      context.fillRect(x + view.x, y + view.y, width, height);
      context.strokeRect(x + view.x, y + view.y, width, height);
    }
    return true;
  }
}
