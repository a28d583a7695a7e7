/* <token-view src="/.../rollouts.json">: rollouts as text, each token coloured by a column.

   The JSON is {"rollouts": [{"prompt", "tokens", "columns": {name: [number|null]}, "correct",
   "truncated"}]}. The colour diverges around 0; strong values are underlined too, and every value is
   shown on hover and focus. Arrow keys walk the tokens, n and p the strongest ones. Text of models is
   untrusted and only ever set as text. */
import { format } from "./number-format.js";
import { element, icon } from "./dom.js";

const LEVELS = 4;
/* The strongest level is where the 98th percentile of magnitudes lies, so one outlier hides nothing. */
const FULL_SCALE_QUANTILE = 0.98;
const GLYPHS = { "\n": "\u21b5", "\t": "\u21e5", "\r": "\u240d" };
const SPECIAL = /^<[|/]?[\w|/]+[|]?>$/;

class TokenView extends HTMLElement {
  connectedCallback() {
    this.tip = element("div", { className: "token-tip", role: "status" });
    this.tip.hidden = true;
    this.addEventListener("keydown", (event) => this.pressed(event));
    this.load();
  }

  async load() {
    this.replaceChildren(element("span", { className: "skeleton skeleton-block" }));
    try {
      const answer = await fetch(this.getAttribute("src"), {
        headers: { Accept: "application/json" },
      });
      if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
      this.rollouts = (await answer.json()).rollouts;
    } catch (error) {
      return this.replaceChildren(
        element("p", {
          className: "soft",
          text: `Rollouts could not be loaded: ${error.message}.`,
        }),
      );
    }
    if (this.rollouts.length) this.build();
    else
      this.replaceChildren(
        element("p", { className: "soft", text: "No rollouts were traced yet." }),
      );
  }

  build() {
    const columns = Object.keys(this.rollouts[0].columns);
    this.which = select(
      "Rollout",
      this.rollouts.map((_, index) => `${index + 1} of ${this.rollouts.length}`),
    );
    this.column = select(
      "Colour by",
      columns.map((name) => name.replaceAll("_", " ")),
      columns,
    );
    this.badges = element("span", { className: "row-wrap" });
    this.prompt = element("div", {
      className: "token-prompt",
      tabindex: "0",
      "aria-label": "Prompt",
    });
    this.text = element("div", { className: "token-text", "aria-label": "Response" });
    for (const [type, act] of Object.entries({
      mouseover: "enter",
      focusin: "enter",
      mouseout: "leave",
      focusout: "leave",
    }))
      this.text.addEventListener(type, (event) => this[act](event));
    this.which.control.addEventListener("change", () => this.show());
    this.column.control.addEventListener("change", () => this.colour());
    this.replaceChildren(
      element("div", { className: "token-tools" }, [
        this.which.field,
        this.column.field,
        this.badges,
        scale(),
      ]),
      this.prompt,
      this.text,
      this.tip,
    );
    this.show();
  }

  show() {
    this.rollout = this.rollouts[this.which.control.selectedIndex];
    this.prompt.textContent = this.rollout.prompt;
    this.badges.replaceChildren(...badges(this.rollout));
    this.tokens = this.rollout.tokens.map((token, index) => span(token, index));
    this.text.replaceChildren(...this.tokens);
    this.tokens[0]?.setAttribute("tabindex", "0");
    this.colour();
  }

  colour() {
    const values = this.rollout.columns[this.column.control.value] ?? [];
    const full = fullScale(values);
    this.tokens.forEach((node, index) => {
      const level =
        values[index] === null || values[index] === undefined
          ? null
          : Math.round((LEVELS * values[index]) / full);
      if (level) node.dataset.level = Math.max(-LEVELS, Math.min(LEVELS, level));
      else delete node.dataset.level;
    });
    this.strongest = [...values.keys()].sort(
      (a, b) => Math.abs(values[b] ?? 0) - Math.abs(values[a] ?? 0),
    );
  }

  enter(event) {
    const token = event.target.closest(".token");
    if (!token) return;
    const index = Number(token.dataset.index);
    const facts = element("dl", { className: "facts" });
    for (const [name, values] of Object.entries(this.rollout.columns)) {
      facts.append(
        element("dt", { text: name.replaceAll("_", " ") }),
        element("dd", { text: format(values[index]) }),
      );
    }
    const shown = JSON.stringify(this.rollout.tokens[index]);
    this.tip.replaceChildren(
      element("div", { className: "token-tip-head", text: `${shown} at position ${index}` }),
      facts,
    );
    this.tip.hidden = false;
    place(this.tip, token.getBoundingClientRect());
  }

  leave() {
    this.tip.hidden = true;
  }

  pressed(event) {
    if (!event.target.matches(".token")) return;
    const at = Number(event.target.dataset.index);
    const rank = this.strongest.indexOf(at);
    const next = {
      ArrowRight: at + 1,
      ArrowLeft: at - 1,
      Home: 0,
      End: this.tokens.length - 1,
      n: this.strongest[rank + 1],
      p: this.strongest[rank - 1],
    }[event.key];
    if (event.key === "Escape") this.leave();
    if (!this.tokens[next]) return;
    event.preventDefault();
    event.stopPropagation();
    event.target.tabIndex = -1;
    this.tokens[next].tabIndex = 0;
    this.tokens[next].focus();
  }
}

function span(token, index) {
  const node = element("span", { className: "token", tabindex: "-1", "data-index": index });
  if (SPECIAL.test(token)) {
    node.classList.add("token-special");
    node.textContent = token;
    return node;
  }
  for (const character of token) node.append(...characters(character));
  return node;
}

/* White space carries a glyph beside the real character, so that copied text stays what it was. */
function characters(character) {
  if (character === " ") return [element("span", { className: "token-space", text: " " })];
  const glyph = GLYPHS[character];
  if (!glyph) return [character];
  return [
    element("span", { className: "token-glyph", "aria-hidden": "true", text: glyph }),
    character,
  ];
}

function fullScale(values) {
  const sizes = values
    .filter((value) => value !== null)
    .map(Math.abs)
    .sort((a, b) => a - b);
  return sizes[Math.floor((sizes.length - 1) * FULL_SCALE_QUANTILE)] || 1;
}

function badges({ correct, truncated }) {
  const verdicts = { true: ["good", "succeeded", "Correct"], false: ["bad", "failed", "Wrong"] };
  const shown = [];
  if (correct !== null) shown.push(verdicts[correct]);
  if (truncated) shown.push(["warn", "warning", "Truncated"]);
  return shown.map(([tone, name, text]) =>
    element("span", { className: "status", "data-tone": tone }, [icon(name), text]),
  );
}

function scale() {
  const cells = Array.from({ length: 2 * LEVELS + 1 }, (_, index) => {
    const level = index - LEVELS;
    const cell = element("span", { className: "token", text: "\u00a0" });
    if (level) cell.dataset.level = level;
    return cell;
  });
  return element("span", { className: "token-scale", "aria-hidden": "true" }, [
    "below 0",
    ...cells,
    "above 0",
  ]);
}

function select(label, texts, values = texts) {
  const control = element(
    "select",
    { className: "form-select" },
    texts.map((text, index) => element("option", { text, value: values[index] })),
  );
  return {
    control,
    field: element("label", { className: "field row-wrap", text: label }, [control]),
  };
}

function place(tip, { left, top, bottom }) {
  const { offsetWidth: width, offsetHeight: height } = tip;
  const below = bottom + height + 12 < innerHeight;
  tip.style.left = `${Math.max(8, Math.min(left, innerWidth - width - 8))}px`;
  tip.style.top = `${below ? bottom + 6 : top - height - 6}px`;
}

customElements.define("token-view", TokenView);
