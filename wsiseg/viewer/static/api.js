// The routes of `wsiseg view`.

import { SILENT, post, request } from "./http.js";

const PAGE = crypto.randomUUID(); // by which the server tells two pages of one session apart

export const slide = () => request("slide").then((response) => response.json());
export const tileUrl = (level, x, y) => `tiles/${level}/${x}_${y}.jpg`;
export const polygons = (first) => request(`polygons?first=${first}`).then((response) => response.arrayBuffer());
export const details = (index) => request(`objects/${index}`).then((response) => response.json());
export const save = (edits, after) => post(`save?page=${PAGE}&after=${after}`, edits);
export const keepDraft = (edits, after) => post(`draft?page=${PAGE}&after=${after}`, edits);
export const takeDraft = () => post(`draft/take?page=${PAGE}`);
export const dropDraft = () => post("draft/drop");
export const ask = (query, region) => post("queries", { query, region });
export const cancel = (number) => post(`queries/${number}/cancel`);

// Call `hear` with each event of a query; the last has the kind done, failed or cancelled.
export function listen(number, hear) {
  const source = new EventSource(`queries/${number}/events`);
  let failures = 0; // the browser tries again by itself, and is told what it missed
  source.onerror = () => {
    if (++failures < 5 && source.readyState !== EventSource.CLOSED) return;
    source.close();
    hear({ kind: "failed", message: SILENT });
  };
  source.onmessage = ({ data }) => {
    const event = JSON.parse(data);
    failures = 0;
    if (["done", "failed", "cancelled"].includes(event.kind)) source.close();
    hear(event);
  };
}
