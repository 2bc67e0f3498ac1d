// The mask of one image: a map of labels, how it is changed, and how it is drawn.

const KEPT_STEPS = 40;

export class Labels {
  // values: Uint16Array of width · height; color: [r, g, b]
  constructor(width, height, values, color) {
    Object.assign(this, { width, height, values, color, past: [] });
    this.tint = new OffscreenCanvas(width, height);
    this.rebuild();
  }

  // The label of the pixel that holds x, y; 0 outside.
  at(x, y) {
    const [i, j] = [Math.floor(x), Math.floor(y)];
    return i >= 0 && j >= 0 && i < this.width && j < this.height ? this.values[j * this.width + i] : 0;
  }

  get isEmpty() {
    return !this.values.some(Boolean);
  }

  // For another object. Where the mask tells none apart (0 and 1), 1: its parts are its objects.
  get free() {
    const most = this.values.reduce((a, b) => (a > b ? a : b), 0);
    if (most < 2) return 1;
    if (most < 65535) return most + 1;
    const used = new Set(this.values);
    return Array.from({ length: 65535 }, (_, i) => i + 1).find((label) => !used.has(label)) ?? 1;
  }

  // Before each change, so that `undo` goes back to here.
  remember() {
    this.past.push(this.values.slice());
    if (this.past.length > KEPT_STEPS) this.past.shift();
  }

  // Whether there was a change to take back.
  undo() {
    if (!this.past.length) return false;
    this.values = this.past.pop();
    this.rebuild();
    return true;
  }

  // Paint a disc with a label where there is none; with 0 erase all.
  dab(x, y, radius, label) {
    const { width, height, values } = this;
    for (let j = Math.max(0, Math.floor(y - radius)); j < Math.min(height, y + radius); j++) {
      for (let i = Math.max(0, Math.floor(x - radius)); i < Math.min(width, x + radius); i++) {
        if (Math.hypot(i + 0.5 - x, j + 0.5 - y) > radius) continue;
        if (!label || !values[j * width + i]) values[j * width + i] = label;
      }
    }
  }

  // The connected pixels of one label around x, y; what they touch, and whether they reach the edge of the image.
  flood(x, y) {
    const { width, height, values } = this;
    if (x < 0 || y < 0 || x >= width || y >= height) return { pixels: [], touched: 0, isOpen: true };
    const start = Math.floor(y) * width + Math.floor(x);
    const label = values[start];
    const seen = new Uint8Array(values.length);
    const pixels = [start];
    let [touched, isOpen] = [0, false];
    seen[start] = 1;
    for (let next = 0; next < pixels.length; next++) {
      const p = pixels[next];
      const [i, j] = [p % width, Math.floor(p / width)];
      if (i === 0 || j === 0 || i === width - 1 || j === height - 1) isOpen = true;
      for (const [q, inside] of [[p - 1, i > 0], [p + 1, i < width - 1], [p - width, j > 0], [p + width, j < height - 1]]) {
        if (!inside || seen[q]) continue;
        if (values[q] !== label) touched = values[q];
        else {
          seen[q] = 1;
          pixels.push(q);
        }
      }
    }
    return { pixels, touched, isOpen };
  }

  set(pixels, label) {
    for (const p of pixels) this.values[p] = label;
    this.rebuild();
  }

  // The picture anew: a tint of the inside, and a path along the pixel edges between labels.
  rebuild() {
    const { width, height, values } = this;
    const tint = new ImageData(width, height);
    const [r, g, b] = this.color;
    const inked = new Uint32Array(tint.data.buffer);
    const ink = ((0x2c << 24) | (b << 16) | (g << 8) | r) >>> 0;
    for (let p = 0; p < values.length; p++) if (values[p]) inked[p] = ink;
    this.tint.getContext("2d").putImageData(tint, 0, 0);
    const path = new Path2D();
    // Runs along a line between two rows, then between two columns.
    const edges = (lines, length, label, run) => {
      for (let line = 0; line <= lines; line++) {
        let start = -1;
        for (let i = 0; i <= length; i++) {
          const differs = i < length && label(line - 1, i) !== label(line, i);
          if (differs && start < 0) start = i;
          if (!differs && start >= 0) {
            run(line, start, i);
            start = -1;
          }
        }
      }
    };
    const across = (j, i) => (j < 0 || j >= height ? 0 : values[j * width + i]);
    const down = (i, j) => (i < 0 || i >= width ? 0 : values[j * width + i]);
    edges(height, width, across, (y, x0, x1) => (path.moveTo(x0, y), path.lineTo(x1, y)));
    edges(width, height, down, (x, y0, y1) => (path.moveTo(x, y0), path.lineTo(x, y1)));
    this.path = path;
  }

  paint(context, { scale, x, y }) {
    context.save();
    context.translate(x, y);
    context.scale(scale, scale);
    context.imageSmoothingEnabled = false;
    context.drawImage(this.tint, 0, 0);
    context.lineCap = "square";
    context.lineWidth = 3.5 / scale;
    context.strokeStyle = "rgb(255 255 255 / .75)";
    context.stroke(this.path);
    context.lineWidth = 1.75 / scale;
    context.strokeStyle = `rgb(${this.color.join(" ")})`;
    context.stroke(this.path);
    context.restore();
  }
}
