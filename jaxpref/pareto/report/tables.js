// Tables of points and of methods.

/** Columns of points: {title, value(point), text: as words, show(value)}; `value` is what sorting goes by. */
function columns() {
  const first = [
    { title: "point", text: true, value: (p) => p.name },
    { title: "method", text: true, value: (p) => styles[p.method].label },
  ];
  if (new Set(front.points.map((p) => p.seed)).size > 1) first.push({ title: "seed", value: (p) => p.seed });
  const weights = (p) =>
    p.weights
      ? weightsOf(p)
          .map((w) => w.toFixed(2))
          .join(" / ")
      : "–";
  first.push({
    title: `weights: ${objectives.join(" / ")}`,
    value: (p) => p.weights && weightsOf(p)[0],
    show: (_, p) => [weights(p)],
  });
  const all = [...measured()].map(([m, o]) => [m, estimates(`${o}: ${m}`, (p) => p.estimates[m]?.[o] ?? null)]);
  const of = (axis) => all.filter(([m]) => (m === measure) === axis).map(([, column]) => column);
  return [...first, ...of(true), costs("FLOPs", "flops", flops), costs("time", "seconds", time), ...of(false)];
}

/** Every [measure, objective] that some point has. */
function measured() {
  const pairs = front.points.flatMap((p) =>
    Object.entries(p.estimates).flatMap(([m, of]) => Object.keys(of).map((o) => [m, o])),
  );
  return new Map(pairs.map((pair) => [pair.join("/"), pair])).values();
}

const small = (text) => element("small", { textContent: text });

/** As many decimals for all as show the largest of them to three digits. */
function estimates(title, of) {
  const largest = Math.max(...front.points.map((p) => Math.abs(of(p)?.value ?? 0)), 1e-6);
  const decimals = Math.min(Math.max(2 - Math.floor(Math.log10(largest)), 0), 8);
  const text = (x) => x.toFixed(decimals).replace(/^-(0\.?0*)$/, "$1"); // no minus before nothing
  const show = (_, p) => {
    const e = of(p);
    if (!e) return ["–"];
    return e.low === null ? [text(e.value)] : [text(e.value), small(`${text(e.low)} to ${text(e.high)}`)];
  };
  return { title, value: (p) => of(p)?.value ?? null, show };
}

const added = (values) => (values.includes(null) ? null : values.reduce((sum, value) => sum + value, 0));

function costs(title, key, text) {
  const shared = (p) => added(Object.values(p.cost.shared).map((work) => work[key]));
  const show = (own, p) => [
    text(own),
    ...(p.cost.together > 1 ? [small(`1/${p.cost.together} of a run`)] : []),
    small(`shared ${text(shared(p))}`),
  ];
  return { title: `${title}, own`, value: (p) => p.cost.own[key], show };
}

function radio(side, point) {
  const input = element("input", {
    type: "radio",
    name: side,
    value: point.name,
    checked: sides[side].point === point,
  });
  input.setAttribute("aria-label", `${point.name} as ${side.toUpperCase()}`);
  input.onchange = () => {
    choosePoint(side, point.name);
    changed();
    at("points").querySelector(`input[name="${side}"]:checked`)?.focus();
  };
  return element("td", {}, input);
}

function heading({ title, text }, i) {
  const button = element("button", {
    type: "button",
    textContent: title + (view.sort === i ? (view.rising ? " ↑" : " ↓") : ""),
  });
  button.onclick = () => {
    Object.assign(view, view.sort === i ? { rising: !view.rising } : { sort: i, rising: Boolean(text) });
    drawPoints();
    at("points").querySelectorAll("th button")[i].focus();
  };
  const made = element("th", { className: text ? "text" : "", scope: "col" }, button);
  if (view.sort === i) made.ariaSort = view.rising ? "ascending" : "descending";
  return made;
}

function cell({ value, show, text }, point) {
  const content = show ? show(value(point), point) : [String(value(point))];
  return element("td", { className: text ? "text" : "" }, ...content);
}

function drawPoints() {
  const of = columns(),
    rows = [...front.points];
  if (view.sort !== null) {
    const { value } = of[view.sort];
    const compare = (a, b) => (a === null) - (b === null) || (view.rising ? 1 : -1) * (a < b ? -1 : a > b ? 1 : 0);
    rows.sort((p, q) => compare(value(p), value(q)));
  }
  const head = element(
    "tr",
    {},
    ...["A", "B"].map((s) => element("th", { textContent: s, scope: "col" })),
    ...of.map(heading),
  );
  const body = rows.map((p) => {
    const row = element("tr", {
      className: [dominated.has(p.name) && "dominated", chosenAs(p.name) && "chosen"].filter(Boolean).join(" "),
    });
    row.dataset.row = p.name;
    row.append(radio("a", p), radio("b", p), ...of.map((column) => cell(column, p)));
    return row;
  });
  at("points").replaceChildren(element("thead", {}, head), element("tbody", {}, ...body));
  at("points-note").textContent =
    "Own: the cost of the point's own training, or its share of a run that trained several. Shared: the cost of " +
    "work that other points need as well (policies of the other objectives, scores), in full; it was done once. " +
    "Dominated points are grey.";
}

/** Columns of methods, as for points. */
function methodColumns() {
  const spent = (v, s, key, shown) => [
    shown(v),
    ...(v ? [small(`${shown(v / s.points.length)} per point`), small(`${shown(s.separate_cost[key])} separately`)] : []),
  ];
  const ends = ({ low, high }) => (low === null ? [] : [small(`${short(low)} to ${short(high)}`)]);
  return [
    { title: "method", text: true, value: (s) => s.label },
    { title: "points", value: (s) => s.points.length },
    { title: "not dominated", value: (s) => s.points.filter((name) => !dominated.has(name)).length },
    { title: "hypervolume", value: (s) => s.hypervolume.value, show: (v, s) => [short(v), ...ends(s.hypervolume)] },
    { title: "share of the box", value: (s) => `${(100 * s.share).toFixed(1)}%` },
    { title: "FLOPs in all", value: (s) => s.cost.flops, show: (v, s) => spent(v, s, "flops", flops) },
    { title: "time in all", value: (s) => s.cost.seconds, show: (v, s) => spent(v, s, "seconds", time) },
  ];
}

function drawMethods() {
  const of = methodColumns();
  const head = of.map(({ title, text }) =>
    element("th", { textContent: title, className: text ? "text" : "", scope: "col" }),
  );
  const rows = results.sweeps.map((sweep) => element("tr", {}, ...of.map((column) => cell(column, sweep))));
  at("methods").replaceChildren(element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows));
  at("methods-note").textContent = methodsNote();
  drawMeasures();
  at("violations").replaceChildren(violations());
}

function methodsNote() {
  const above = objectives.map((o) => `${o} ${short(results.reference_point[o])}`).join(", ");
  const notes = [
    `Hypervolume: what the method's points dominate, above the reference point ${above}; single-objective DPO is`,
    "the end of every sweep. The box reaches from the reference point to the best value of each objective. In all:",
    "the points' own cost, and the shared cost once. Separately: at least, if every point were a pipeline of its own.",
  ];
  if (results.sweeps.some((s) => s.hypervolume.low !== null)) {
    const { level, resamples } = results.bootstrap;
    notes.push(
      `Intervals: ${100 * level}%, ${resamples} bootstrap resamples of the prompts; noise lifts a hypervolume,`,
    );
    notes.push("so its interval may lie mostly above its value.");
  }
  return notes.join(" ");
}

/** Measures of methods, a row each, and of the differences of two. */
function drawMeasures() {
  const names = results.measure_notes.map(([name]) => name);
  const label = (method) => styles[method].label;
  const rows = [
    ...results.measures.map((m) => [label(m.method), m.measures]),
    ...results.differences.map((d) => [`${label(d.method)} less ${label(d.baseline)}`, d.measures]),
  ];
  const value = (e) => {
    if (!e) return element("td", { textContent: "–" });
    const ends = e.low === null ? [] : [small(`${short(e.low)} to ${short(e.high)}`)];
    return element("td", {}, short(e.value), ...ends);
  };
  const head = ["method", ...names.map((name) => name.replaceAll("_", " "))];
  const body = rows.map(([title, of]) =>
    element("tr", {}, element("td", { className: "text", textContent: title }), ...names.map((name) => value(of[name]))),
  );
  at("measures").replaceChildren(
    element("thead", {}, element("tr", {}, ...head.map((title) => element("th", { textContent: title, scope: "col" })))),
    element("tbody", {}, ...body),
  );
  const notes = results.measure_notes.map(([name, note]) => `${name.replaceAll("_", " ")}: ${note}.`);
  at("measures-note").textContent = results.measures.length
    ? `${notes.join(" ")} Intervals are over prompts and, with several seeds, over seeds; those of differences are paired.`
    : "";
}

function violations() {
  if (!results.violations.length) {
    const text = "In no sweep did an objective get worse, beyond the intervals, when weight moved to it.";
    return element("p", { className: "note", textContent: text });
  }
  const items = results.violations.map((v) => {
    const values = `${shown(v.found_more)} against ${shown(v.found_less)}`;
    const text = `${v.objective} has more weight in ${v.more} than in ${v.less}, but is worse: ${values}`;
    return element("li", { textContent: `${styles[v.method].label}: ${text}` });
  });
  const summary = `${items.length} times an objective got more weight and became worse, beyond the intervals`;
  return element(
    "details",
    { open: items.length < 5 },
    element("summary", { textContent: summary }),
    element("ul", {}, ...items),
  );
}
