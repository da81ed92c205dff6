// Errors in words for people: what happened, what to do.

/** @param {number} count @param {string} noun */
export function counted(count, noun) {
  return `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
}

/** @param {number} bytes */
export function megabytes(bytes) {
  return `${(bytes / 2 ** 20).toLocaleString("en", { maximumFractionDigits: 1 })} MB`;
}

const PATH = /(?:messages\[\d+\]\.content(?:\[\d+\])?(?:\.\w+)*|response_format(?:\.\w+)*|top_p|max_tokens|\b(?:seed|temperature)\b)/g;
const NAMES = [
  [/^messages.*image_url/, "The image"],
  [/^messages/, "The text"],
  [/^response_format/, "The JSON schema"],
  [/^top_p/, "Top-p"],
  [/^max_tokens/, "Longest reply"],
  [/^seed/, "Seed"],
  [/^temperature/, "Temperature"],
];

const BY_CODE = {
  unreachable: () => "The server does not answer. Is it still running?",
  cut: () => "The reply was cut: the connection ended. Ask again.",
  server_busy: ({ retryAfter }) => `The server is busy. Try again in ${retryAfter ?? "a few"} s.`,
  server_not_ready: () => "The model is still being opened. Try again in a moment.",
  invalid_api_key: () => "This server needs an API key.",
  context_length_exceeded: ({ model }) =>
    `The conversation is too long for this model${holds(model)}. Start a new one, shorten the question, or send fewer images.`,
  body_too_large: ({ model }) =>
    `The conversation's images are too large together${takes(model)}. Start a new conversation, or send fewer images.`,
  body_too_complex: () => "The conversation has too many parts. Start a new one.",
  model_not_found: () => "The server no longer has this model. Reload the page to see those that it has.",
  request_timeout: () => "The reply took longer than the server allows. Ask for a shorter one.",
  timeout: () => "The server waited too long for the question. Is the connection slow? Try again.",
  internal_error: () => "The server failed to answer this question; its log has the reason. Try again, or ask its operator.",
  invalid_image: ({ message }) => `An image cannot be read: ${message}`,
};

function holds(model) {
  return model?.max_model_len ? ` (it holds ${counted(model.max_model_len, "token")}, reply included)` : "";
}

function takes(model) {
  return model ? ` (the server takes ${megabytes(model.limits.max_body_bytes)})` : "";
}

/**
 * @param {{code?: string, status: number, message: string, retryAfter?: string, model?: object}} failure
 * @returns {string}
 */
export function inWords(failure) {
  const make = BY_CODE[failure.code] ?? BY_CODE[failure.status === 429 ? "server_busy" : ""];
  return make ? make(failure) : withoutPaths(failure.message);
}

// "messages[0].content[1].text has ..." -> "The text has ..."
function withoutPaths(message) {
  return message.replace(PATH, (path) => NAMES.find(([pattern]) => pattern.test(path))[1]);
}
