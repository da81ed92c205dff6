// The page: a conversation about images. Its state is the list of messages for /v1/chat/completions.

import { ApiError, ask, firstModel, useKey } from "./api.js";
import { Live } from "./live.js";
import { closeVideo, frame, fromFile, openVideo } from "./images.js";

const EXAMPLES = [
  ["letter.png", "What letter is this?"],
  ["red_star.png", "What shape is this?"],
  ["five_shapes.png", "How many shapes are there?"],
  ["word.png", "What does it say?"],
  ["objects.png", "What do you see?"],
  ["shapes.png", "What shape is orange?"],
];
const PRESETS = [
  ["Describe", "Describe the image."],
  ["Read the text", "What does the text say?"],
  ["Count", "How many objects are there?"],
  ["JSON", "Describe the image as JSON.", imageFormat()],
];
const LIVE_QUESTION = "What is this?";
const $ = (id) => document.getElementById(id);

let model = null;
let messages = [];
let images = []; // data URIs of the next question
let running = null; // AbortController of the reply in progress

function imageFormat() {
  const text = { type: "string", maxLength: 40 };
  const schema = {
    type: "object",
    properties: { shape: text, color: text, count: { type: "integer", minimum: 0, maximum: 99 } },
    required: ["shape", "color", "count"],
    additionalProperties: false,
  };
  return { type: "json_schema", json_schema: { name: "image", schema } };
}

// ---------------------------------------------------------------- small things

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function say(text) {
  $("status").textContent = text; // for screen readers
}

function showError(error) {
  $("error").textContent = error.message;
  $("error").hidden = false;
  if (error instanceof ApiError && error.status === 401) {
    $("key-row").hidden = false;
    $("key").focus();
  }
}

function clearError() {
  $("error").hidden = true;
}

function toEnd() {
  const main = document.querySelector("main");
  main.scrollTop = main.scrollHeight;
}

// ---------------------------------------------------------------- images of the next question

function addImage(uri) {
  images.push(uri);
  showImages();
  say(`Image ${images.length} added.`);
  $("question").focus();
}

function showImages() {
  $("images").replaceChildren(
    ...images.map((uri, index) => {
      const remove = element("button", { type: "button", textContent: "×", title: "Remove" });
      remove.setAttribute("aria-label", `Remove image ${index + 1}`);
      remove.onclick = () => {
        images.splice(index, 1);
        showImages();
        $("question").focus();
      };
      return element("li", {}, element("img", { src: uri, alt: `Image ${index + 1}` }), remove);
    }),
  );
}

async function addFiles(files) {
  clearError();
  for (const file of files) {
    try {
      addImage(await fromFile(file));
    } catch (error) {
      showError(error);
    }
  }
}

// ---------------------------------------------------------------- requests

function userTurn(text) {
  const parts = images.map((url) => ({ type: "image_url", image_url: { url } }));
  return { role: "user", content: [...parts, { type: "text", text }] };
}

function showTurn(role, text, uris = []) {
  const turn = element("div", { className: `turn ${role}` });
  turn.append(element("span", { className: "hidden", textContent: role === "user" ? "You: " : "Model: " }));
  if (uris.length) {
    turn.append(element("ul", {}, ...uris.map((src, i) => element("li", {}, element("img", { src, alt: `Image ${i + 1}` })))));
  }
  turn.append(element("p", { textContent: text }));
  $("log").append(turn);
  $("welcome").hidden = true;
  toEnd();
  return turn;
}

function statsLine(start, first, last, reply) {
  if (first === null) return "no text";
  const parts = [`first word after ${Math.round(first - start)} ms`];
  const seconds = (last - first) / 1000;
  if (reply?.tokens > 2 && seconds > 0) parts.push(`${((reply.tokens - 1) / seconds).toFixed(0)} tokens/s`);
  if (reply?.finishReason === "length") parts.push("cut at the longest length");
  if (!reply) parts.push("stopped");
  return parts.join(" · ");
}

function setRunning(controller) {
  running = controller;
  $("stop").hidden = controller === null;
  $("send").disabled = controller !== null;
  $("log").setAttribute("aria-busy", String(controller !== null));
}

async function send(text, format = null) {
  if (running || !text.trim()) return;
  clearError();
  const draft = { text, images };
  const talk = messages; // "New" may replace it meanwhile
  const turn = userTurn(text);
  const shown = [showTurn("user", text, images), showTurn("assistant", "")];
  images = [];
  showImages();
  $("question").value = "";
  setRunning(new AbortController());
  const [answer, isKept] = await answerInto(shown[1], [...talk, turn], format);
  setRunning(null);
  if (isKept) {
    talk.push(turn, { role: "assistant", content: answer });
  } else if (talk === messages) {
    for (const one of shown) one.remove();
    images = draft.images;
    showImages();
    $("question").value = draft.text; // keep what was typed
    $("welcome").hidden = messages.length > 0;
  }
  if ($("key-row").hidden) $("question").focus();
}

// [text, whether the turn is kept]: a stopped reply is kept, one that failed before its first word is not.
async function answerInto(turn, asked, format) {
  const paragraph = turn.querySelector("p");
  paragraph.classList.add("waiting");
  const start = performance.now();
  let [text, first, last, reply] = ["", null, null, null];
  // Once per frame: layout for every token of a long reply would block clicks on Stop.
  let frame = null;
  const show = () => {
    frame = null;
    paragraph.textContent = text;
    toEnd();
  };
  const onText = (piece) => {
    last = performance.now();
    first ??= last;
    text += piece;
    frame ??= requestAnimationFrame(show);
  };
  try {
    reply = await ask(body(asked, format), onText, running.signal);
  } catch (error) {
    if (error.name !== "AbortError") showError(error);
    if (!text) return ["", false];
  } finally {
    cancelAnimationFrame(frame);
    show();
    paragraph.classList.remove("waiting");
  }
  turn.append(element("p", { className: "stats faint", textContent: statsLine(start, first, last, reply) }));
  toEnd();
  return [text, true];
}

function body(asked, format) {
  return {
    model,
    messages: asked,
    max_tokens: Number($("max-tokens").value) || 256,
    temperature: Number($("temperature").value) || 0,
    ...(format && { response_format: format }),
  };
}

// ---------------------------------------------------------------- camera and live

const live = new Live($("live-video"), {
  settings: () => ({
    model,
    question: $("question").value.trim() || LIVE_QUESTION,
    temperature: Number($("temperature").value) || 0,
  }),
  onAnswer: (text) => ($("live-answer").textContent = text),
  onStats: (text) => ($("live-stats").textContent = text),
  onError: showError,
  onEnd: () => ($("live").hidden = true),
});

function startLive(kind) {
  clearError();
  $("live-answer").textContent = $("live-stats").textContent = "";
  $("live").hidden = false;
  live.start(kind);
}

async function snap() {
  clearError();
  const video = element("video", { muted: true, playsInline: true });
  try {
    await openVideo(video, "camera");
    await new Promise((resolve) => setTimeout(resolve, 400)); // first frames of many cameras are dark
    addImage(frame(video));
  } catch (error) {
    showError(error);
  } finally {
    closeVideo(video);
  }
}

// ---------------------------------------------------------------- event handlers

$("ask").onsubmit = (event) => {
  event.preventDefault();
  send($("question").value);
};
$("question").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send($("question").value);
  }
};
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  running?.abort();
  live.end();
});
$("stop").onclick = () => running?.abort();
$("pick").onclick = () => $("files").click();
$("files").onchange = async () => {
  await addFiles([...$("files").files]);
  $("files").value = "";
};
$("camera").onclick = snap;
$("live-camera").onclick = () => startLive("camera");
$("live-screen").onclick = () => startLive("screen");
$("live-end").onclick = () => live.end();
$("live-snap").onclick = () => addImage(frame($("live-video")));
$("new").onclick = () => {
  running?.abort();
  messages = [];
  images = [];
  showImages();
  $("log").replaceChildren();
  $("welcome").hidden = false;
  clearError();
  $("question").focus();
};
$("key-save").onclick = () => {
  useKey($("key").value);
  $("key-row").hidden = true;
  clearError();
  connect();
};
document.addEventListener("paste", (event) => {
  const files = [...(event.clipboardData?.files ?? [])].filter((file) => file.type.startsWith("image/"));
  if (files.length) {
    event.preventDefault();
    addFiles(files);
  }
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
document.addEventListener("dragleave", (event) => {
  if (event.relatedTarget === null) document.body.classList.remove("dropping");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  addFiles([...event.dataTransfer.files]);
});

// ---------------------------------------------------------------- start

function showExamples() {
  for (const [name, text] of EXAMPLES) {
    const image = element("img", { src: `examples/${name}`, alt: "" });
    const button = element("button", { type: "button" }, image, text);
    button.onclick = async () => {
      await addFiles([await (await fetch(image.src)).blob()]);
      send(text);
    };
    $("examples").append(element("li", {}, button));
  }
}

function showPresets() {
  for (const [name, text, format] of PRESETS) {
    const button = element("button", { type: "button", textContent: name, title: text });
    button.onclick = () => send(text, format);
    $("presets").append(button);
  }
}

async function connect() {
  try {
    model = await firstModel();
    $("model").textContent = model;
    document.title = `fastvlm · ${model}`;
  } catch (error) {
    $("model").textContent = "not connected";
    showError(error);
  }
}

showExamples();
showPresets();
connect();
