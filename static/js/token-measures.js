/* What tokens can be coloured by: each measure with its unit, the borders of its four levels, and which
   of its values are the worst. Borders are fixed, so that steps and rollouts can be compared by eye. */

export const LEVELS = 4;
/* Tokens that are numbered as the worst ones. */
export const MARKED = 10;

const nats = { unit: "nat" };
export const MEASURES = {
  token_reward: {
    label: "Token reward",
    ...nats,
    edges: [0.1, 0.5, 1.5, 4],
    signed: true,
    badness: (value) => -value,
    help: "The log-prob gap, log teacher \u2212 log student at the written token. Below 0 the teacher likes it less than the student does.",
  },
  reverse_kl: {
    label: "Reverse KL",
    ...nats,
    edges: [0.02, 0.1, 0.5, 2],
    tone: "below",
    badness: (value) => value,
    help: "How far the student\u2019s whole distribution is from the teacher\u2019s at this position.",
  },
  student_entropy: {
    label: "Student entropy",
    ...nats,
    edges: [0.05, 0.2, 0.7, 1.5],
    tone: "above",
    badness: (value) => value,
    help: "How undecided the student was.",
  },
  teacher_entropy: {
    label: "Teacher entropy",
    ...nats,
    edges: [0.05, 0.2, 0.7, 1.5],
    tone: "above",
    badness: (value) => value,
    help: "How undecided the teacher is on the student\u2019s text.",
  },
  overlap_ratio: {
    label: "Overlap ratio",
    unit: null,
    edges: [0.8, 0.65, 0.5, 0.35],
    tone: "below",
    badness: (value) => -value,
    help: "Share of the top-k tokens that both have in common; pale is full agreement.",
  },
  student_logprob: {
    label: "Student logprob",
    ...nats,
    edges: [-0.1, -0.7, -2.3, -4.6],
    tone: "below",
    badness: (value) => -value,
    help: "Log-probability of the written token under the student.",
  },
  teacher_logprob: {
    label: "Teacher logprob",
    ...nats,
    edges: [-0.1, -0.7, -2.3, -4.6],
    tone: "below",
    badness: (value) => -value,
    help: "Log-probability of the written token under the teacher.",
  },
};

/* Null where the value is missing; else -4 to 4, 0 being what needs no attention. */
export function levelOf(measure, value) {
  if (value === null || value === undefined) return null;
  if (measure.signed) return Math.sign(value) * passed(measure.edges, Math.abs(value));
  return (measure.tone === "below" ? -1 : 1) * passed(measure.edges, value);
}

function passed(edges, value) {
  const rising = edges[1] > edges[0];
  return edges.filter((edge) => (rising ? value >= edge : value <= edge)).length;
}

/* Positions from the worst on; those without a value are left out. */
export function worstFirst(measure, values) {
  const badness = values.map((value) => (value === null ? null : measure.badness(value)));
  return [...values.keys()]
    .filter((position) => badness[position] !== null)
    .sort((one, other) => badness[other] - badness[one] || one - other);
}

/* The levels from low to high, each with its borders in the measure's unit; null is open. */
export function bins({ edges, signed, tone }) {
  if (signed) {
    const below = edges.map((edge, index) => ({
      level: -index - 1,
      from: index + 1 < edges.length ? -edges[index + 1] : null,
      to: -edge,
    }));
    const above = edges.map((edge, index) => ({
      level: index + 1,
      from: edge,
      to: edges[index + 1] ?? null,
    }));
    return [...below.reverse(), { level: 0, from: -edges[0], to: edges[0] }, ...above];
  }
  const sign = tone === "below" ? -1 : 1;
  const rising = edges[1] > edges[0];
  const found = [null, ...edges].map((edge, index) => ({
    level: index && sign * index,
    from: rising ? edge : (edges[index] ?? null),
    to: rising ? (edges[index] ?? null) : edge,
  }));
  return rising ? found : found.reverse();
}
