// The layer over the slide: pictures of outlines from the painter, and on top of them the few things that move.
//
// Outlines are painted by a worker into tiles, at scales that are powers of two. A frame copies tiles, so it
// costs the same however many polygons there are; where a tile is not painted yet, a coarser or finer one that
// is stands in for it.

const TILE = 512;
const MOST_TILES = 160; // 1 MB each
const IN_FLIGHT = 3;

export class Polygons {
  constructor(canvas, store, view) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.store = store;
    this.view = view; // view() → { scale, x, y, width, height }: screen = slide · scale + (x, y)
    this.tiles = new Map(); // key → { picture, version }, the longest unused first
    this.version = 0;
    this.wanted = [];
    this.inFlight = new Map();
    this.painters = []; // functions (context, view) that draw on top
    this.worker = new Worker(new URL("./painter.js", import.meta.url), { type: "module" });
    this.worker.onmessage = ({ data }) => this.receive(data);
    store.addEventListener("added", ({ detail }) => {
      this.worker.postMessage({ type: "add", buffer: detail.buffer });
      this.sendStyles();
      this.sendState();
      this.repaint();
    });
    store.addEventListener("styled", () => {
      this.sendStyles();
      this.repaint();
    });
    store.addEventListener("changed", ({ detail }) => {
      for (const object of detail.objects) {
        this.worker.postMessage({ type: "change", object, rings: store.shapes.changed.get(object) ?? null });
      }
      this.sendState();
      this.repaint(detail.before && [detail.before, store.shapes.box(detail.objects[0])]);
    });
  }

  sendStyles() {
    this.worker.postMessage({ type: "styles", values: this.store.classes });
  }

  sendState() {
    this.worker.postMessage({ type: "state", values: this.store.state });
  }

  // Paint anew the tiles that meet one of the boxes, or all; until then the old pictures stay.
  repaint(boxes) {
    this.version++;
    for (const [key, tile] of this.tiles) {
      const { left, top, span } = place(key);
      const margin = span / 64;
      const meets = ([x0, y0, x1, y1]) =>
        x0 <= left + span + margin && x1 >= left - margin && y0 <= top + span + margin && y1 >= top - margin;
      if (boxes && !boxes.some(meets) && tile.version === this.version - 1) tile.version = this.version;
    }
    this.draw();
  }

  receive({ key, version, picture }) {
    this.inFlight.delete(key);
    this.tiles.get(key)?.picture?.close();
    this.tiles.delete(key);
    this.tiles.set(key, { picture, version });
    for (const [old, tile] of this.tiles) {
      if (this.tiles.size <= MOST_TILES) break;
      tile.picture?.close();
      this.tiles.delete(old);
    }
    this.request();
    this.soon();
  }

  request() {
    while (this.inFlight.size < IN_FLIGHT && this.wanted.length) {
      const key = this.wanted.shift();
      if (this.inFlight.has(key) || this.tiles.get(key)?.version === this.version) continue;
      this.inFlight.set(key, this.version);
      this.worker.postMessage({ type: "paint", key, version: this.version, size: TILE, ...place(key) });
    }
  }

  // Draw in the next frame.
  soon() {
    this.frame ??= requestAnimationFrame(() => this.draw());
  }

  draw() {
    cancelAnimationFrame(this.frame);
    this.frame = null;
    const view = this.view();
    if (!view) return;
    const density = window.devicePixelRatio || 1;
    const [width, height] = [Math.round(view.width * density), Math.round(view.height * density)];
    if (this.canvas.width !== width || this.canvas.height !== height) {
      [this.canvas.width, this.canvas.height] = [width, height];
    }
    const { context } = this;
    context.setTransform(density, 0, 0, density, 0, 0);
    context.clearRect(0, 0, view.width, view.height);
    if (this.store.count) this.drawTiles(view, density);
    for (const paint of this.painters) paint(context, view);
  }

  drawTiles(view, density) {
    const level = Math.floor(-Math.log2(view.scale * density));
    const span = TILE * 2 ** level;
    const [firstX, firstY] = [Math.floor(-view.x / view.scale / span), Math.floor(-view.y / view.scale / span)];
    const lastX = Math.floor((view.width - view.x) / view.scale / span);
    const lastY = Math.floor((view.height - view.y) / view.scale / span);
    this.wanted = [];
    for (let y = firstY; y <= lastY; y++) {
      for (let x = firstX; x <= lastX; x++) {
        const key = `${level}/${x}/${y}`;
        const tile = this.tiles.get(key);
        if (tile) {
          this.tiles.delete(key); // to the end: used last
          this.tiles.set(key, tile);
        }
        if (tile?.version !== this.version) this.wanted.push(key);
        if (tile) this.copy(view, tile.picture, x * span, y * span, span);
        else this.standIn(view, level, x, y, span);
      }
    }
    const middle = (key) => {
      const { left, top } = place(key);
      return Math.hypot((left + span / 2) * view.scale + view.x - view.width / 2, (top + span / 2) * view.scale + view.y - view.height / 2);
    };
    this.wanted.sort((a, b) => middle(a) - middle(b));
    this.request();
  }

  copy(view, picture, left, top, span, source = [0, 0, TILE]) {
    if (!picture) return;
    const [sx, sy, size] = source;
    const side = span * view.scale;
    this.context.drawImage(picture, sx, sy, size, size, left * view.scale + view.x, top * view.scale + view.y, side, side);
  }

  // A part of the nearest coarser tile, else finer tiles.
  standIn(view, level, x, y, span) {
    for (let up = 1; up <= 6; up++) {
      const tile = this.tiles.get(`${level + up}/${x >> up}/${y >> up}`);
      if (!tile) continue;
      const size = TILE / 2 ** up;
      const source = [(x - ((x >> up) << up)) * size, (y - ((y >> up) << up)) * size, size];
      return this.copy(view, tile.picture, x * span, y * span, span, source);
    }
    for (let i = 0; i < 4; i++) {
      const [fx, fy] = [2 * x + (i & 1), 2 * y + (i >> 1)];
      const tile = this.tiles.get(`${level - 1}/${fx}/${fy}`);
      if (tile) this.copy(view, tile.picture, (fx * span) / 2, (fy * span) / 2, span / 2);
    }
  }
}

function place(key) {
  const [level, x, y] = key.split("/").map(Number);
  const span = TILE * 2 ** level;
  return { left: x * span, top: y * span, span };
}

// The path of rings on the screen.
export function screenPath(rings, view) {
  const path = new Path2D();
  for (const ring of rings) {
    for (let i = 0; i < ring.length; i += 2) {
      path[i ? "lineTo" : "moveTo"](ring[i] * view.scale + view.x, ring[i + 1] * view.scale + view.y);
    }
    path.closePath();
  }
  return path;
}
