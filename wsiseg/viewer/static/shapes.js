// Polygons as flat arrays, found by place. Used by the page (what is under the pointer) and by the painter.

const CELLS_PER_OBJECT = 0.5;
const MOST_CELLS = 64; // an object over more cells is kept in a list of its own

// The block of bytes that wsiseg/viewer/packing.py describes.
export function unpack(buffer) {
  const headerLength = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, headerLength)));
  let offset = 4 + headerLength;
  const take = (Kind, length) => {
    const array = new Kind(buffer, offset, length);
    offset += array.byteLength;
    return array;
  };
  const { objects, rings, vertices } = header;
  return {
    ...header,
    objectStart: take(Uint32Array, objects + 1),
    ringStart: take(Uint32Array, rings + 1),
    xy: take(Float32Array, 2 * vertices),
    probability: take(Float32Array, objects),
    area: take(Float32Array, objects),
    class: take(Uint32Array, objects),
    review: take(Uint8Array, objects),
  };
}

export class Shapes {
  constructor() {
    this.count = 0;
    this.objectStart = new Uint32Array(1);
    this.ringStart = new Uint32Array(1);
    this.xy = new Float32Array(0);
    this.changed = new Map(); // index → rings that replace the packed ones
    this.index();
  }

  // Append an unpacked block.
  add(block) {
    const rings = this.ringStart.length - 1;
    const vertices = this.xy.length / 2;
    this.objectStart = joined(this.objectStart, block.objectStart.subarray(1), rings);
    this.ringStart = joined(this.ringStart, block.ringStart.subarray(1), vertices);
    this.xy = joined(this.xy, block.xy, 0);
    this.count += block.objects;
    this.index();
  }

  // Replace the rings of one object; null brings the packed ones back.
  change(object, rings) {
    if (rings) this.changed.set(object, rings.map((ring) => Float32Array.from(ring)));
    else this.changed.delete(object);
    this.measure(object);
  }

  rings(object) {
    const changed = this.changed.get(object);
    if (changed) return changed;
    const rings = [];
    for (let r = this.objectStart[object]; r < this.objectStart[object + 1]; r++) {
      rings.push(this.xy.subarray(2 * this.ringStart[r], 2 * this.ringStart[r + 1]));
    }
    return rings;
  }

  box(object) {
    return this.boxes.subarray(4 * object, 4 * object + 4);
  }

  // Calls visit(object) once for each object whose box meets left, top, right, bottom.
  find(left, top, right, bottom, visit) {
    const meets = (o) => {
      const b = 4 * o;
      return this.boxes[b] <= right && this.boxes[b + 2] >= left && this.boxes[b + 1] <= bottom && this.boxes[b + 3] >= top;
    };
    for (const o of this.changed.keys()) if (meets(o)) visit(o);
    for (const o of this.large) if (!this.changed.has(o) && meets(o)) visit(o);
    const [x0, y0, x1, y1] = this.cells(left, top, right, bottom);
    for (let y = y0; y <= y1; y++) {
      for (let x = x0; x <= x1; x++) {
        const cell = y * this.columns + x;
        for (let i = this.cellStart[cell]; i < this.cellStart[cell + 1]; i++) {
          const o = this.cellItems[i];
          // In the first cell that both share, so that an object over several cells comes once.
          if (x !== Math.max(x0, this.firstCell[2 * o]) || y !== Math.max(y0, this.firstCell[2 * o + 1])) continue;
          if (meets(o) && !this.changed.has(o)) visit(o);
        }
      }
    }
  }

  // The smallest object that holds a point and that `wanted` accepts, or -1.
  at(x, y, wanted) {
    let best = -1;
    let bestArea = Infinity;
    this.find(x, y, x, y, (o) => {
      const [x0, y0, x1, y1] = this.box(o);
      const area = (x1 - x0) * (y1 - y0);
      if (area < bestArea && wanted(o) && inside(this.rings(o), x, y)) [best, bestArea] = [o, area];
    });
    return best;
  }

  cells(left, top, right, bottom) {
    const clamp = (value, last) => Math.min(Math.max(Math.floor(value), 0), last);
    return [
      clamp((left - this.left) / this.cell, this.columns - 1),
      clamp((top - this.top) / this.cell, this.rows - 1),
      clamp((right - this.left) / this.cell, this.columns - 1),
      clamp((bottom - this.top) / this.cell, this.rows - 1),
    ];
  }

  measure(object) {
    let [x0, y0, x1, y1] = [Infinity, Infinity, -Infinity, -Infinity];
    for (const ring of this.rings(object)) {
      for (let i = 0; i < ring.length; i += 2) {
        if (ring[i] < x0) x0 = ring[i];
        if (ring[i] > x1) x1 = ring[i];
        if (ring[i + 1] < y0) y0 = ring[i + 1];
        if (ring[i + 1] > y1) y1 = ring[i + 1];
      }
    }
    this.boxes.set([x0, y0, x1, y1], 4 * object);
  }

  // A grid of cells, each with the objects whose boxes touch it: one list, and where each cell begins in it.
  // By the packed outlines: a changed one is looked for without the grid, and may become the packed one again.
  index() {
    const changed = this.changed;
    this.changed = new Map();
    this.boxes = new Float32Array(4 * this.count);
    let [left, top, right, bottom] = [Infinity, Infinity, -Infinity, -Infinity];
    for (let o = 0; o < this.count; o++) {
      this.measure(o);
      const [x0, y0, x1, y1] = this.box(o);
      [left, top] = [Math.min(left, x0), Math.min(top, y0)];
      [right, bottom] = [Math.max(right, x1), Math.max(bottom, y1)];
    }
    if (!this.count) [left, top, right, bottom] = [0, 0, 1, 1];
    this.left = left;
    this.top = top;
    this.cell = Math.max(1, Math.sqrt(((right - left) * (bottom - top)) / Math.max(1, this.count * CELLS_PER_OBJECT)));
    this.cell = Math.max(this.cell, (right - left) / 4096, (bottom - top) / 4096);
    this.columns = Math.floor((right - left) / this.cell) + 1;
    this.rows = Math.floor((bottom - top) / this.cell) + 1;
    this.firstCell = new Uint16Array(2 * this.count);
    this.large = [];
    const counts = new Uint32Array(this.columns * this.rows + 1);
    const each = (visit) => {
      for (let o = 0; o < this.count; o++) {
        const [x0, y0, x1, y1] = this.cells(...this.box(o));
        if ((x1 - x0 + 1) * (y1 - y0 + 1) > MOST_CELLS) visit(o, -1);
        else for (let y = y0; y <= y1; y++) for (let x = x0; x <= x1; x++) visit(o, y * this.columns + x);
        this.firstCell.set([x0, y0], 2 * o);
      }
    };
    each((o, cell) => (cell < 0 ? this.large.push(o) : counts[cell + 1]++));
    for (let i = 1; i < counts.length; i++) counts[i] += counts[i - 1];
    this.cellStart = counts;
    this.cellItems = new Uint32Array(counts[counts.length - 1]);
    const next = counts.slice();
    each((o, cell) => cell >= 0 && (this.cellItems[next[cell]++] = o));
    this.changed = changed;
    for (const o of changed.keys()) this.measure(o);
  }
}

// Even-odd over all rings: holes are outside.
function inside(rings, x, y) {
  let odd = false;
  for (const ring of rings) {
    for (let i = 0, j = ring.length - 2; i < ring.length; j = i, i += 2) {
      const [yi, yj] = [ring[i + 1], ring[j + 1]];
      if (yi > y !== yj > y && x < ((ring[j] - ring[i]) * (y - yi)) / (yj - yi) + ring[i]) odd = !odd;
    }
  }
  return odd;
}

function joined(a, b, shift) {
  const both = new a.constructor(a.length + b.length);
  both.set(a);
  if (!shift) both.set(b, a.length);
  else for (let i = 0; i < b.length; i++) both[a.length + i] = b[i] + shift;
  return both;
}
