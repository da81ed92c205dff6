// Client of the server's OpenAI API (/v1).

import { inWords } from "./words.js";

/**
 * @typedef {{max_images: number, max_image_bytes: number, max_image_pixels: number, max_body_bytes: number,
 *   max_output_tokens: number, accepts: string[]}} Limits
 * @typedef {{id: string, parent: ?string, description: ?string, max_model_len: ?number, limits: Limits,
 *   image: ?{height: number, width: number, fit: string, tokens: number}}} Model
 * @typedef {{finishReason: ?string, tokens: number}} Reply
 */

export class ApiError extends Error {
  /** @param {{status: number, code?: string, message: string, param?: string, retryAfter?: string}} failure */
  constructor(failure) {
    super(inWords(failure));
    Object.assign(this, { status: failure.status, code: failure.code, param: failure.param, failure });
  }

  /** The same error in words that name the model's limits. @param {?Model} model */
  about(model) {
    return new ApiError({ ...this.failure, model });
  }
}

let key = sessionStorage.getItem("key") ?? "";

/** @param {string} text */
export function useKey(text) {
  key = text.trim();
  sessionStorage.setItem("key", key); // forgotten when the tab closes
}

async function request(path, options = {}) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  let response;
  try {
    response = await fetch(path, { ...options, headers: { ...headers, ...options.headers } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError({ status: 0, code: "unreachable", message: error.message });
  }
  if (!response.ok) throw await failure(response);
  return response;
}

async function failure(response) {
  const content = await response.json().catch(() => ({}));
  const message = content.error?.message ?? `The server answered with status ${response.status}.`;
  const retryAfter = response.headers.get("Retry-After");
  return new ApiError({ message, ...content.error, status: response.status, retryAfter });
}

/** @returns {Promise<Model[]>} */
export async function listModels() {
  return (await (await request("/v1/models")).json()).data;
}

/**
 * Ask, and call `onText` with each piece of the reply.
 * @param {object} body of /v1/chat/completions
 * @param {(piece: string) => void} onText
 * @param {AbortSignal} signal
 * @param {number} [maxBytes] larger bodies are refused here, before they are sent
 * @returns {Promise<Reply>}
 */
export async function ask(body, onText, signal, maxBytes = Infinity) {
  const sent = JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } });
  if (sent.length > maxBytes) throw new ApiError({ status: 413, code: "body_too_large", message: "" });
  const response = await request("/v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: sent,
    signal,
  });
  const reply = { finishReason: null, tokens: 0 };
  for await (const event of events(response.body)) {
    if (event.error) throw new ApiError({ ...event.error, status: 200 });
    const choice = event.choices[0];
    if (choice?.delta.content) onText(choice.delta.content);
    if (choice?.finish_reason) reply.finishReason = choice.finish_reason;
    if (event.usage) reply.tokens = event.usage.completion_tokens;
  }
  if (reply.finishReason === null) throw new ApiError({ status: 0, code: "cut", message: "" });
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
