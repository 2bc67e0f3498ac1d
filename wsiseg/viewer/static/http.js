// Asking the server. Addresses are relative: the page lies below its token.

export const SILENT = "The server does not answer: is wsiseg still running?";

export async function request(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error(SILENT);
  }
  if (!response.ok) throw new Error(await response.text());
  return response;
}

export function post(path, body = {}) {
  const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  return request(path, options).then((response) => response.json());
}
