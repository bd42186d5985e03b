// The public API of the server that the page came from, and nothing else.
// For: one way to ask, to stream, to be told what is wrong, and to be asked for a key.
// Not for: what the answers mean. Read next: main.js.

const KEY = "miudo-key"; // kept in this tab alone, gone with it
let askForKey = async () => null;

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

// `ask` shows a form and gives a key, or null where nobody wants to give one.
export function whenLocked(ask) {
  askForKey = ask;
}

async function failed(reply) {
  let message = `${reply.status} ${reply.statusText}`;
  try {
    message = (await reply.json()).error.message;
  } catch {
    // no JSON: the status says what is known
  }
  return new ApiError(reply.status, message);
}

async function reach(path, body, signal) {
  for (;;) {
    const headers = body === undefined ? {} : { "content-type": "application/json" };
    const key = sessionStorage.getItem(KEY);
    if (key) headers.authorization = `Bearer ${key}`;
    const method = body === undefined ? "GET" : "POST";
    const reply = await fetch(path, { method, headers, body: body && JSON.stringify(body), signal });
    if (reply.ok) return reply;
    if (reply.status !== 401) throw await failed(reply);
    const given = await askForKey(Boolean(key));
    if (!given) throw await failed(reply);
    sessionStorage.setItem(KEY, given);
  }
}

export async function ask(path, body, signal) {
  return (await reach(path, body, signal)).json();
}

// The events of a stream, as they come.
export async function* stream(path, body, signal) {
  const reply = await reach(path, { ...body, stream: true }, signal);
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.startsWith("data: ") ? part.slice(6) : "";
      if (!data || data === "[DONE]") continue;
      const event = JSON.parse(data);
      if (event.error) throw new ApiError(500, event.error.message);
      yield event;
    }
  }
}

const known = new Map();

// Which model it is, to the byte; asked once.
export async function identity(name) {
  if (!known.has(name)) known.set(name, await ask(`/inspect/model/${encodeURIComponent(name)}`));
  return known.get(name);
}
