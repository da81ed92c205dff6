// Asks the model: sends, stops, repeats and edits questions of the conversation.

import { ApiError, ask } from "./api.js";
import { toMessages } from "./conversation.js";

/**
 * @typedef {import("./conversation.js").Turn} Turn
 * @typedef {import("./conversation.js").Draft} Draft
 * @typedef {{draft: () => Draft, setDraft: (draft: Draft) => void, system: () => string, parameters: () => object,
 *   model: () => Promise<import("./api.js").Model>, onText: (turn: Turn) => void, onRunning: (isRunning: boolean) => void,
 *   onError: (error: Error) => void, onNote: (text: string) => void}} Hooks
 */

const SAME = "At temperature 0 the answer is always the same. For another one, raise the temperature in the settings.";

export class Chat {
  /** @param {import("./conversation.js").Conversation} conversation @param {Hooks} hooks */
  constructor(conversation, hooks) {
    this.conversation = conversation;
    this.hooks = hooks;
    /** @type {?{controller: AbortController, done: Promise<void>}} the reply in progress */
    this.running = null;
  }

  stop() {
    this.running?.controller.abort();
    return this.running?.done;
  }

  /** Ask the draft's images with `text`. @param {string} text @param {?object} format the response_format */
  async send(text, format = null) {
    if (this.running || !text.trim()) return;
    const draft = { ...this.hooks.draft(), text };
    const before = this.conversation.turns;
    const undo = this.conversation.undo;
    const turn = { role: "user", text, images: draft.images, ...(format && { format }) };
    this.hooks.setDraft({ text: "", images: [] });
    const error = await this.reply([...before, turn], null);
    if (!error) return;
    this.conversation.set(before, undo);
    this.hooks.setDraft(draft); // keep what was typed
    this.hooks.onError(error);
  }

  /** Ask the question of a turn again, and forget what followed. @param {Turn} turn a question, or its reply */
  async retry(turn) {
    if (this.running) return;
    const { turns, undo } = this.conversation;
    const index = turns.indexOf(turn);
    const question = turn.role === "user" ? index : index - 1;
    const snapshot = { turns, draft: null, reason: "The answer was replaced." };
    const error = await this.reply(turns.slice(0, question + 1), turn.role === "user" ? undo : snapshot);
    if (error) {
      this.conversation.set(turns, undo);
      this.hooks.onError(error);
    } else if (this.conversation.turns.at(-1)?.text === turn.text && this.hooks.parameters().temperature === 0) {
      this.hooks.onNote(SAME);
    }
  }

  /** Put a question back into the draft, and forget it and what followed. @param {Turn} turn */
  edit(turn) {
    if (this.running) return;
    const draft = this.hooks.draft();
    this.conversation.cutAt(this.conversation.turns.indexOf(turn), draft, "Change the question and ask again.");
    this.hooks.setDraft({ text: turn.text, images: turn.images ?? [] });
  }

  /** Forget everything; Undo brings it back. */
  async clear() {
    await this.stop();
    const draft = this.hooks.draft();
    if (this.conversation.isEmpty && !draft.text && !draft.images.length) return;
    this.conversation.cutAt(0, draft, "The conversation was removed.");
    this.hooks.setDraft({ text: "", images: [] });
  }

  /** Bring back what New, Edit or Ask again has removed. */
  async undo() {
    await this.stop();
    const { undo } = this.conversation;
    if (!undo) return;
    this.conversation.set(undo.turns, null);
    if (undo.draft) this.hooks.setDraft(undo.draft);
  }

  /** Answer the last of `turns`. Resolves to an error if there is no reply; a stopped reply with text is one. */
  async reply(turns, undo) {
    const turn = { role: "assistant", text: "" };
    const controller = new AbortController();
    let finish;
    this.running = { controller, done: new Promise((resolve) => (finish = resolve)) };
    this.hooks.onRunning(true);
    try {
      const [parameters, model] = [this.hooks.parameters(), await this.hooks.model()];
      const { format } = turns.at(-1);
      const body = { model: model.id, messages: toMessages(turns, this.hooks.system()), ...parameters };
      if (format) body.response_format = format;
      if (body.response_format) turn.isJson = true;
      this.conversation.set([...turns, turn], undo);
      await this.stream(turn, body, model, controller.signal);
      return null;
    } catch (error) {
      return error;
    } finally {
      this.running = null;
      this.hooks.onRunning(false);
      if (turn.stats) this.conversation.onChange();
      queueMicrotask(finish); // after the caller has put back what failed
    }
  }

  /** Fill `turn` as the text arrives. Throws if there is none. */
  async stream(turn, body, model, signal) {
    const start = performance.now();
    let [first, last, reply] = [null, null, null];
    const onText = (piece) => {
      last = performance.now();
      first ??= last;
      turn.text += piece;
      this.hooks.onText(turn);
    };
    try {
      reply = await ask(body, onText, signal, model.limits.max_body_bytes);
    } catch (error) {
      const told = error instanceof ApiError ? error.about(model) : error;
      if (!turn.text) throw told;
      if (error.name !== "AbortError") this.hooks.onError(told);
    }
    turn.stats = statsLine(start, first, last, reply);
    this.hooks.onText(turn);
  }
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
