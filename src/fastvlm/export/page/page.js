// Answers about an image in the browser, by transformers.js over the files beside this page.

const CDN = "https://cdn.jsdelivr.net/npm/@huggingface/transformers@4.3.2/dist/transformers.min.js";
const FOLDER = "./"; // of the files beside this page; transformers.js takes absolute addresses for remote ones
const MAX_NEW_TOKENS = 256;
const LARGEST_FILE_BYTES = 100e6;

const $ = (id) => document.getElementById(id);
const state = { library: null, processor: null, model: null, side: 0, image: null, device: "wasm", stopping: null };

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function showError(text) {
  $("error").textContent = text;
  $("error").hidden = !text;
}

async function json(name) {
  const response = await fetch(FOLDER + name);
  if (!response.ok) throw new Error(`${name} is missing beside this page (${response.status}). Export the model again.`);
  return response.json();
}

// ---------------------------------------------------------------- loading

async function library() {
  const settings = await json("page.json");
  if (!settings.vendor) return import(CDN);
  const found = await import(new URL(`${settings.vendor}transformers.min.js`, location.href).href);
  const path = new URL(`${settings.vendor}ort-wasm-simd-threaded.asyncify`, location.href).href;
  found.env.backends.onnx.wasm.wasmPaths = { mjs: `${path}.mjs`, wasm: `${path}.wasm` };
  return found;
}

async function hasWebGpu() {
  return Boolean(await navigator.gpu?.requestAdapter().catch(() => null));
}

async function loadModel() {
  $("send").disabled = true;
  $("progress").hidden = false;
  $("model").textContent = "loading…";
  const { AutoModelForImageTextToText } = state.library;
  await state.model?.dispose();
  state.model = null;
  state.model = await AutoModelForImageTextToText.from_pretrained(FOLDER, {
    device: state.device,
    progress_callback: (event) => {
      if (event.status === "progress_total") $("progress").value = event.progress / 100;
    },
  });
  $("progress").hidden = true;
  $("model").textContent = "ready";
  updateSend();
}

async function start() {
  state.library = await library();
  const { AutoProcessor, env } = state.library;
  Object.assign(env, { allowRemoteModels: false, allowLocalModels: true });
  state.side = (await json("preprocessor_config.json")).image_size;
  state.processor = await AutoProcessor.from_pretrained(FOLDER);
  if (await hasWebGpu()) {
    $("device").append(element("option", { value: "webgpu", textContent: "GPU (WebGPU)" }));
    state.device = $("device").value = "webgpu";
  }
  await loadModel();
}

// ---------------------------------------------------------------- the image

/** The image scaled into a black square of the model's side, centered: padded, then resized, as in training. */
function prepared(bitmap, side) {
  const canvas = element("canvas", { width: side, height: side });
  const context = canvas.getContext("2d");
  const scale = side / Math.max(bitmap.width, bitmap.height);
  const [width, height] = [bitmap.width * scale, bitmap.height * scale];
  context.fillStyle = "black";
  context.fillRect(0, 0, side, side);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, (side - width) / 2, (side - height) / 2, width, height);
  const { data } = context.getImageData(0, 0, side, side);
  return new state.library.RawImage(data, side, side, 4).rgb();
}

async function addFile(file) {
  showError("");
  if (!file.type.startsWith("image/")) return showError(`${file.name} is not an image. Choose a PNG, JPEG or WebP file.`);
  if (file.size > LARGEST_FILE_BYTES) return showError(`${file.name} is larger than 100 MB. Choose a smaller image.`);
  try {
    state.image = { bitmap: await createImageBitmap(file), url: URL.createObjectURL(file) };
  } catch {
    return showError(`${file.name} cannot be shown by this browser: it is damaged, or of a kind that it does not know.`);
  }
  $("images").replaceChildren(element("li", {}, element("img", { src: state.image.url, alt: "Image of the question" })));
  updateSend();
  $("question").focus();
}

function updateSend() {
  $("send").disabled = !(state.model && state.image);
}

// ---------------------------------------------------------------- the answer

function addTurn(role, ...children) {
  const body = element("div", { className: "body" });
  const turn = element("div", { className: `turn ${role}` }, ...children, body);
  $("log").append(turn);
  $("welcome").hidden = true;
  document.querySelector("main").scrollTop = document.querySelector("main").scrollHeight;
  return { turn, body };
}

async function generate(question, onText) {
  const { InterruptableStoppingCriteria, TextStreamer } = state.library;
  const content = [{ type: "image" }, { type: "text", text: question }];
  const prompt = state.processor.apply_chat_template([{ role: "user", content }], { add_generation_prompt: true });
  const image = prepared(state.image.bitmap, state.side);
  const inputs = await state.processor(image, prompt, { add_special_tokens: false });
  const streamer = new TextStreamer(state.processor.tokenizer, {
    skip_prompt: true,
    skip_special_tokens: true,
    callback_function: onText,
  });
  state.stopping = new InterruptableStoppingCriteria();
  const output = await state.model.generate({
    ...inputs,
    max_new_tokens: MAX_NEW_TOKENS,
    streamer,
    stopping_criteria: state.stopping,
  });
  return output.dims.at(-1) - inputs.input_ids.dims.at(-1);
}

async function ask(question) {
  showError("");
  const shown = element("div", { className: "images" }, element("img", { src: state.image.url, alt: "" }));
  addTurn("user", shown).body.textContent = question;
  const { turn, body } = addTurn("assistant");
  body.classList.add("waiting");
  setRunning(true);
  const startMs = performance.now();
  try {
    await new Promise((resolve) => setTimeout(resolve, 20)); // let the page show the question first
    const count = await generate(question, (text) => (body.textContent = (body.textContent + text).trimStart()));
    const seconds = ((performance.now() - startMs) / 1000).toFixed(1);
    turn.append(element("p", { className: "stats faint", textContent: `${count} tokens, ${seconds} s, ${state.device}` }));
  } catch (error) {
    showError(`The answer failed: ${error.message ?? error}`);
  } finally {
    body.classList.remove("waiting");
    setRunning(false);
  }
}

function setRunning(isRunning) {
  $("stop").hidden = !isRunning;
  $("send").hidden = isRunning;
  $("device").disabled = isRunning;
}

// ---------------------------------------------------------------- events

$("ask").onsubmit = (event) => {
  event.preventDefault();
  const question = $("question").value.trim();
  if (!question || $("send").disabled || $("send").hidden) return;
  $("question").value = "";
  ask(question);
};
$("question").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("ask").requestSubmit();
  }
};
$("pick").onclick = () => $("files").click();
$("files").onchange = () => {
  const [file] = $("files").files;
  if (file) addFile(file);
  $("files").value = "";
};
$("stop").onclick = () => state.stopping?.interrupt();
$("device").onchange = () => {
  state.device = $("device").value;
  loadModel().catch((error) => showError(`The model cannot be loaded: ${error.message ?? error}`));
};
document.addEventListener("paste", (event) => {
  const [file] = event.clipboardData?.files ?? [];
  if (file) addFile(file);
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
  const [file] = event.dataTransfer.files;
  if (file) addFile(file);
});

start().catch((error) => showError(`The model cannot be loaded: ${error.message ?? error}`));
