/* A rollout's tokens as text to walk through: blocks that the browser leaves out while they are out of view,
   built a piece at a time, so that thousands of tokens scroll and open at once.

   It tells of the token under the pointer (`peek`, null when it leaves) and of the one that was chosen
   (`choose`); one token is in the tab order, arrow keys move on. It knows levels, not what they mean. */
import { element } from "./dom.js";
import { isSpecial, marked, spoken } from "./token-marks.js";

/* A block ends at a line's end once it is long enough, and at the latest here. */
const BLOCK_TOKENS = { enough: 96, most: 384 };
const AT_ONCE = 1500;
const KEYS = new Set(["ArrowRight", "ArrowLeft", "ArrowUp", "ArrowDown", "Home", "End"]);

export class TokenText {
  constructor({ peek, choose }) {
    this.node = element("div", {
      className: "token-text",
      role: "listbox",
      "aria-orientation": "horizontal",
    });
    this.peek = peek;
    this.choose = choose;
    this.spans = [];
    this.node.addEventListener("pointerover", ({ target }) => this.pointed(target));
    this.node.addEventListener("pointerleave", () => this.peek(null));
    this.node.addEventListener("click", ({ target }) => this.clicked(target));
    this.node.addEventListener("focusin", ({ target }) => this.focused(target));
    this.node.addEventListener("keydown", (event) => this.pressed(event));
  }

  /* Puts other tokens in place; levels and marks are by position. */
  show(tokens, { levels, marks }, label) {
    clearTimeout(this.timer);
    this.tokens = tokens;
    this.levels = levels;
    this.marks = marks;
    this.spans = [];
    this.current = null;
    this.node.setAttribute("aria-label", label);
    this.node.replaceChildren();
    this.node.scrollTop = 0;
    this.blocks = blocks(tokens);
    this.build(AT_ONCE);
  }

  /* Builds blocks until so many more tokens stand there, and the rest when the browser is free again. */
  build(atLeast) {
    const wanted = this.spans.length + atLeast;
    while (this.blocks.length && this.spans.length < wanted) this.append(this.blocks.shift());
    if (this.blocks.length) this.timer = setTimeout(() => this.build(AT_ONCE), 0);
    this.node.toggleAttribute("aria-busy", this.blocks.length > 0);
  }

  append({ start, end }) {
    const spans = [];
    for (let position = start; position < end; position += 1) {
      const span = token(this.tokens[position], position);
      this.dress(span, position);
      spans.push(span);
    }
    this.spans.push(...spans);
    const gutter = element("span", { className: "token-gutter", "aria-hidden": "true" });
    gutter.textContent = start;
    const words = element("div", { className: "token-words", role: "presentation" }, spans);
    this.node.append(
      element("div", { className: "token-block", role: "presentation" }, [gutter, words]),
    );
    if (start === 0) this.spans[0]?.setAttribute("tabindex", "0");
  }

  colour({ levels, marks }) {
    this.levels = levels;
    this.marks = marks;
    this.spans.forEach((span, position) => this.dress(span, position));
  }

  dress(span, position) {
    put(span, "level", this.levels[position] || null);
    put(span, "worst", this.marks.get(position) ?? null);
  }

  /* Makes a token the current one; `focus` also moves the keyboard there. */
  select(position, { focus = false } = {}) {
    this.build(position + 1 - this.spans.length);
    const span = this.spans[position];
    if (!span) return;
    const before = this.spans[this.current ?? 0];
    before?.setAttribute("tabindex", "-1");
    before?.removeAttribute("aria-selected");
    span.setAttribute("tabindex", "0");
    span.setAttribute("aria-selected", "true");
    this.current = position;
    if (focus) {
      span.focus({ preventScroll: true });
      this.reveal();
      const frame = this.node.getBoundingClientRect();
      if (frame.top < 0 || frame.bottom > innerHeight) span.scrollIntoView({ block: "nearest" });
    }
  }

  /* Scrolls the text alone to the current token, where that is out of sight or at the rim. */
  reveal() {
    const span = this.spans[this.current];
    if (!span) return;
    const frame = this.node.getBoundingClientRect();
    const place = span.getBoundingClientRect();
    const rim = 2 * place.height;
    if (place.top < frame.top + rim || place.bottom > frame.bottom - rim)
      this.node.scrollTop += place.top - frame.top - frame.height / 3;
  }

  pointed(target) {
    const position = positionOf(target);
    if (position !== null) this.peek(position);
  }

  clicked(target) {
    const position = positionOf(target);
    if (position !== null) this.select(position, { focus: true });
  }

  focused(target) {
    const position = positionOf(target);
    if (position === null) return;
    this.select(position);
    this.choose(position);
  }

  pressed(event) {
    if (!KEYS.has(event.key) || event.ctrlKey || event.metaKey || event.altKey) return;
    const next = this.neighbour(event.key);
    if (next === null) return;
    event.preventDefault();
    event.stopPropagation();
    this.select(next, { focus: true });
  }

  neighbour(key) {
    const at = this.current ?? 0;
    const last = this.tokens.length - 1;
    if (key === "ArrowRight") return Math.min(at + 1, last);
    if (key === "ArrowLeft") return Math.max(at - 1, 0);
    if (key === "Home") return 0;
    if (key === "End") return last;
    return this.onNextLine(at, key === "ArrowDown" ? 1 : -1);
  }

  /* The token on the line below or above that is nearest in place. */
  onNextLine(at, by) {
    const { left, top } = this.spans[at].getBoundingClientRect();
    let line = null;
    let nearest = null;
    for (let position = at + by; this.spans[position]; position += by) {
      const place = this.spans[position].getBoundingClientRect();
      if (Math.abs(place.top - top) < place.height / 2) continue;
      line ??= place.top;
      if (Math.abs(place.top - line) > place.height / 2) break;
      const far = Math.abs(place.left - left);
      if (!nearest || far < nearest.far) nearest = { position, far };
    }
    return nearest && nearest.position;
  }
}

/* Spans of positions, cut where a line ends if they can be. */
function blocks(tokens) {
  const found = [];
  let start = 0;
  tokens.forEach((text, position) => {
    const length = position + 1 - start;
    if ((length >= BLOCK_TOKENS.enough && text.includes("\n")) || length >= BLOCK_TOKENS.most) {
      found.push({ start, end: position + 1 });
      start = position + 1;
    }
  });
  if (start < tokens.length) found.push({ start, end: tokens.length });
  return found;
}

function token(text, position) {
  const span = element("span", {
    className: isSpecial(text) ? "token token-special" : "token",
    role: "option",
    tabindex: "-1",
    "data-index": position,
  });
  if (!text.trim()) span.setAttribute("aria-label", spoken(text));
  span.append(...marked(text));
  return span;
}

function positionOf(target) {
  const span = target.closest?.(".token");
  return span?.dataset.index ? Number(span.dataset.index) : null;
}

function put(span, name, value) {
  if (value === null) delete span.dataset[name];
  else span.dataset[name] = value;
}
