/* What both models held probable at one position: two columns of bars, best first, tokens that both name
   joined by a line, the written one marked. A written token outside a column's top stands below it. */
import { element } from "./dom.js";
import { isSpecial, marked, spoken } from "./token-marks.js";

const SVG = "http://www.w3.org/2000/svg";
/* Heights in the drawing's own unit; a row is 1, the gap before a token outside the top is GAP. */
const GAP = 0.5;
const SIDES = { student: "Student", teacher: "Teacher" };

/* A probability as a short percentage. */
export function percent(logprob) {
  if (logprob === null || logprob === undefined) return "\u2013";
  const share = 100 * Math.exp(logprob);
  if (share >= 99.95) return "100\u00a0%";
  if (share >= 10) return `${share.toFixed(share >= 99 ? 1 : 0)}\u00a0%`;
  if (share >= 0.1) return `${share.toFixed(1)}\u00a0%`;
  return share >= 0.01 ? `${share.toFixed(2)}\u00a0%` : "<\u00a00.01\u00a0%";
}

export function ordinal(rank) {
  const ending = { 1: "st", 2: "nd", 3: "rd" }[rank % 10];
  const teen = Math.floor((rank % 100) / 10) === 1;
  return `${rank}${ending && !teen ? ending : "th"}`;
}

/* The columns with a rank for each token, the written one in both. */
export function rows({ student, teacher, ranks }, written) {
  return {
    student: column(student, ranks.student, { id: written.id, own: written.student, text: written.text }),
    teacher: column(teacher, ranks.teacher, { id: written.id, own: written.teacher, text: written.text }),
  };
}

function column(top, rank, written) {
  const found = top.map((one, index) => ({ ...one, rank: index + 1, written: one.id === written.id }));
  if (found.some((one) => one.written)) return found;
  return [...found, { ...written, rank, written: true, outside: true }];
}

export function pairsPanel(columns) {
  const partners = { student: byId(columns.teacher), teacher: byId(columns.student) };
  const list = (side, other) =>
    element(
      "ol",
      { className: "pairs-side", "data-side": side, "aria-label": `${SIDES[side]}\u2019s most probable tokens` },
      columns[side].map((one) => row(one, partners[side].get(one.id), SIDES[other].toLowerCase())),
    );
  return element("div", { className: "pairs" }, [
    head("student"),
    element("span"),
    head("teacher"),
    list("student", "teacher"),
    links(columns),
    list("teacher", "student"),
  ]);
}

function head(side) {
  return element("span", { className: "pairs-head", "data-side": side, text: SIDES[side] });
}

const byId = (column) => new Map(column.map((one) => [one.id, one]));

function row(one, partner, other) {
  const node = element("li", { className: "pair", "aria-label": told(one, partner, other) }, [
    element("span", { className: "pair-rank", text: one.rank }),
    element("span", { className: isSpecial(one.text) ? "pair-text token-special" : "pair-text" }, marked(one.text)),
    element("span", { className: "pair-share", text: percent(one.own) }),
  ]);
  node.style.setProperty("--share", one.own === null ? 0 : Math.exp(one.own));
  node.title = node.getAttribute("aria-label");
  node.toggleAttribute("data-written", one.written);
  node.toggleAttribute("data-outside", Boolean(one.outside));
  node.toggleAttribute("data-shared", Boolean(partner));
  return node;
}

function told(one, partner, other) {
  const there = partner
    ? `${ordinal(partner.rank)} for the ${other}, ${percent(partner.own)}`
    : `not in the ${other}\u2019s top, ${percent(one.other)}`;
  return `${spoken(one.text)}: ${ordinal(one.rank)}, ${percent(one.own)}; ${there}${one.written ? "; this was written" : ""}`;
}

/* Lines from a token's place on the left to its place on the right. */
function links({ student, teacher }) {
  const svg = document.createElementNS(SVG, "svg");
  const heights = [student, teacher].map((column) => middle(column, column.length - 1) + 0.5);
  const height = Math.max(...heights);
  svg.setAttribute("class", "pairs-links");
  svg.setAttribute("aria-hidden", "true");
  svg.setAttribute("viewBox", `0 0 1 ${height}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.style.setProperty("--rows", height);
  const right = new Map(teacher.map((one, index) => [one.id, index]));
  student.forEach((one, index) => {
    if (!right.has(one.id)) return;
    const from = middle(student, index);
    const to = middle(teacher, right.get(one.id));
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("d", `M0,${from} C0.5,${from} 0.5,${to} 1,${to}`);
    path.toggleAttribute("data-written", one.written);
    path.toggleAttribute("data-level-with", from === to);
    svg.append(path);
  });
  return svg;
}

function middle(column, index) {
  return index + 0.5 + (column[index].outside ? GAP : 0);
}
