// The lists at the side: classes, and the object that is chosen. All text from files goes through textContent.

import * as api from "./api.js";

const SAID = "ANNOTATION_DESCRIPTION";
const $ = (id) => document.getElementById(id);

export class Panel {
  constructor(store) {
    this.store = store;
    this.known = new Map(); // object → what the server knows of it
  }

  classes() {
    const { store } = this;
    const counts = store.counts();
    $("no-classes").hidden = store.classes.length > 0;
    $("objects").hidden = store.count === 0;
    const total = counts.reduce((sum, count) => sum + count, 0);
    $("total").textContent = total ? total.toLocaleString() : "";
    while ($("classes").childElementCount < store.classes.length) {
      $("classes").append(this.classItem($("classes").childElementCount));
    }
    store.classes.forEach((style, index) => {
      const item = $("classes").children[index];
      item.classList.toggle("off", !style.visible);
      item.querySelector("[type=checkbox]").checked = style.visible;
      item.querySelector("[type=color]").value = hex(style.color);
      item.querySelector(".count").textContent = counts[index].toLocaleString();
    });
  }

  classItem(index) {
    const { name } = this.store.classes[index];
    const item = document.createElement("li");
    const visible = input("checkbox", `Show ${name}`);
    visible.addEventListener("change", () => this.store.setStyle(index, { visible: visible.checked }));
    const opacity = input("range", `Opacity of ${name}`);
    Object.assign(opacity, { min: 0.1, max: 1, step: 0.05, value: 1, title: "Opacity" });
    opacity.addEventListener("input", () => this.store.setStyle(index, { opacity: Number(opacity.value) }));
    const color = input("color", `Colour of ${name}`);
    color.title = "Colour";
    color.addEventListener("input", () => this.store.recolor(index, rgb(color.value)));
    item.append(visible, color, text("span", name, "name"), text("span", "", "count"), opacity);
    item.querySelector(".name").title = name;
    return item;
  }

  // What the server knows of an object, asked once.
  async details(object) {
    if (!this.known.has(object)) this.known.set(object, await api.details(object));
    return this.known.get(object);
  }

  async said(object) {
    return (await this.details(object)).metadata[SAID] ?? "";
  }

  // Show an object; -1 for none. editing: whether its outline is being changed.
  async object(object, position, editing) {
    const { store } = this;
    $("details").hidden = object < 0;
    $("position").textContent = position;
    if (object < 0) return;
    const style = store.classes[store.classOf[object]];
    const review = store.review(object);
    $("object-color").style.setProperty("--color", `rgb(${style.color.join(" ")})`);
    $("object-class").textContent = style.name;
    $("object-state").textContent = review || "undecided";
    $("object-state").className = `badge ${review}`;
    $("accept").setAttribute("aria-pressed", review === "accepted");
    $("reject").setAttribute("aria-pressed", review === "rejected");
    $("edit").setAttribute("aria-pressed", editing);
    $("edit").textContent = editing ? "Done" : "Edit";
    $("edit-hint").hidden = !editing;
    this.shown = object;
    if (!this.known.has(object)) for (const id of ["measurements", "chain", "metadata"]) $(id).replaceChildren();
    const known = await this.details(object);
    if (this.shown !== object) return;
    const changed = store.shapes.changed.has(object);
    const stale = changed ? known.ofOutline : [];
    const rows = Object.entries(known.measurements).filter(([name]) => !stale.includes(name));
    list($("measurements"), rows.map(([name, value]) => [name.replace("^2", "²"), number(value)]));
    if (changed) $("measurements").append(text("dt", "Outline"), text("dd", "changed by hand; measured when saved"));
    $("chain").textContent = known.metadata[SAID] ?? "";
    list($("metadata"), Object.entries(known.metadata).filter(([name]) => name !== SAID && name !== "review"));
  }
}

export function number(value) {
  return Number(value.toPrecision(4)).toLocaleString(undefined, { maximumSignificantDigits: 4 });
}

const hex = (color) => `#${color.map((value) => value.toString(16).padStart(2, "0")).join("")}`;
const rgb = (text) => [1, 3, 5].map((i) => parseInt(text.slice(i, i + 2), 16));

function list(element, rows) {
  element.replaceChildren(...rows.flatMap(([name, value]) => [text("dt", name), text("dd", value)]));
}

function text(tag, content, className = "") {
  const element = document.createElement(tag);
  element.textContent = content;
  element.className = className;
  return element;
}

function input(type, label) {
  const element = document.createElement("input");
  element.type = type;
  element.setAttribute("aria-label", label);
  return element;
}
