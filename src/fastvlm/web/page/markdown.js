// Markdown -> DOM nodes. No HTML is ever parsed: the lexer's tokens become elements, and HTML in a text stays text.

import { lexer } from "./vendor/marked.js";
import { element } from "./dom.js";

const LARGEST = 8000; // characters; longer texts stay plain, because some take time that grows with their square
const SLOW_MS = 100; // a text that takes longer stays plain too
const DEEPEST = 12; // levels of lists and quotes
const LINK = /^(https?:|mailto:)/i;
const BLOCKS = {
  paragraph: (token, depth) => element("p", {}, ...nodes(token.tokens, depth)),
  heading: (token, depth) => element("p", { className: "heading" }, ...nodes(token.tokens, depth)),
  code: (token) => element("pre", { tabIndex: 0 }, element("code", {}, token.text)),
  blockquote: (token, depth) => element("blockquote", {}, ...nodes(token.tokens, depth)),
  hr: () => element("hr"),
  list: (token, depth) => list(token, depth),
  table: (token, depth) => table(token, depth),
  space: () => "",
  br: () => element("br"),
  strong: (token, depth) => element("strong", {}, ...nodes(token.tokens, depth)),
  em: (token, depth) => element("em", {}, ...nodes(token.tokens, depth)),
  del: (token, depth) => element("del", {}, ...nodes(token.tokens, depth)),
  codespan: (token) => element("code", {}, token.text),
  checkbox: (token) => (token.checked ? "☑ " : "☐ "),
  link: (token, depth) => link(token, depth),
  escape: (token) => token.text,
};

/**
 * The blocks of a Markdown text, or one plain paragraph for a text that is too long or too slow to parse.
 * @param {string} text
 * @returns {{raw: string, make: () => (Node|string)}[]} equal `raw`, equal nodes
 */
function blocks(text) {
  if (text.length > LARGEST) return [plain(text)];
  try {
    const start = performance.now();
    const tokens = lexer(text, { gfm: true, breaks: true });
    if (performance.now() - start > SLOW_MS) return [plain(text)];
    return tokens.filter((one) => one.type !== "space").map((one) => ({ raw: one.raw, make: () => node(one, 0) }));
  } catch {
    return [plain(text)]; // thousands of levels overflow the parser's stack
  }
}

function plain(text) {
  return { raw: text, make: () => element("p", { className: "plain" }, text) };
}

/** Shows a Markdown text that grows: only blocks that have changed are made anew. */
export class MarkdownView {
  /** @param {HTMLElement} place */
  constructor(place) {
    this.place = place;
    this.shown = [];
  }

  /** @param {string} text */
  show(text) {
    const wanted = blocks(text);
    let same = 0;
    while (same < wanted.length && this.shown[same] === wanted[same].raw) same++;
    while (this.place.childNodes.length > same) this.place.lastChild.remove();
    for (const block of wanted.slice(same)) {
      const made = block.make();
      this.place.append(made instanceof Element ? made : element("p", {}, made));
    }
    this.shown = wanted.map((block) => block.raw);
  }
}

function nodes(tokens, depth) {
  return (tokens ?? []).map((token) => node(token, depth));
}

// Unknown tokens, HTML and images among them, are shown as they were written.
function node(token, depth) {
  if (depth > DEEPEST) return token.raw;
  if (token.type === "text") return token.tokens ? inline(token, depth) : token.text;
  return BLOCKS[token.type]?.(token, depth + 1) ?? token.raw;
}

function inline(token, depth) {
  const fragment = document.createDocumentFragment();
  fragment.append(...nodes(token.tokens, depth));
  return fragment;
}

function link(token, depth) {
  if (!LINK.test(token.href)) return token.raw;
  const inside = nodes(token.tokens, depth);
  return element("a", { href: token.href, target: "_blank", rel: "noopener noreferrer nofollow" }, ...inside);
}

function list(token, depth) {
  const items = token.items.map((item) => element("li", {}, ...nodes(item.tokens, depth)));
  const made = element(token.ordered ? "ol" : "ul", {}, ...items);
  if (token.ordered && token.start > 1) made.start = token.start;
  return made;
}

function table(token, depth) {
  const row = (cells, tag) => element("tr", {}, ...cells.map((cell) => element(tag, {}, ...nodes(cell.tokens, depth))));
  const head = element("thead", {}, row(token.header, "th"));
  const body = element("tbody", {}, ...token.rows.map((cells) => row(cells, "td")));
  return element("div", { className: "table", tabIndex: 0 }, element("table", {}, head, body));
}
