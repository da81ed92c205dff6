// Client of the server's OpenAI API (/v1).

export class ApiError extends Error {
  constructor(status, message, code) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

let key = sessionStorage.getItem("key") ?? "";

export function useKey(text) {
  key = text.trim();
  sessionStorage.setItem("key", key); // forgotten when the tab closes
}

function headers() {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function request(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: { ...headers(), ...options.headers } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The server does not answer. Is it still running?", "unreachable");
  }
  if (!response.ok) throw await failure(response);
  return response;
}

async function failure(response) {
  const content = await response.json().catch(() => ({}));
  const message = content.error?.message ?? `The server answered with status ${response.status}.`;
  return new ApiError(response.status, kindly(response, message), content.error?.code);
}

function kindly(response, message) {
  const seconds = response.headers.get("Retry-After") ?? "a few";
  if (response.status === 429) return `The server is busy. Try again in ${seconds} s.`;
  if (response.status === 401) return "This server needs an API key.";
  return message;
}

export async function firstModel() {
  const list = await (await request("/v1/models")).json();
  return list.data[0].id;
}

// Calls onText with each piece of the reply; returns {finishReason, tokens}.
export async function ask(body, onText, signal) {
  const response = await request("/v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  const reply = { finishReason: null, tokens: 0 };
  for await (const event of events(response.body)) {
    if (event.error) throw new ApiError(200, event.error.message, event.error.code);
    const choice = event.choices[0];
    if (choice?.delta.content) onText(choice.delta.content);
    if (choice?.finish_reason) reply.finishReason = choice.finish_reason;
    if (event.usage) reply.tokens = event.usage.completion_tokens;
  }
  if (reply.finishReason === null) throw new ApiError(0, "The reply was cut: the connection ended.", "cut");
  return reply;
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}
