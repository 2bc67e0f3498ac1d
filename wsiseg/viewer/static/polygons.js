// The layer over the slide: pictures of outlines from the painter, and on top of them the few things that move.
//
// Outlines are painted by a worker into tiles, at scales that are powers of two. A frame only moves the finished
// tiles, which the browser's compositor does without painting them again, so it costs the same however many
// polygons there are. While another scale is being painted, the tiles of the last one stay.

const TILE = 512;
const MOST_TILES = 160; // 1 MB each; more where the screen has room for more
const IN_FLIGHT = 3;

export class Polygons {
  // view() → { scale, x, y, width, height }: screen = slide · scale + (x, y)
  constructor(element, canvas, store, view) {
    this.element = element;
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.store = store;
    this.view = view;
    this.tiles = new Map(); // key → { canvas, version }, the longest unused first
    this.most = MOST_TILES;
    this.version = 0;
    this.level = null; // the level that is shown
    this.wanted = [];
    this.inFlight = new Map();
    this.painters = []; // functions (context, view) that draw on top, and say whether they did
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
    const tile = this.tiles.get(key) ?? { canvas: null };
    if (picture) {
      tile.canvas ??= document.createElement("canvas");
      [tile.canvas.width, tile.canvas.height] = [TILE, TILE];
      tile.canvas.getContext("bitmaprenderer").transferFromImageBitmap(picture);
    } else {
      tile.canvas?.remove();
      tile.canvas = null;
    }
    tile.version = version;
    this.used(key, tile);
    for (const [old, { canvas }] of this.tiles) {
      if (this.tiles.size <= this.most) break;
      canvas?.remove();
      this.tiles.delete(old);
    }
    this.request();
    this.soon();
  }

  // To the end of the tiles: used last.
  used(key, tile) {
    this.tiles.delete(key);
    this.tiles.set(key, tile);
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
    if (this.store.count) this.moveTiles(view);
    this.drawOnTop(view);
  }

  drawOnTop(view) {
    const { context, canvas } = this;
    const density = window.devicePixelRatio || 1;
    const [width, height] = [Math.round(view.width * density), Math.round(view.height * density)];
    if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
    else if (this.isDrawn) context.clearRect(0, 0, view.width, view.height);
    context.setTransform(density, 0, 0, density, 0, 0);
    this.isDrawn = this.painters.map((paint) => paint(context, view)).some(Boolean);
  }

  moveTiles(view) {
    const level = Math.floor(-Math.log2(view.scale * (window.devicePixelRatio || 1)));
    const keys = this.inView(view, level);
    this.most = Math.max(MOST_TILES, 2 * keys.length); // of this level and of the one that is still shown
    this.wanted = keys.filter((key) => this.tiles.get(key)?.version !== this.version);
    const middle = (key) => {
      const { left, top, span } = place(key);
      const [x, y] = [left + span / 2, top + span / 2];
      return Math.hypot(x * view.scale + view.x - view.width / 2, y * view.scale + view.y - view.height / 2);
    };
    this.wanted.sort((a, b) => middle(a) - middle(b));
    this.request();
    if (this.level === null || keys.every((key) => this.tiles.has(key))) this.level = level;
    const shown = this.level === level ? keys : this.inView(view, this.level, this.most / 2);
    const canvases = new Set();
    for (const key of shown) {
      const tile = this.tiles.get(key);
      if (!tile) continue;
      this.used(key, tile);
      if (!tile.canvas) continue;
      canvases.add(tile.canvas);
      const { left, top, span } = place(key);
      const [x, y, scale] = [left * view.scale + view.x, top * view.scale + view.y, (span * view.scale) / TILE];
      tile.canvas.style.transform = `translate(${x}px, ${y}px) scale(${scale})`;
      if (!tile.canvas.parentNode) this.element.append(tile.canvas);
    }
    for (const canvas of [...this.element.children]) if (!canvases.has(canvas)) canvas.remove();
  }

  // Keys of the tiles of a level that are in view: thousands, where it is much finer than the view.
  inView(view, level, most = Infinity) {
    const span = TILE * 2 ** level;
    const [firstX, firstY] = [Math.floor(-view.x / view.scale / span), Math.floor(-view.y / view.scale / span)];
    const lastX = Math.floor((view.width - view.x) / view.scale / span);
    const lastY = Math.floor((view.height - view.y) / view.scale / span);
    const keys = [];
    for (let y = firstY; y <= lastY; y++) {
      for (let x = firstX; x <= lastX && keys.length < most; x++) keys.push(`${level}/${x}/${y}`);
    }
    return keys;
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
