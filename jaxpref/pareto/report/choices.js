// What is shown, what is chosen, and the address that says so.

const { front, results, styles, labels, labelled_with, axes } = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const objectives = front.objectives,
  measure = front.measure,
  named = new Map(front.points.map((p) => [p.name, p]));
const dominated = new Set(results.dominated),
  hidden = new Set();
const sweepKey = (sweep) => `${sweep.method}@${sweep.seed}`;
const sweeps = new Map(results.sweeps.map((sweep) => [sweepKey(sweep), sweep]));
const estimate = (point, objective) => point.estimates[measure][objective];
const colour = (method) => `var(--m${Object.keys(styles).indexOf(method)})`;
Object.values(styles).forEach((look, i) =>
  document.documentElement.style.setProperty(`--m${i}`, `light-dark(${look.light}, ${look.dark})`),
);

const shown = (e) => (e.low === null ? short(e.value) : `${short(e.value)} [${short(e.low)}, ${short(e.high)}]`);
const normalised = (weights) => {
  const total = weights.reduce((a, b) => a + b, 0);
  return total > 0 ? weights.map((w) => w / total) : weights.map(() => 1 / weights.length);
};
const weightsOf = (point) => point.weights && normalised(objectives.map((o) => point.weights[o]));
const weightText = (weights) => objectives.map((o, j) => `${o} ${weights[j].toFixed(2)}`).join(" · ");
/** With a prefix of 1000s. */
function flops(value) {
  if (value === null) return "–";
  const step = value > 0 ? Math.min(Math.max(Math.floor(Math.log10(value) / 3), 0), 7) : 0;
  return short(value / 1000 ** step) + ["", " k", " M", " G", " T", " P", " E", " Z"][step];
}

function time(seconds) {
  if (seconds === null) return "–";
  if (seconds < 90) return `${short(seconds)} s`;
  return seconds < 5400 ? `${(seconds / 60).toFixed(1)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

// ---- what is chosen: on each side a sweep and one of its points, whose weights its sliders show

const members = (sweep) => [...sweep.points, ...sweep.ends].map((name) => named.get(name));
const ownSweep = (name) => results.sweeps.find((sweep) => sweep.points.includes(name));
const sides = { a: {}, b: {} };
const even = objectives.map(() => 1 / objectives.length);
const view = { x: 0, y: 1, prompt: 0, sort: null, rising: false };

function nearest(sweep, weights) {
  const distance = (point) => weightsOf(point).reduce((sum, w, j) => sum + (w - weights[j]) ** 2, 0);
  return members(sweep)
    .filter((p) => p.weights)
    .reduce((best, p) => (!best || distance(p) < distance(best) - 1e-12 ? p : best), null);
}

function choosePoint(side, name, sweep = ownSweep(name)) {
  const point = named.get(name);
  Object.assign(sides[side], { sweep, point, weights: weightsOf(point) });
}

/** The point nearest to the weights; the sliders then stand at its own. */
function chooseWeights(side, weights, sweep = sides[side].sweep) {
  const point = nearest(sweep, normalised(weights)) ?? members(sweep)[0];
  choosePoint(side, point.name, sweep);
}

/** The weights with that of objective j moved, and the others in proportion. */
function moved(weights, j, value) {
  const rest = 1 - weights[j];
  return weights.map((w, i) => {
    if (i === j) return value;
    return (1 - value) * (rest > 0 ? w / rest : 1 / (weights.length - 1));
  });
}

/** The nearest point with more weight (by > 0) or less on objective j. */
function chooseNext(side, j, by) {
  const { sweep, weights } = sides[side];
  const further = members(sweep).filter((p) => p.weights && (weightsOf(p)[j] - weights[j]) * by > 1e-12);
  const point = nearest({ points: further.map((p) => p.name), ends: [] }, weights);
  if (point) choosePoint(side, point.name, sweep);
}

function start() {
  const most = [...results.sweeps].filter((s) => s.method !== "dpo").sort((a, b) => b.points.length - a.points.length);
  const main = most.find((s) => members(s).some((p) => p.weights)) ?? results.sweeps[0];
  chooseWeights("a", even, main);
  const other =
    front.points.find((p) => p.method === "reference") ??
    front.points.find((p) => p !== sides.a.point) ??
    sides.a.point;
  choosePoint("b", other.name);
}

/** #w=0.3 or #w=0.2,0.3,0.5 chooses A's point nearest to these weights, #a=METHOD@SEED chooses its sweep and #a=METHOD@SEED/POINT its point;
 * b and wb are B's; prompt counts from 1; theme is light or dark. */
function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  for (const [side, key] of [
    ["a", "w"],
    ["b", "wb"],
  ]) {
    const [sweep, name] = (given.get(side) ?? "").split("/");
    const asked = sweeps.get(sweep) ?? sides[side].sweep;
    if (named.has(name)) choosePoint(side, name, asked);
    else if (asked !== sides[side].sweep) chooseWeights(side, sides[side].weights ?? even, asked);
    const weights = (given.get(key) ?? "").split(",").filter(Boolean).map(Number);
    if (weights.length === 1 && objectives.length === 2) weights.push(1 - weights[0]);
    if (weights.length === objectives.length && weights.every((w) => w >= 0 && w <= 1)) chooseWeights(side, weights);
  }
  const prompt = Number(given.get("prompt")) - 1;
  if (Number.isInteger(prompt) && prompt >= 0 && prompt < front.prompts.length) view.prompt = prompt;
  if (["light", "dark"].includes(given.get("theme"))) document.documentElement.style.colorScheme = given.get("theme");
}

let writing;
function writeAddress() {
  clearTimeout(writing); // browsers refuse many changes a second, as a dragged slider makes
  writing = setTimeout(() => history.replaceState(null, "", `#${address()}`), 300);
}

function address() {
  const kept = [];
  for (const [side, key] of [
    ["a", "w"],
    ["b", "wb"],
  ]) {
    const { sweep, point, weights } = sides[side];
    const reached = weights && nearest(sweep, weights) === point;
    kept.push(`${side}=${encodeURIComponent(sweepKey(sweep))}${reached ? "" : `/${encodeURIComponent(point.name)}`}`);
    if (reached)
      kept.push(`${key}=${(objectives.length === 2 ? weights.slice(0, 1) : weights).map((w) => Number(w.toFixed(3)))}`);
  }
  if (front.prompts.length) kept.push(`prompt=${view.prompt + 1}`);
  const theme = document.documentElement.style.colorScheme;
  return [...kept, ...(theme ? [`theme=${theme}`] : [])].join("&");
}
