// The page: a conversation about images. Joins the parts and the document's events.

import { ApiError, useKey } from "./api.js";
import { Attachments } from "./attachments.js";
import { Chat } from "./chat.js";
import { Conversation, toMarkdown, toMessages } from "./conversation.js";
import { $, download, element } from "./dom.js";
import { frame } from "./images.js";
import { Live } from "./live.js";
import { Models } from "./models.js";
import { placePopover } from "./popovers.js";
import { EXAMPLES, LIVE_QUESTION, PRESETS } from "./questions.js";
import { parameters, showLimits, startSettings, systemPrompt } from "./settings.js";
import { load, save } from "./store.js";
import { LogView } from "./turns.js";
import { closeVideo, openVideo } from "./video.js";

const WARM_UP_MS = 400; // the first frames of many cameras are dark
const TYPING_MS = 300; // pause after which a draft is stored

// ---------------------------------------------------------------- errors, notes

function showError(error) {
  if (error.name === "AbortError") return; // stopped on purpose
  $("error").textContent = error.message;
  $("error").hidden = false;
  if (error instanceof ApiError && error.status === 401) {
    $("key-row").hidden = false;
    $("key").focus();
  }
}

// The server names a refused image by its place in the request, whose last message is the draft.
function showChatError(error) {
  const [, message, part] = /messages\[(\d+)\]\.content\[(\d+)\]\.image_url/.exec(error.param ?? "") ?? [];
  const isOfDraft = Number(message) === conversation.turns.length + (systemPrompt() ? 1 : 0);
  if (isOfDraft) attachments.refuse(Number(part), error.message);
  showError(error);
}

function clearError() {
  $("error").hidden = true;
  $("notice").hidden = !conversation.undo;
}

function showNote(text, canUndo) {
  $("notice-text").textContent = text;
  $("undo").hidden = !canUndo;
  $("notice").hidden = !text;
}

function toEnd() {
  const main = document.querySelector("main");
  main.scrollTop = main.scrollHeight;
}

function focusQuestion() {
  if (!matchMedia("(pointer: coarse)").matches) $("question").focus(); // a touch keyboard would cover the page
}

// ---------------------------------------------------------------- parts

const conversation = new Conversation(() => {
  const { turns, undo, isEmpty } = conversation;
  log.show(turns);
  $("welcome").hidden = !isEmpty;
  $("export").disabled = isEmpty;
  showNote(undo?.reason ?? "", undo !== null);
  toEnd();
  keep("conversation", { turns, undo });
});

const attachments = new Attachments($("images"), {
  limits: () => models.chosen?.limits,
  numOthers: () => conversation.numImages,
  onChange: storeDraft,
});

const models = new Models((model) => showLimits(model));

let pending = null; // once per frame: layout for every token of a long reply would block clicks on Stop

const chat = new Chat(conversation, {
  draft: () => ({ text: $("question").value, images: attachments.uris }),
  setDraft: ({ text, images }) => {
    $("question").value = text;
    attachments.set(images);
    focusQuestion();
  },
  system: systemPrompt,
  parameters,
  model: chosenModel,
  onText: (turn) => {
    pending ??= requestAnimationFrame(() => {
      pending = null;
      log.update(turn);
      toEnd();
    });
  },
  onRunning: (isRunning) => {
    $("stop").hidden = !isRunning;
    $("send").hidden = isRunning;
    $("log").setAttribute("aria-busy", String(isRunning));
  },
  onError: showChatError,
  onNote: (text) => showNote(text, false),
});

const log = new LogView($("log"), {
  edit: (turn) => chat.edit(turn),
  retry: (turn) => {
    clearError();
    chat.retry(turn);
  },
});

const live = new Live($("live-video"), {
  question: () => $("question").value.trim() || LIVE_QUESTION,
  body: async (content) => {
    const messages = [...toMessages([], systemPrompt()), { role: "user", content }];
    return { ...parameters(), model: (await chosenModel()).id, messages };
  },
  onQuestion: (text) => ($("live-question").textContent = text),
  onAnswer: (text) => ($("live-answer").textContent = text),
  onStats: (text) => ($("live-stats").textContent = text),
  onError: showError,
  onEnd: () => showLive(false),
});

async function chosenModel() {
  if (!models.chosen) await models.connect();
  return models.chosen;
}

let isWarned = false;

async function keep(key, value) {
  if ((await save(key, value)) || isWarned) return;
  isWarned = true;
  showNote("This browser cannot store the conversation: a reload will lose it.", conversation.undo !== null);
}

function storeDraft() {
  keep("draft", { text: $("question").value, images: attachments.uris });
}

function send(text, format) {
  clearError();
  return chat.send(text, format);
}

// ---------------------------------------------------------------- camera and live

function showLive(isOn) {
  $("live").hidden = !isOn;
  document.body.classList.toggle("live", isOn);
}

function startLive(kind) {
  clearError();
  $("live-question").textContent = "";
  showLive(true);
  live.start(kind);
}

async function snap() {
  clearError();
  const video = element("video", { muted: true, playsInline: true });
  try {
    await openVideo(video, "camera");
    await new Promise((resolve) => setTimeout(resolve, WARM_UP_MS));
    attachments.add(frame(video));
  } catch (error) {
    showError(error);
  } finally {
    closeVideo(video);
  }
}

// ---------------------------------------------------------------- events

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
let typing = null;
$("question").oninput = () => {
  clearTimeout(typing);
  typing = setTimeout(storeDraft, TYPING_MS);
};
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || document.querySelector(":popover-open")) return; // it closes the popover alone
  chat.stop();
  live.end();
});
$("stop").onclick = () => chat.stop();
$("new").onclick = () => {
  clearError();
  chat.clear();
};
$("undo").onclick = () => chat.undo();
$("pick").onclick = () => $("files").click();
$("files").onchange = async () => {
  await addFiles([...$("files").files]);
  $("files").value = "";
};
$("camera").onclick = snap;
$("live-camera").onclick = () => startLive("camera");
$("live-screen").onclick = () => startLive("screen");
$("live-end").onclick = () => live.end();
$("live-snap").onclick = () => attachments.add(frame($("live-video")));
$("key-save").onclick = () => {
  useKey($("key").value);
  $("key-row").hidden = true;
  clearError();
  connect();
};
$("export-markdown").onclick = () => {
  download("conversation.md", toMarkdown(conversation.turns, models.chosen?.id ?? "Model"), "text/markdown");
  $("export-menu").hidePopover();
};
$("export-json").onclick = () => {
  const content = { model: models.chosen?.id, ...parameters(), messages: toMessages(conversation.turns, systemPrompt()) };
  download("conversation.json", JSON.stringify(content, null, 2), "application/json");
  $("export-menu").hidePopover();
};
document.addEventListener("paste", (event) => {
  const files = [...(event.clipboardData?.files ?? [])];
  if (!files.length) return;
  event.preventDefault();
  addFiles(files);
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

async function addFiles(files) {
  clearError();
  await attachments.addFiles(files);
  focusQuestion();
}

// ---------------------------------------------------------------- start

function showExamples() {
  for (const [name, text] of EXAMPLES) {
    const image = element("img", { src: `examples/${name}`, alt: "" });
    const button = element("button", { type: "button" }, image, text);
    button.onclick = async () => {
      await addFiles([new File([await (await fetch(image.src)).blob()], name, { type: "image/png" })]);
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
    await models.connect();
  } catch (error) {
    showError(error);
  }
}

async function restore() {
  const [kept, draft] = [await load("conversation"), await load("draft")];
  if (kept) conversation.set(Conversation.readStored(kept.turns), kept.undo ?? null);
  if (draft && !$("question").value) $("question").value = draft.text;
  if (draft) attachments.set(draft.images);
  focusQuestion();
}

startSettings();
showExamples();
showPresets();
placePopover("export", "export-menu", "below");
placePopover("settings-open", "settings", "above");
restore().finally(connect);
