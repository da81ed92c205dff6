// The settings: fields of a popover, kept in this browser.

import { $, element } from "./dom.js";
import { MEDIA } from "./images.js";
import { counted } from "./words.js";

const DEFAULTS = {
  system: "",
  "max-tokens": "256",
  temperature: "0",
  "top-p": "1",
  seed: "",
  schema: "",
  "image-size": "", // "" is the server's own
  "image-fit": "",
};
const SIZES = [128, 256, 384, 512, 768, 1024]; // pixels a side
const STRIDE = 64; // pixels a side of one visual token
const FITS = { pad: "padded", crop: "cropped", stretch: "stretched" };
const KEY = "settings";

/** Fill the fields with what was kept, and keep them from now on. */
export function startSettings() {
  const kept = JSON.parse(localStorage.getItem(KEY) ?? "{}");
  fill({ ...DEFAULTS, ...kept });
  for (const id of Object.keys(DEFAULTS)) $(id).oninput = keep;
  $("settings-reset").onclick = () => {
    fill(DEFAULTS);
    keep();
  };
}

function fill(values) {
  for (const id of Object.keys(DEFAULTS)) $(id).value = values[id];
  checkSchema();
}

function keep() {
  localStorage.setItem(KEY, JSON.stringify(current()));
  checkSchema();
}

function current() {
  return Object.fromEntries(Object.keys(DEFAULTS).map((id) => [id, $(id).value]));
}

function checkSchema() {
  let problem = "";
  try {
    schema();
  } catch (error) {
    problem = error.message;
  }
  $("schema-error").textContent = problem;
  $("schema-error").hidden = !problem;
  $("schema").setAttribute("aria-invalid", String(problem !== ""));
  const isChanged = JSON.stringify(current()) !== JSON.stringify(DEFAULTS);
  $("settings-open").classList.toggle("changed", isChanged);
}

function schema() {
  const text = $("schema").value.trim();
  if (!text) return null;
  try {
    return { type: "json_schema", json_schema: { name: "answer", schema: JSON.parse(text) } };
  } catch (error) {
    throw new Error(`The JSON schema in the settings is not JSON: ${error.message}`);
  }
}

function number(id, name) {
  const input = $(id);
  if (input.validity.badInput || !input.validity.valid) {
    throw new Error(`${name} in the settings: ${input.validationMessage || "not a number"}`);
  }
  return input.value === "" ? null : Number(input.value);
}

/** The system prompt, "" for none. */
export function systemPrompt() {
  return $("system").value.trim();
}

/**
 * The parameters of a request; throws an Error in words for a field that is wrong.
 * @returns {{max_tokens: number, temperature: number, top_p?: number, seed?: number, response_format?: object}}
 */
export function parameters() {
  const [topP, seed, format] = [number("top-p", "Top-p"), number("seed", "Seed"), schema()];
  return {
    max_tokens: number("max-tokens", "Longest reply") ?? Number(DEFAULTS["max-tokens"]),
    temperature: number("temperature", "Temperature") ?? 0,
    ...(topP !== null && topP < 1 && { top_p: topP }),
    ...(seed !== null && { seed }),
    ...(format && { response_format: format }),
    ...imageSettings(),
  };
}

function imageSettings() {
  const [size, fit] = [Number($("image-size").value), $("image-fit").value];
  if (!size && !fit) return {};
  return { mm_processor_kwargs: { ...(size && { image_size: size }), ...(fit && { image_fit: fit }) } };
}

/** Show the limits of a model. @param {import("./api.js").Model} model */
export function showLimits({ image, limits }) {
  $("files").accept = ["image/*", ...(limits.accepts ?? []).map((kind) => MEDIA[kind].types)].join(",");
  $("max-tokens").max = limits.max_output_tokens;
  if (Number($("max-tokens").value) > limits.max_output_tokens) $("max-tokens").value = limits.max_output_tokens;
  if (image) showImageChoices(image);
}

function showImageChoices({ width, height, fit, tokens }) {
  const sizes = SIZES.filter((side) => side * side < width * height);
  const named = sizes.map((side) => [String(side), `${side} x ${side} px, ${counted((side / STRIDE) ** 2, "token")}`]);
  choices("image-size", `${width} x ${height} px, ${counted(tokens, "token")}`, named);
  const others = Object.entries(FITS).filter(([name]) => name !== fit);
  choices("image-fit", FITS[fit], others);
}

// The first choice, "", is the server's own. What was chosen before stays, if it can.
function choices(id, own, others) {
  const kept = JSON.parse(localStorage.getItem(KEY) ?? "{}")[id] ?? "";
  $(id).replaceChildren(...[["", own], ...others].map(([value, text]) => element("option", { value }, text)));
  $(id).value = others.some(([value]) => value === kept) ? kept : "";
}
