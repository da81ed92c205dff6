// The models of the server: which one is asked, and what it can do.

import { listModels } from "./api.js";
import { $, element } from "./dom.js";
import { counted } from "./words.js";

/** @typedef {import("./api.js").Model} Model */

const KEY = "model";
const RETRY_MS = 1000;

/** What the server's description, sizes and limits say about a model, in one line. @param {Model} model */
function about(model) {
  if (model.description) return model.description;
  const base = model.parent ? `adapter of ${model.parent} · ` : "";
  if (!model.image) return `${base}being opened…`;
  const { width, height, tokens } = model.image;
  const size = `images at ${width} x ${height} px, ${counted(tokens, "token")} each`;
  return `${base}${size} · ${counted(model.max_model_len, "token")} of conversation`;
}

export class Models {
  /** @param {(model: Model) => void} onChoice called when the model or what is known of it changes */
  constructor(onChoice) {
    this.onChoice = onChoice;
    /** @type {Model[]} */
    this.all = [];
    /** @type {?Model} */
    this.chosen = null;
    $("model-choice").onchange = () => {
      localStorage.setItem(KEY, $("model-choice").value);
      this.show();
    };
  }

  /** Ask the server for its models, again and again until they are open. Throws ApiError. */
  async connect() {
    try {
      this.all = await listModels();
    } catch (error) {
      $("model").textContent = "not connected";
      throw error;
    }
    const options = this.all.map(({ id, parent }) => element("option", { value: id }, parent ? `${id} (adapter)` : id));
    $("model-choice").replaceChildren(...options);
    const kept = localStorage.getItem(KEY);
    $("model-choice").value = this.all.some(({ id }) => id === kept) ? kept : this.all[0].id;
    this.show();
    if (!this.chosen.image) setTimeout(() => this.connect().catch(() => {}), RETRY_MS);
  }

  show() {
    this.chosen = this.all.find(({ id }) => id === $("model-choice").value);
    $("model-choice").hidden = this.all.length < 2;
    $("model").hidden = this.all.length > 1;
    $("model").textContent = this.chosen.id;
    $("about").textContent = about(this.chosen);
    document.title = `fastvlm · ${this.chosen.id}`;
    this.onChoice(this.chosen);
  }
}
