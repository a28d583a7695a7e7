/* A token's text made visible: white space as glyphs beside the real characters, so that what is copied
   stays what it was, and special tokens as names. Text of models is untrusted and only ever set as text. */
import { element } from "./dom.js";

const GLYPHS = { "\n": "\u21b5", "\t": "\u21e5", "\r": "\u240d" };
const NAMES = { " ": "space", "\n": "new line", "\t": "tab", "\r": "carriage return" };
const SPECIAL = /^(<[|/]?[\w|/.-]+[|]?>|\[[A-Z]+\])$/;
const SPACE = /[\s\u00a0]/;

export const isSpecial = (text) => SPECIAL.test(text);

/* Nodes that show the text. */
export function marked(text) {
  if (isSpecial(text) || !SPACE.test(text)) return [text];
  const nodes = [];
  for (const part of text.match(/\s|\S+/g) ?? []) nodes.push(...shown(part));
  return nodes;
}

/* How the text is called aloud: white space by name, everything else as it is. */
export function spoken(text) {
  if (text === "") return "empty";
  if (text.trim()) return text;
  const names = [...text].map((character) => NAMES[character] ?? "white space");
  const same = names.every((name) => name === names[0]);
  return same && names.length > 1 ? `${names.length} times ${names[0]}` : names.join(", ");
}

function shown(part) {
  if (part === " ") return [element("span", { className: "token-space", text: " " })];
  const glyph = GLYPHS[part];
  if (!glyph) return [part];
  return [element("span", { className: "token-glyph", "aria-hidden": "true", text: glyph }), part];
}
