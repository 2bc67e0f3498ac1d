// A worker that paints tiles of outlines, so that the page itself only ever copies finished pictures.

import { Shapes, unpack } from "./shapes.js";

const LINE_PX = 2;
const THIN_PX = 1.2; // where the slide is seen from afar
const DOT_PX = 2; // what is smaller is drawn as a dot of this size
const STEP_PX = 0.8; // vertices nearer than this to the last one drawn are left out
const MOST_IN_PATH = 32; // the time that a path takes grows with the square of the outlines in it

const shapes = new Shapes();
let classOf = new Uint32Array(0);
let state = new Uint8Array(0); // review of each object (0, 1 accepted, 2 rejected); 255 is deleted
let styles = []; // per class: { color: [r, g, b], opacity, visible }

const messages = {
  add({ buffer }) {
    const block = unpack(buffer);
    shapes.add(block);
    const before = classOf;
    classOf = new Uint32Array(before.length + block.objects);
    classOf.set(before);
    classOf.set(block.class, before.length);
  },
  state({ values }) {
    state = values;
  },
  styles({ values }) {
    styles = values;
  },
  change({ object, rings }) {
    shapes.change(object, rings);
  },
  paint({ key, version, left, top, span, size }) {
    const picture = paint(left, top, span, size);
    postMessage({ key, version, picture }, picture ? [picture] : []);
  },
};
onmessage = ({ data }) => messages[data.type](data);

// A picture of `size` pixels of the square with corner left, top and side `span` (slide pixels); null if empty.
function paint(left, top, span, size) {
  const scale = size / span;
  const margin = LINE_PX / scale;
  const line = scale < 0.7 ? THIN_PX : LINE_PX;
  const groups = new Map(); // class and review → { paths, dots, room: for how many outlines in the last path }
  shapes.find(left - margin, top - margin, left + span + margin, top + span + margin, (o) => {
    const style = styles[classOf[o]];
    if (!style?.visible || state[o] === 255) return;
    const key = classOf[o] * 3 + state[o];
    if (!groups.has(key)) groups.set(key, { paths: [], dots: new Path2D(), room: 0 });
    const group = groups.get(key);
    const [x0, y0, x1, y1] = shapes.box(o);
    if (Math.max(x1 - x0, y1 - y0) * scale < DOT_PX) {
      group.dots.rect(((x0 + x1) / 2 - left) * scale - DOT_PX / 2, ((y0 + y1) / 2 - top) * scale - DOT_PX / 2, DOT_PX, DOT_PX);
      return;
    }
    if (!group.room) {
      group.paths.push(new Path2D());
      group.room = MOST_IN_PATH;
    }
    group.room--;
    for (const ring of shapes.rings(o)) trace(group.paths.at(-1), ring, left, top, scale);
  });
  if (!groups.size) return null;
  const context = new OffscreenCanvas(size, size).getContext("2d");
  // What is drawn in one ink is drawn opaque first: where outlines overlap it is as dark as elsewhere.
  const opaque = new OffscreenCanvas(size, size).getContext("2d");
  opaque.lineJoin = "round";
  for (const [key, { paths, dots }] of [...groups].sort(([a], [b]) => a - b)) {
    const { color, opacity } = styles[Math.floor(key / 3)];
    const review = key % 3;
    opaque.fillStyle = opaque.strokeStyle = `rgb(${color.join(" ")})`;
    opaque.setLineDash(review === 2 ? [3, 5] : []);
    opaque.lineWidth = review === 1 ? 1.6 * line : line;
    const lay = (alpha, draw) => {
      draw();
      context.globalAlpha = alpha * opacity;
      context.drawImage(opaque.canvas, 0, 0);
      opaque.clearRect(0, 0, size, size);
    };
    if (review !== 2) lay(review === 1 ? 0.42 : 0.24, () => paths.forEach((path) => opaque.fill(path)));
    lay(0.85, () => opaque.fill(dots));
    lay(review === 2 ? 0.7 : 1, () => paths.forEach((path) => opaque.stroke(path)));
  }
  return context.canvas.transferToImageBitmap();
}

function trace(path, ring, left, top, scale) {
  let [lastX, lastY] = [Infinity, Infinity];
  for (let i = 0; i < ring.length; i += 2) {
    const x = (ring[i] - left) * scale;
    const y = (ring[i + 1] - top) * scale;
    if (i === 0) path.moveTo(x, y);
    else if (Math.abs(x - lastX) + Math.abs(y - lastY) < STEP_PX) continue;
    else path.lineTo(x, y);
    [lastX, lastY] = [x, y];
  }
  path.closePath();
}
