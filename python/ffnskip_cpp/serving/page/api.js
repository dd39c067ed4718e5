// What the page asks of its server, and how answers come: events of a stream, errors in OpenAI's form.

const KEY = "ffnskip-api-key";

/** `status` 0: there was no answer at all. `retryAfter`: seconds, or null. */
export class ApiError extends Error {
  constructor(message, status, retryAfter = null) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

/** The key lives as long as the tab. */
export function keepKey(key) {
  sessionStorage.setItem(KEY, key);
}

/** What the server skips, and what can be asked of it. */
export async function serverSkips() {
  return (await ask("v1/skip", {})).json();
}

/** Yields the chunks of a chat completion. Ends early, without an error, where `signal` aborts. */
export async function* chat(body, signal) {
  try {
    const response = await ask("v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ ...body, stream: true }),
      signal,
    });
    yield* chunks(response.body);
  } catch (error) {
    if (!signal.aborted) throw error;
  }
}

async function ask(path, options) {
  const headers = { ...options.headers };
  const key = sessionStorage.getItem(KEY);
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server does not answer. Is it still running?", 0);
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  let message = `The server answered ${response.status} ${response.statusText}`.trim();
  try {
    message = (await response.json()).error.message;
  } catch {
    // Not in OpenAI's form, so not from the server itself: a proxy between. Its status says enough.
  }
  const seconds = Number.parseInt(response.headers.get("Retry-After"), 10);
  return new ApiError(message, response.status, Number.isNaN(seconds) ? null : seconds);
}

async function* chunks(stream) {
  const events = new Events();
  const decoder = new TextDecoder();
  const reader = stream.getReader();
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError("The connection to the server was lost.", 0);
    }
    if (part.done) throw new ApiError("The server ended the answer before its end.", 0);
    for (const data of events.push(decoder.decode(part.value, { stream: true }))) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiError(chunk.error.message, 200);
      yield chunk;
    }
  }
}

/** Server-sent events out of text that comes in any pieces. */
export class Events {
  #rest = "";

  /** The data of the events that are whole with this piece. */
  push(text) {
    const events = (this.#rest + text.replace(/\r/g, "")).split("\n\n");
    this.#rest = events.pop();
    return events.map(dataOf).filter((data) => data !== "");
  }
}

function dataOf(event) {
  const lines = event.split("\n").filter((line) => line.startsWith("data:"));
  return lines.map((line) => line.slice(5).trim()).join("\n");
}
