// The conversation: its turns, what can be undone, and its form for the API. Knows nothing of the document.

/**
 * @typedef {{role: "user"|"assistant", text: string, images?: string[], format?: object, isJson?: boolean, stats?: string}} Turn
 *   images: data URIs; format: the response_format of a question; isJson: of a reply to one; stats: once it has ended
 * @typedef {{text: string, images: string[]}} Draft the next question
 * @typedef {{turns: Turn[], draft: Draft, reason: string}} Snapshot
 */

export class Conversation {
  /** @param {() => void} onChange called after every change of turns or undo */
  constructor(onChange) {
    this.onChange = onChange;
    /** @type {Turn[]} */
    this.turns = [];
    /** @type {?Snapshot} what Undo brings back */
    this.undo = null;
  }

  get isEmpty() {
    return this.turns.length === 0;
  }

  get numImages() {
    return this.turns.reduce((sum, turn) => sum + (turn.images?.length ?? 0), 0);
  }

  /** Replace everything. @param {Turn[]} turns @param {?Snapshot} undo */
  set(turns, undo) {
    this.turns = turns;
    this.undo = undo;
    this.onChange();
  }

  /** Remove the turns from `index` on; Undo brings them and the draft back. */
  cutAt(index, draft, reason) {
    this.set(this.turns.slice(0, index), { turns: this.turns, draft, reason });
  }

  /** Stored turns, without the reply that a reload has interrupted before its first word. */
  static readStored(turns) {
    const all = Array.isArray(turns) ? turns : [];
    const last = all.at(-1);
    if (last?.role !== "assistant" || last.stats) return all;
    return last.text ? [...all.slice(0, -1), { ...last, stats: "stopped" }] : all.slice(0, -1);
  }
}

/** The messages of /v1/chat/completions. @param {Turn[]} turns @param {string} system */
export function toMessages(turns, system) {
  const messages = turns.map(({ role, text, images }) => {
    if (!images?.length) return { role, content: text };
    const parts = images.map((url) => ({ type: "image_url", image_url: { url } }));
    return { role, content: [...parts, { type: "text", text }] };
  });
  return system ? [{ role: "system", content: system }, ...messages] : messages;
}

/** A conversation as Markdown, images as data URIs. @param {Turn[]} turns @param {string} model */
export function toMarkdown(turns, model) {
  const parts = turns.map((turn) => {
    const images = (turn.images ?? []).map((uri, i) => `![Image ${i + 1}](${uri})\n\n`).join("");
    const text = turn.isJson ? `\`\`\`json\n${turn.text}\n\`\`\`` : turn.text;
    return `**${turn.role === "user" ? "You" : model}**\n\n${images}${text}\n`;
  });
  return `# Conversation with ${model}\n\n${parts.join("\n")}`;
}
