// Change a mask with a round brush, by mouse or by keys. It works on a copy: nothing is kept until it is done.

import { Labels } from "./labels.js";

export class Brush {
  // announce tells screen readers, warn everybody.
  constructor(draw, announce, warn) {
    Object.assign(this, { draw, announce, warn, labels: null, radius: 0, erases: false });
  }

  get isOpen() {
    return this.labels !== null;
  }

  get isChanged() {
    return this.isOpen && this.labels.values.some((label, p) => label !== this.before[p]);
  }

  open({ width, height, values, color }) {
    this.labels = new Labels(width, height, values.slice(), color);
    this.before = values;
    this.radius ||= Math.max(2, Math.round(Math.max(width, height) / 60));
    Object.assign(this, { x: width / 2, y: height / 2, isDown: false, erases: false });
    this.draw();
  }

  close() {
    this.labels = null;
    this.draw();
  }

  undo() {
    this.isDown = false;
    const undone = this.labels.undo();
    if (undone) this.announce("Undone");
    this.draw();
    return undone;
  }

  // A stroke begins at x, y of the image. From inside an object it extends that one, from outside it begins another.
  press(x, y, erases = this.erases) {
    this.labels.remember();
    this.label = erases ? 0 : this.labels.at(x, y) || this.labels.free;
    this.isDown = true;
    [this.x, this.y] = [x, y];
    this.dab(x, y);
  }

  moveTo(x, y) {
    const [fromX, fromY] = [this.x, this.y];
    [this.x, this.y] = [x, y];
    if (!this.isDown) return this.draw();
    const steps = Math.ceil(Math.hypot(x - fromX, y - fromY) / Math.max(1, this.radius / 2));
    for (let i = 1; i <= steps; i++) {
      this.labels.dab(fromX + ((x - fromX) * i) / steps, fromY + ((y - fromY) * i) / steps, this.radius, this.label);
    }
    this.soon();
  }

  release() {
    this.isDown = false;
  }

  dab(x, y) {
    this.labels.dab(x, y, this.radius, this.label);
    this.soon();
  }

  // The picture anew in the next frame: a mouse tells of more moves than there are frames.
  soon() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.labels?.rebuild();
      this.draw();
    });
  }

  resize(factor) {
    const most = Math.max(this.labels.width, this.labels.height) / 4;
    this.radius = Math.min(Math.max(this.radius * factor, 1), most);
    this.announce(`Brush of ${Math.round(2 * this.radius)} pixels`);
    this.draw();
  }

  // Whether the key was for the brush.
  key({ key, shiftKey, repeat }) {
    if (repeat && [" ", "x", "i", "Delete", "Backspace"].includes(key)) return true; // held down, these act once
    const { labels } = this;
    const step = shiftKey ? 1 : Math.max(1, this.radius / 2);
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    if (moves[key]) {
      const inside = (value, most) => Math.min(Math.max(value, 0), most - 0.5);
      this.moveTo(inside(this.x + moves[key][0], labels.width), inside(this.y + moves[key][1], labels.height));
    } else if (key === " ") {
      if (this.isDown) this.release();
      else this.press(this.x, this.y);
      this.announce(this.isDown ? (this.label ? "Painting" : "Erasing") : "Lifted");
    } else if (key.toLowerCase() === "x") {
      this.erases = !this.erases;
      this.release();
      this.announce(this.erases ? "Erases" : "Paints");
    } else if (key === "[" || key === "]") this.resize(key === "]" ? 1.25 : 0.8);
    else if (key.toLowerCase() === "i") this.fill();
    else if (key === "Delete" || key === "Backspace") this.remove();
    else return false;
    this.draw();
    return true;
  }

  fill() {
    const { pixels, touched, isOpen } = this.labels.flood(this.x, this.y);
    if (this.labels.at(this.x, this.y)) return this.warn("There is no hole under the brush");
    if (isOpen) return this.warn("This is no hole: it reaches the edge of the image");
    this.labels.remember();
    this.labels.set(pixels, touched);
    this.announce("Filled");
  }

  remove() {
    if (!this.labels.at(this.x, this.y)) return this.warn("There is no object under the brush");
    this.labels.remember();
    this.labels.set(this.labels.flood(this.x, this.y).pixels, 0);
    this.announce("Removed");
  }

  paint(context, { scale, x, y }) {
    context.beginPath();
    context.arc(this.x * scale + x, this.y * scale + y, this.radius * scale, 0, 7);
    for (const [width, color] of [[3, "#fff"], [1.5, this.erases ? "#b3261e" : "#222"]]) {
      context.lineWidth = width;
      context.strokeStyle = color;
      context.stroke();
    }
  }
}
