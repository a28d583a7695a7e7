/* The points of a chart: a snapshot from the server and the events after it, each step once.

   A point's x is its stage's offset plus its step. A step that comes again in a later attempt replaces
   the point and drops what the older attempt had after it. It knows nothing of drawing. */

const COLUMNS = ["x", "last", "min", "max", "nonfinite"];

export class SeriesStore {
  /* The latest value of a reference key is a level to compare with, not a series. Bound keys, a lower
     and an upper one, are the band of the first key. */
  constructor(keys, referenceKeys = [], boundKeys = []) {
    this.keys = keys;
    this.referenceKeys = referenceKeys;
    this.boundKeys = boundKeys;
    this.series = new Map(keys.map((key) => [key, empty()]));
    this.stages = [];
    this.seq = -1;
    this.references = new Map();
  }

  load({ seq, series, stages }) {
    this.seq = seq;
    this.stages = [...stages];
    for (const key of this.keys) {
      const { x = [], last = [], min = last, max = last, nonfinite = [] } = series[key] ?? {};
      const counts = x.map((_, index) => nonfinite[index] ?? 0);
      const columns = { x, last, min, max, nonfinite: counts };
      for (const name of COLUMNS) this.series.get(key)[name] = [...columns[name]];
    }
    this.bound(series);
    for (const key of this.referenceKeys) {
      const value = series[key]?.last.at(-1) ?? null;
      if (value !== null) this.references.set(key, value);
    }
  }

  bound(series) {
    const own = this.series.get(this.keys[0]);
    this.boundKeys.forEach((key, index) => {
      const { x = [], last = [] } = series[key] ?? {};
      const at = new Map(x.map((value, row) => [value, last[row]]));
      const column = own[index ? "max" : "min"];
      own.x.forEach((value, row) => (column[row] = at.get(value) ?? column[row]));
    });
  }

  /* Takes events in order and says whether anything that is drawn has changed. */
  apply(events) {
    const fresh = events.filter((event) => event.seq > this.seq);
    if (fresh.length) this.seq = fresh.at(-1).seq;
    return fresh.map((event) => this.take(event)).some(Boolean);
  }

  take(event) {
    const { kind, payload } = event;
    if (kind === "job_started") return this.plan(payload.steps_by_stage);
    if (kind === "stage_started") return this.begin(event);
    if (kind !== "metrics" && kind !== "evaluation") return false;
    const referred = this.refer(payload.values);
    return this.values(event, payload.values, payload.nonfinite ?? {}) || referred;
  }

  plan(stepsByStage) {
    let offset = 0;
    this.stages = stepsByStage.map((steps, index) => {
      const stage = { kind: "", ...this.stages[index], index, offset, steps };
      offset += steps;
      return stage;
    });
    return true;
  }

  begin({ attempt, stage_index: index, payload }) {
    const stage = this.stages[index] ?? { index, offset: this.end(), steps: payload.steps };
    this.stages[index] = { ...stage, kind: payload.stage_kind };
    if (attempt > 1) this.dropAfter(stage.offset + (payload.resumed_from_step ?? 0));
    return true;
  }

  end() {
    return this.stages.reduce((end, stage) => Math.max(end, stage.offset + stage.steps), 0);
  }

  values(event, values, nonfinite) {
    if (event.step === null || event.step === undefined) return false;
    const x = (this.stages[event.stage_index]?.offset ?? 0) + event.step;
    const present = this.keys.filter((key) => key in values);
    for (const key of present) {
      const [min, max] = key === this.keys[0] ? this.boundKeys.map((bound) => values[bound]) : [];
      const point = { x, value: values[key], min, max, bad: key in nonfinite };
      this.put(this.series.get(key), point, event.attempt);
    }
    return present.length > 0;
  }

  put(series, { x, value, min, max, bad }, attempt) {
    const index = lowerBound(series.x, x);
    if (index < series.x.length && attempt !== series.attempt) truncate(series, index);
    const replaced = series.x[index] === x ? 1 : 0;
    const row = { x, last: value, min: min ?? value, max: max ?? value, nonfinite: bad ? 1 : 0 };
    for (const name of COLUMNS) series[name].splice(index, replaced, row[name]);
    series.attempt = attempt;
  }

  dropAfter(x) {
    for (const series of this.series.values()) truncate(series, lowerBound(series.x, x + 1e-9));
  }

  refer(values) {
    const present = this.referenceKeys.filter((key) => (values[key] ?? null) !== null);
    for (const key of present) this.references.set(key, values[key]);
    return present.length > 0;
  }

  count() {
    return Math.max(0, ...[...this.series.values()].map((series) => series.x.length));
  }

  /* Aligned columns for drawing: null is a gap, undefined a step at which this key has no row. */
  table() {
    const all = [...this.series.values()];
    const x = mergeSorted(all.map((series) => series.x));
    const at = new Map(x.map((value, index) => [value, index]));
    const columns = all.map((series) =>
      Object.fromEntries(
        ["last", "min", "max"].map((name) => {
          const column = new Array(x.length).fill(undefined);
          series.x.forEach((value, index) => (column[at.get(value)] = series[name][index]));
          return [name, column];
        }),
      ),
    );
    return { x, columns };
  }

  nonfinite() {
    const bad = new Set();
    for (const series of this.series.values())
      series.x.forEach((x, index) => series.nonfinite[index] && bad.add(x));
    return [...bad].sort((a, b) => a - b);
  }

  summary(key) {
    const { x, last, min, max } = this.series.get(key);
    const defined = last.flatMap((value, index) => (value === null ? [] : [index]));
    if (!defined.length) return null;
    const first = defined[0];
    const end = defined.at(-1);
    return {
      points: x.length,
      first: { x: x[first], value: last[first] },
      last: { x: x[end], value: last[end] },
      lowest: defined.reduce((low, index) => Math.min(low, min[index]), Infinity),
      highest: defined.reduce((high, index) => Math.max(high, max[index]), -Infinity),
    };
  }
}

function empty() {
  return { x: [], last: [], min: [], max: [], nonfinite: [], attempt: null };
}

function truncate(series, length) {
  for (const name of COLUMNS) series[name].length = Math.min(series[name].length, length);
}

function lowerBound(values, wanted) {
  let low = 0;
  let high = values.length;
  if (!high || values[high - 1] < wanted) return high;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] < wanted) low = middle + 1;
    else high = middle;
  }
  return low;
}

function mergeSorted(lists) {
  if (lists.length === 1) return lists[0].slice();
  return [...new Set(lists.flat())].sort((a, b) => a - b);
}
