/* <token-view src="/.../trace.json" linked>: two models reading one text, token by token.

   The address answers a run's traces piece by piece (trace-source.js). A step and a rollout are chosen, the
   rollout's tokens are coloured by a measure, and the token under the pointer or the keyboard is told with
   both models' most probable tokens. `n` and `p` go from one worst token to the next. Moving the step stays
   with the prompt. With `linked` the place stands in the page's address. */
import { element, icon } from "./dom.js";
import { format, signed } from "./number-format.js";
import { legend } from "./token-legend.js";
import { spoken, marked, isSpecial } from "./token-marks.js";
import { levelOf, MARKED, MEASURES, worstFirst } from "./token-measures.js";
import { ordinal, pairsPanel, percent, rows } from "./token-pairs.js";
import { TokenRollouts } from "./token-rollouts.js";
import { TokenSteps } from "./token-steps.js";
import { TokenText } from "./token-text.js";
import { TraceSource } from "./trace-source.js";

const PUBLISHED_MILLISECONDS = 1500;
const SPOKEN_MILLISECONDS = 150;
const count = (number) => number.toLocaleString("en");

class TokenView extends HTMLElement {
  connectedCallback() {
    this.source = new TraceSource(this.getAttribute("src"));
    this.turn = 0;
    this.heard = ({ detail }) => {
      if (detail.events.some(({ kind }) => kind === "trace"))
        setTimeout(() => this.refresh(), PUBLISHED_MILLISECONDS);
    };
    document.addEventListener("run-events", this.heard);
    this.addEventListener("keydown", (event) => this.pressed(event));
    this.replaceChildren(element("span", { className: "skeleton skeleton-block" }));
    this.begin();
  }

  disconnectedCallback() {
    document.removeEventListener("run-events", this.heard);
    this.turn += 1;
  }

  /* Awaits an answer; what fails is told in place, what came too late is dropped. */
  async guarded(work) {
    const turn = (this.turn += 1);
    try {
      await work(() => turn === this.turn);
    } catch (error) {
      if (turn === this.turn && this.isConnected) this.fail(error);
    }
  }

  begin() {
    this.guarded(async (current) => {
      this.files = await this.source.files();
      if (!current()) return;
      if (!this.files.length) return this.say("No rollouts were traced yet.");
      const asked = this.asked();
      this.build(asked.colour);
      const file =
        this.files.find(({ step, stage_index }) => step === asked.step && stage_index === asked.stage) ??
        this.files.at(-1);
      this.openFile(file, { rollout: asked.rollout, token: asked.token });
    });
  }

  asked() {
    const query = new URLSearchParams(this.hasAttribute("linked") ? location.search : "");
    const whole = (name) => (/^\d+$/.test(query.get(name) ?? "") ? Number(query.get(name)) : null);
    const colour = query.get("colour");
    return {
      step: whole("step"),
      stage: whole("stage") ?? 0,
      rollout: whole("rollout"),
      token: whole("token"),
      colour: colour in MEASURES ? colour : "token_reward",
    };
  }

  build(colour) {
    this.steps = new TokenSteps({ choose: (file) => this.openFile(file) });
    this.list = new TokenRollouts({ choose: (index) => this.openRollout(index) });
    this.text = new TokenText({
      peek: (position) => this.tell(position ?? this.position),
      choose: (position) => this.choose(position),
    });
    this.colour = element("select", { className: "form-select form-select-sm", "aria-label": "Colour by" });
    this.colour.append(
      ...Object.entries(MEASURES).map(([value, { label }]) => element("option", { value, text: label })),
    );
    this.colour.value = colour;
    this.colour.addEventListener("change", () => this.recolour());
    this.heading = element("h3", { className: "token-title" });
    this.scale = element("div", { className: "token-legend" });
    this.help = element("p", { className: "token-help" });
    this.prompt = element("div", { className: "token-prompt", tabindex: "0", role: "region", "aria-label": "Prompt" });
    this.body = element("div", { className: "token-body" });
    this.panel = element("aside", { className: "token-panel", "aria-label": "The token in detail" });
    this.voice = element("p", { className: "visually-hidden", role: "status", "aria-live": "polite" });
    this.worst = element("span", { className: "token-worst-place" });
    this.replaceChildren(
      this.steps.node,
      element("div", { className: "token-grid" }, [
        this.list.node,
        element("section", { className: "token-main" }, [this.tools(), this.scale, this.help, this.body]),
        this.panel,
      ]),
      this.voice,
    );
  }

  tools() {
    const button = (by, key, label) => {
      const shown = [element("kbd", { text: key }), icon("right")];
      const node = element(
        "button",
        { className: "btn btn-sm", type: "button", "aria-label": label, title: label },
        by < 0 ? shown.reverse() : shown,
      );
      node.addEventListener("click", () => this.toWorst(by));
      return node;
    };
    return element("div", { className: "token-tools" }, [
      this.heading,
      element("label", { className: "token-colour" }, ["Colour by", this.colour]),
      element("div", { className: "token-worst", role: "group", "aria-label": "Worst tokens" }, [
        button(-1, "p", "Previous worst token"),
        this.worst,
        button(1, "n", "Next worst token"),
      ]),
    ]);
  }

  /* Opens a step's trace: at the given rollout, or at the prompt that is being watched. */
  openFile(file, { rollout = null, token = null } = {}) {
    this.file = file;
    this.steps.show(this.files, file, this.watched);
    return this.guarded(async (current) => {
      this.rollouts = await this.source.brief(file.key);
      if (!current()) return;
      file.prompts ??= this.rollouts.map(({ prompt_index: index }) => index);
      const index = rollout !== null && this.rollouts[rollout] ? rollout : this.followed();
      this.list.show(this.rollouts, index, file);
      if (index === null) this.absent();
      else await this.load(index, token, current);
    });
  }

  /* The rollout of the watched prompt, best the very text; null where the step kept none. */
  followed() {
    if (!this.watched) return 0;
    const { prompt, written } = this.watched;
    if (prompt === null) return this.rollouts[this.index] ? this.index : 0;
    const same = [...this.rollouts.keys()].filter((index) => this.rollouts[index].prompt_index === prompt);
    return same.find((index) => this.rollouts[index].written_step === written) ?? same[0] ?? null;
  }

  openRollout(index) {
    return this.guarded((current) => this.load(index, null, current));
  }

  async load(index, token, current) {
    const rollout = await this.source.rollout(this.file.key, index);
    if (!current()) return;
    const brief = this.rollouts[index];
    const same = this.rollout && rollout.tokens.join("\0") === this.rollout.tokens.join("\0");
    const position = token ?? (same ? this.position : null);
    this.away = false;
    this.index = index;
    this.rollout = rollout;
    this.watched = { prompt: brief.prompt_index, written: brief.written_step };
    this.steps.show(this.files, this.file, this.watched);
    this.list.mark(index);
    this.heading.replaceChildren(...title(brief, index, this.file));
    this.prompt.textContent = rollout.prompt;
    if (!this.body.contains(this.text.node)) this.body.replaceChildren(this.prompt, this.text.node);
    this.measure();
    if (same) this.text.colour(this.dress);
    else this.text.show(rollout.tokens, this.dress, this.label(rollout));
    this.note(rollout);
    const place = position !== null && position < rollout.tokens.length ? position : (this.order[0] ?? 0);
    this.text.select(place);
    this.choose(place, { aloud: false });
    if (!same) this.text.reveal();
  }

  label({ tokens }) {
    return `Response, ${tokens.length} tokens. Arrow keys walk, n and p go to the worst.`;
  }

  note({ tokens, tokens_total: total }) {
    this.body.querySelector(".token-cut")?.remove();
    if (total > tokens.length)
      this.body.append(
        element("p", {
          className: "token-cut small soft",
          text: `The first ${tokens.length} of ${total} tokens are shown; the file has them all.`,
        }),
      );
  }

  /* Levels and worst tokens by the chosen measure. */
  measure() {
    const measure = MEASURES[this.colour.value];
    const values = this.rollout.columns[this.colour.value] ?? this.rollout.tokens.map(() => null);
    const levels = values.map((value) => levelOf(measure, value));
    this.order = worstFirst(measure, values);
    const marks = new Map(
      this.order
        .slice(0, MARKED)
        .filter((position) => levels[position])
        .map((position, rank) => [position, rank + 1]),
    );
    this.dress = { levels, marks };
    this.scale.replaceChildren(legend(measure, levels));
    this.help.textContent = measure.help;
  }

  recolour() {
    if (!this.rollout || this.away) return;
    this.measure();
    this.text.colour(this.dress);
    this.choose(this.position, { aloud: false });
  }

  toWorst(by) {
    if (!this.rollout || this.away) return;
    const at = this.order.indexOf(this.position);
    const next = this.order[at + by];
    if (next !== undefined) this.text.select(next, { focus: true });
  }

  pressed(event) {
    const by = { n: 1, p: -1 }[event.key];
    const typing = event.target.closest("select, textarea, input:not([type=range])");
    if (!by || typing || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    this.toWorst(by);
  }

  choose(position, { aloud = true } = {}) {
    this.position = position;
    const rank = this.order.indexOf(position);
    this.worst.textContent = rank < 0 ? "No value" : `Worst ${count(rank + 1)} of ${count(this.order.length)}`;
    this.remember();
    this.tell(position, { aloud });
  }

  remember() {
    if (!this.hasAttribute("linked")) return;
    const query = new URLSearchParams(location.search);
    const place = { step: this.file.step, rollout: this.index, token: this.position, colour: this.colour.value };
    if (this.files.some(({ stage_index: stage }) => stage)) place.stage = this.file.stage_index;
    for (const [name, value] of Object.entries(place)) query.set(name, value);
    history.replaceState(history.state, "", `?${query}${location.hash}`);
  }

  /* Fills the panel with a token's values, and with both models' top tokens once they are there. */
  async tell(position, { aloud = false } = {}) {
    if (position === undefined || !this.rollout) return;
    const told = (this.telling = Symbol("telling"));
    const { rollout, file, index } = this;
    const facts = { text: rollout.tokens[position], position, of: rollout.tokens.length };
    const pairs = element("div", { className: "pairs-place" });
    this.panel.replaceChildren(head(facts), pairs, figures(rollout.columns, position, this.colour.value));
    if (rollout.top_width === null || rollout.top_width === undefined) {
      pairs.append(element("p", { className: "small soft", text: "This trace was written before top tokens were kept." }));
      return this.speak(aloud, facts, null, position);
    }
    try {
      const found = await this.source.pairs(file.key, index, position, rollout.window);
      if (told !== this.telling) return;
      const columns = rows(found, {
        id: rollout.ids[position],
        text: facts.text,
        student: rollout.columns.student_logprob?.[position] ?? null,
        teacher: rollout.columns.teacher_logprob?.[position] ?? null,
      });
      const said = verdict(columns);
      pairs.append(element("p", { className: "token-verdict" }, said.nodes), pairsPanel(columns));
      this.speak(aloud, facts, said.text, position);
    } catch (error) {
      if (told === this.telling)
        pairs.append(element("p", { className: "small soft", text: `Top tokens could not be loaded: ${error.message}.` }));
    }
  }

  speak(aloud, { text, of }, said, position) {
    if (!aloud) return;
    clearTimeout(this.speaking);
    const { label, unit } = MEASURES[this.colour.value];
    const value = this.rollout.columns[this.colour.value]?.[position];
    this.speaking = setTimeout(() => {
      this.voice.textContent = `${spoken(text)}, token ${position + 1} of ${of}. ${label} ${signed(format(value))}${unit ? ` ${unit}` : ""}. ${said ?? ""}`;
    }, SPOKEN_MILLISECONDS);
  }

  /* The watched prompt is not in this step's trace: where else it is. */
  absent() {
    this.away = true;
    this.remember();
    this.heading.replaceChildren(`Prompt ${this.watched.prompt}`);
    this.scale.replaceChildren();
    this.help.textContent = "";
    this.worst.textContent = "";
    this.panel.replaceChildren();
    const places = this.steps.nearest();
    const buttons = places.map((file) => {
      const node = element("button", { className: "btn btn-sm", type: "button", text: `Step ${file.step}` });
      node.addEventListener("click", () => this.openFile(file));
      return node;
    });
    this.body.replaceChildren(
      element("div", { className: "empty" }, [
        icon("empty"),
        element("h3", { text: `Prompt ${this.watched.prompt} was not traced at step ${this.file.step}` }),
        element("p", {
          text: places.length
            ? "The nearest steps that kept it are below. This step\u2019s own rollouts are in the list."
            : "No step that is known kept it. This step\u2019s own rollouts are in the list.",
        }),
        element("div", { className: "form-actions" }, buttons),
      ]),
    );
    this.voice.textContent = `Prompt ${this.watched.prompt} was not traced at step ${this.file.step}.`;
  }

  /* New steps join the slider; the reader stays where they are. */
  async refresh() {
    if (!this.isConnected) return;
    try {
      const files = await this.source.files(true);
      if (!this.steps || files.length === this.files.length) return this.steps || this.begin();
      this.files = files;
      this.file = files.find(({ key }) => key === this.file.key) ?? this.file;
      this.steps.show(files, this.file, this.watched);
    } catch {
      /* The next trace asks again. */
    }
  }

  say(text) {
    this.replaceChildren(element("p", { className: "soft", text }));
  }

  fail(error) {
    const again = element("button", { className: "btn btn-sm", type: "button", text: "Try again" });
    again.addEventListener("click", () => this.begin());
    this.replaceChildren(
      element("p", { className: "soft", role: "alert", text: `Rollouts could not be loaded: ${error.message}. ` }),
      again,
    );
    this.steps = null;
  }
}

function title({ prompt_index: prompt, written_step: written, correct, truncated }, index, { step }) {
  const states = { true: ["good", "succeeded", "Correct"], false: ["bad", "failed", "Wrong"] };
  const shown = [];
  if (correct !== null) shown.push(states[correct]);
  if (truncated) shown.push(["warn", "warning", "Truncated"]);
  if (written !== null && written !== undefined && written !== step) shown.push(["info", "undo", `Written at step ${written}, read again`]);
  return [
    prompt === null ? `Rollout ${index + 1}` : `Prompt ${prompt}`,
    ...shown.map(([tone, name, text]) => element("span", { className: "status", "data-tone": tone }, [icon(name), text])),
  ];
}

function head({ text, position, of }) {
  return element("div", { className: "token-head" }, [
    element("span", { className: isSpecial(text) ? "token-word token-special" : "token-word" }, marked(text)),
    element("span", { className: "token-place", text: `token ${count(position + 1)} of ${count(of)}` }),
  ]);
}

function figures(columns, position, chosen) {
  const shown = Object.entries(MEASURES).filter(([key]) => key in columns);
  const list = element("dl", { className: "token-figures" });
  for (const [key, { label, unit }] of shown) {
    const row = element("div", {}, [
      element("dt", { text: label }),
      element("dd", { text: signed(format(columns[key][position])) }, unit ? [element("span", { className: "unit", text: ` ${unit}` })] : []),
    ]);
    row.toggleAttribute("data-chosen", key === chosen);
    list.append(row);
  }
  return list;
}

/* A sentence on how the two took the written token. */
function verdict({ student, teacher }) {
  const ours = student.find((one) => one.written);
  const theirs = teacher.find((one) => one.written);
  const first = teacher[0];
  const word = element("span", { className: "token-word" }, marked(first.text));
  const here = `the student\u2019s ${ordinal(ours.rank)} (${percent(ours.own)}) and the teacher\u2019s ${ordinal(theirs.rank)} (${percent(theirs.own)})`;
  const parts = agreed();
  return {
    nodes: parts,
    text: parts.map((part) => (part === word ? spoken(first.text) : part)).join(""),
  };

  function agreed() {
    if (theirs.rank === 1 && ours.rank === 1)
      return [`Both put it first: student ${percent(ours.own)}, teacher ${percent(theirs.own)}.`];
    if (theirs.rank === 1) return [`The teacher would have written it too: ${here}.`];
    const who = student[0].id === first.id ? "Both prefer " : "The teacher prefers ";
    return [who, word, ` (${percent(first.own)}). This one is ${here}.`];
  }
}

customElements.define("token-view", TokenView);
