// Training curves of the two chosen points.

/** A metric by step. series: [{colour, dashed, dots, points: [[step, value]]}]. */
function drawCurve(host, series) {
  const width = Math.max(host.clientWidth, 200),
    height = 150,
    margin = { left: 48, right: 8, top: 6, bottom: 22 };
  const all = series.flatMap((one) => one.points);
  const { svg, x, y } = framed(
    width,
    height,
    margin,
    extent(
      all.map((p) => p[0]),
      0.02,
    ),
    extent(all.map((p) => p[1])),
    { xTicks: 4, yTicks: 4 },
  );
  for (const one of series) {
    const spots = one.points.map(([step, value]) => [x(step), y(value)]);
    const d = spots.map(([a, b], i) => `${i ? "L" : "M"}${a.toFixed(1)},${b.toFixed(1)}`).join("");
    svg.append(
      shape("path", {
        d,
        fill: "none",
        "stroke-width": 1.6,
        "stroke-dasharray": one.dashed ? "5 3" : "none",
        style: { stroke: one.colour },
      }),
    );
    if (one.dots)
      for (const [cx, cy] of spots) svg.append(shape("circle", { cx, cy, r: 3, style: { fill: one.colour } }));
  }
  host.append(svg);
}

const FIRST = 6;
let showAll = false;

function drawCurves() {
  const figures = [...panels()].map(([title, series]) => [
    element("figure", {}, element("figcaption", { textContent: title })),
    [...series.values()],
  ]);
  const more = element(
    "details",
    { open: showAll },
    element("summary", { textContent: `${figures.length - FIRST} more` }),
  );
  more.append(element("div", { className: "curves" }, ...figures.slice(FIRST).map(([figure]) => figure)));
  at("curves").replaceChildren(
    element("p", { className: "note", textContent: curvesNote() }),
    ...figures.slice(0, FIRST).map(([figure]) => figure),
    ...(figures.length > FIRST ? [more] : []),
  );
  const draw = (some) => some.forEach(([figure, series]) => drawCurve(figure, series));
  draw(figures.slice(0, showAll ? figures.length : FIRST));
  more.ontoggle = () => {
    if (more.open && !showAll) draw(figures.slice(FIRST)); // closed, it has no width to draw in
    showAll = more.open;
    if (!showAll) more.querySelectorAll("svg").forEach((svg) => svg.remove());
  };
}

const bothPoints = () => [...new Set([sides.a.point, sides.b.point])];

/** Metric -> its series; training and held-out values of a metric are in one panel. */
function panels() {
  const seriesByPanel = new Map();
  for (const point of bothPoints()) {
    for (const { step, ...metrics } of point.curves) {
      for (const [metric, value] of Object.entries(metrics)) {
        if (typeof value === "number") seriesOf(seriesByPanel, point, metric).points.push([step, value]);
      }
    }
  }
  return seriesByPanel;
}

function seriesOf(seriesByPanel, point, metric) {
  const dots = metric.startsWith("eval/");
  const panel = dots ? metric.slice("eval/".length) : metric;
  if (!seriesByPanel.has(panel)) seriesByPanel.set(panel, new Map());
  const panelSeries = seriesByPanel.get(panel);
  const key = `${point.name} ${dots}`;
  const made = { colour: colour(point.method), dashed: point !== sides.a.point, dots, points: [] };
  if (!panelSeries.has(key)) panelSeries.set(key, made);
  return panelSeries.get(key);
}

function curvesNote() {
  const notes = [`Solid: A, ${sides.a.point.name}.`, `Dashed: B, ${sides.b.point.name}.`, "Dots: held-out data."];
  const untrained = bothPoints()
    .filter((p) => !p.curves.length)
    .map((p) => p.name);
  if (untrained.length) notes.push(`Not recorded: ${untrained.join(", ")}.`);
  return notes.join(" ");
}
