// The images of the next question. A rejected one stays, with its reason, until it is removed or others are added.

import { element, iconButton, say } from "./dom.js";
import { fromFile, preview } from "./images.js";

/** @typedef {{uri?: string, name: string, reason?: string}} Item `reason`: why it is not sent */

export class Attachments {
  /**
   * @param {HTMLElement} list
   * @param {{limits: () => ?import("./api.js").Limits, numOthers: () => number, onChange: () => void}} hooks
   *   numOthers: images of the conversation, which are sent with each question
   */
  constructor(list, hooks) {
    this.list = list;
    this.hooks = hooks;
    /** @type {Item[]} */
    this.items = [];
  }

  /** Data URIs of the images that are sent. */
  get uris() {
    return this.items.filter((item) => !item.reason).map((item) => item.uri);
  }

  /** @param {string[]} uris */
  set(uris) {
    this.items = uris.map((uri, i) => ({ uri, name: `Image ${i + 1}` }));
    this.show();
  }

  /** @param {Iterable<File>} files */
  async addFiles(files) {
    this.items = this.items.filter((item) => !item.reason);
    for (const file of files) {
      try {
        this.add(await fromFile(file, this.hooks.limits()), file.name);
      } catch (error) {
        this.reject({ name: file.name || "That file", reason: error.message });
      }
    }
    this.show();
  }

  /** @param {string} uri @param {string} [name] */
  add(uri, name = "The image") {
    const most = this.hooks.limits()?.max_images ?? Infinity;
    if (this.hooks.numOthers() + this.uris.length >= most) {
      const reason = `a conversation has at most ${most} images on this server. Start a new one, or remove an image.`;
      this.reject({ uri, name, reason });
      return;
    }
    this.items.push({ uri, name });
    say(`Image ${this.uris.length} added.`);
    this.show();
  }

  /** Mark the image that the server has refused. @param {number} index among `uris` */
  refuse(index, reason) {
    const item = this.items.filter((one) => !one.reason)[index];
    if (item) item.reason = reason;
    this.show();
  }

  reject(item) {
    this.items.push(item);
    say(`${item.name}: ${item.reason}`);
    this.show();
  }

  show() {
    this.list.replaceChildren(...this.items.map((item, i) => this.chip(item, i)));
    this.hooks.onChange();
  }

  chip(item, index) {
    const remove = iconButton("remove", `Remove image ${index + 1}`, () => {
      this.items.splice(index, 1);
      this.show();
      (this.list.querySelector("button") ?? document.querySelector("#question")).focus();
    });
    const image = item.uri ? [preview(item.uri, index)] : [];
    if (!item.reason) return element("li", {}, ...image, remove);
    const text = element("span", {}, element("strong", {}, item.name), `: ${item.reason}`);
    return element("li", { className: "rejected" }, ...image, text, remove);
  }
}
