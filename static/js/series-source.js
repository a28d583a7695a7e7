/* Series of a run, asked for once: the charts that ask in one turn of the page share a request.

   It knows no chart. What a run says after the answer's seq comes as events. */
const POINTS = 600;
const gathering = new Map();

export function fetchSeries(src, keys) {
  const batch = gathering.get(src) ?? begin(src);
  for (const key of keys) batch.keys.add(key);
  return batch.answer;
}

function begin(src) {
  const batch = { keys: new Set() };
  batch.answer = Promise.resolve().then(() => {
    gathering.delete(src);
    return ask(src, [...batch.keys]);
  });
  gathering.set(src, batch);
  return batch;
}

async function ask(src, keys) {
  const url = new URL(src, location.href);
  url.searchParams.set("keys", keys.join(","));
  url.searchParams.set("points", POINTS);
  const answer = await fetch(url, { headers: { Accept: "application/json" } });
  if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
  return answer.json();
}
