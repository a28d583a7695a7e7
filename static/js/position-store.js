/* Metrics by step and position chunk of one stage: what the server sent and the events after it, each
   step once. A chunk without a value is null. It knows nothing of drawing. */

export class PositionStore {
  constructor() {
    this.clear();
  }

  clear() {
    this.stages = new Map();
    this.loaded = new Set();
  }

  /* Grids of some metrics. Says whether they cover the steps that are here already: a run that went on
     meanwhile may be thinned otherwise, and then all has to be asked for at once. */
  load(metrics, grids) {
    const first = this.loaded.size === 0;
    for (const grid of grids) {
      const stage = this.stage(grid.stage_index, grid.edges);
      grid.x.forEach((x, row) => {
        if (!first && !stage.rows.has(x)) stage.strange = true;
        const known = stage.rows.get(x) ?? { counts: grid.positions[row], values: {} };
        for (const metric of metrics) known.values[metric] = grid.values[metric]?.[row] ?? [];
        stage.rows.set(x, known);
      });
      stage.x = [...stage.rows.keys()].sort((a, b) => a - b);
    }
    for (const metric of metrics) this.loaded.add(metric);
    return ![...this.stages.values()].some((stage) => stage.strange);
  }

  stage(index, edges) {
    if (!this.stages.has(index)) this.stages.set(index, { edges, rows: new Map(), x: [] });
    const stage = this.stages.get(index);
    if (edges.length > stage.edges.length) stage.edges = edges;
    return stage;
  }

  /* A step's event, whose step counts from the start of its stage at `offset`. */
  add(event, offset) {
    const { edges, positions, values } = event.payload;
    const stage = this.stage(event.stage_index ?? 0, edges);
    const x = offset + (event.step ?? 0);
    if (!stage.rows.has(x)) {
      const last = stage.x.at(-1) ?? -Infinity;
      if (x > last) stage.x.push(x);
      else stage.x = [...stage.x, x].sort((a, b) => a - b);
    }
    stage.rows.set(x, { counts: positions, values });
  }

  get indexes() {
    return [...this.stages.keys()].sort((a, b) => a - b);
  }

  /* One metric of one stage as a table: a row a step. */
  grid(index, metric) {
    const stage = this.stages.get(index);
    if (!stage?.x.length) return null;
    const rows = stage.x.map((x) => stage.rows.get(x));
    return {
      x: stage.x,
      edges: stage.edges,
      counts: rows.map((row) => row.counts),
      values: rows.map((row) => row.values[metric] ?? []),
    };
  }

  /* Mean by chunk over the steps up to and with `x`, `width` steps long, weighed by the positions that
     were scored, and the lowest and the highest of those steps. */
  window(index, metric, x, width) {
    const stage = this.stages.get(index);
    const chunks = stage.edges.length - 1;
    const inside = stage.x.filter((step) => step <= x && step > x - width);
    const rows = inside.map((step) => stage.rows.get(step));
    const found = Array.from({ length: chunks }, (_, chunk) => summary(rows, metric, chunk));
    return {
      steps: inside,
      mean: found.map((one) => one.mean),
      low: found.map((one) => one.low),
      high: found.map((one) => one.high),
      count: found.map((one) => one.count),
    };
  }
}

function summary(rows, metric, chunk) {
  const found = { mean: null, low: null, high: null, count: 0 };
  let sum = 0;
  let weight = 0;
  for (const { values, counts } of rows) {
    const value = values[metric]?.[chunk] ?? null;
    found.count += counts[chunk] ?? 0;
    if (value === null) continue;
    const heavy = counts[chunk] || 1;
    sum += value * heavy;
    weight += heavy;
    found.low = found.low === null ? value : Math.min(found.low, value);
    found.high = found.high === null ? value : Math.max(found.high, value);
  }
  if (weight) found.mean = sum / weight;
  return found;
}
