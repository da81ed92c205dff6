// Shows the turns of the conversation, each with its actions.

import { copyText, element, icon, iconButton, say } from "./dom.js";
import { preview } from "./images.js";
import { MarkdownView } from "./markdown.js";

/** @typedef {import("./conversation.js").Turn} Turn */

const COPIED_MS = 1500;

/** One turn. `update` shows its present text. */
class TurnView {
  /** @param {Turn} turn @param {{edit: (turn: Turn) => void, retry: (turn: Turn) => void}} actions */
  constructor(turn, actions) {
    this.turn = turn;
    const isUser = turn.role === "user";
    this.body = element("div", { className: "body" });
    this.stats = element("p", { className: "stats faint", hidden: true });
    this.markdown = isUser || turn.isJson ? null : new MarkdownView(this.body);
    this.retry = iconButton("retry", "Ask again", () => actions.retry(turn));
    const own = isUser ? [iconButton("edit", "Edit the question", () => actions.edit(turn)), this.retry] : [this.retry];
    this.root = element(
      "div",
      { className: `turn ${turn.role}` },
      element("span", { className: "hidden" }, isUser ? "You: " : "Model: "),
      ...images(turn.images ?? []),
      this.body,
      element("div", { className: "foot" }, this.stats, element("div", { className: "actions" }, copyButton(turn), ...own)),
    );
    this.update();
  }

  update() {
    const { text, role, stats } = this.turn;
    if (this.markdown) this.markdown.show(text);
    else if (role === "user") this.body.textContent = text;
    else this.body.replaceChildren(element("pre", { tabIndex: 0 }, element("code", {}, text)));
    this.body.classList.toggle("waiting", role === "assistant" && !stats);
    this.stats.textContent = stats ?? "";
    this.stats.hidden = !stats;
  }
}

function images(uris) {
  if (!uris.length) return [];
  const items = uris.map((uri, i) => element("li", {}, preview(uri, i)));
  return [element("ul", { className: "images" }, ...items)];
}

function copyButton(turn) {
  const button = iconButton("copy", "Copy", async () => {
    try {
      await copyText(turn.text);
    } catch (error) {
      say(error.message);
      return;
    }
    say("Copied.");
    button.replaceChildren(icon("done"));
    setTimeout(() => button.replaceChildren(icon("copy")), COPIED_MS);
  });
  return button;
}

/** All turns. Turns that stay keep their elements, so that screen readers do not read them again. */
export class LogView {
  /** @param {HTMLElement} log @param {object} actions see TurnView */
  constructor(log, actions) {
    this.log = log;
    this.actions = actions;
    /** @type {Map<Turn, TurnView>} */
    this.views = new Map();
  }

  /** @param {Turn[]} turns */
  show(turns) {
    for (const [turn, view] of this.views) {
      if (turns.includes(turn)) continue;
      view.root.remove();
      this.views.delete(turn);
    }
    for (const turn of turns) {
      if (!this.views.has(turn)) this.views.set(turn, new TurnView(turn, this.actions));
      const view = this.views.get(turn);
      if (!view.root.isConnected) this.log.append(view.root);
      view.retry.hidden = turn.role === "user" && turn !== turns.at(-1); // a question whose reply was interrupted
    }
  }

  /** Show the present text of a turn. @param {Turn} turn */
  update(turn) {
    this.views.get(turn)?.update();
  }
}
