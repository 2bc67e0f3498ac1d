// The server's routes. Addresses are relative: the page lies below its token.

async function request(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The server does not answer: is `wsiseg view` still running?");
  }
  if (!response.ok) throw new Error(await response.text());
  return response;
}

function post(path, body = {}) {
  const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  return request(path, options).then((response) => response.json());
}

export const slide = () => request("slide").then((response) => response.json());
export const tileUrl = (level, x, y) => `tiles/${level}/${x}_${y}.jpg`;
export const polygons = (first) => request(`polygons?first=${first}`).then((response) => response.arrayBuffer());
export const details = (index) => request(`objects/${index}`).then((response) => response.json());
export const save = (edits) => post("save", edits);
export const ask = (query, region) => post("queries", { query, region });
export const cancel = (number) => post(`queries/${number}/cancel`);

// Call `hear` with each event of a query; the last has the kind done, failed or cancelled.
export function listen(number, hear) {
  const source = new EventSource(`queries/${number}/events`);
  source.onmessage = ({ data }) => {
    const event = JSON.parse(data);
    if (["done", "failed", "cancelled"].includes(event.kind)) source.close();
    hear(event);
  };
}
