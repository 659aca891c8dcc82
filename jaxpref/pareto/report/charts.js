"use strict";
// Drawing: elements, scales, the front, all objectives side by side.

const SVG = "http://www.w3.org/2000/svg";

/** An HTML element; properties are set as such, so text is never read as markup. */
function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key in made && key !== "list") made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

/** An SVG element; `style` holds CSS properties. */
function shape(tag, { style = {}, text, ...attributes } = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  Object.assign(made.style, style);
  if (text !== undefined) made.textContent = text;
  made.append(...children);
  return made;
}

// Paths of about the same area around (0, 0).
const MARKERS = {
  circle: "M5,0A5,5 0 1 1 -5,0A5,5 0 1 1 5,0Z",
  square: "M-4.5,-4.5H4.5V4.5H-4.5Z",
  diamond: "M0,-6.2L6.2,0L0,6.2L-6.2,0Z",
  up: "M0,-6L6,4.5H-6Z",
  down: "M0,6L6,-4.5H-6Z",
  star: "M0,-8L2.1,-2.7L7.6,-2.5L3.2,1.1L4.7,6.5L0,3.4L-4.7,6.5L-3.2,1.1L-7.6,-2.5L-2.1,-2.7Z",
  cross: "M-5.5,-3L-3,-5.5L0,-2.5L3,-5.5L5.5,-3L2.5,0L5.5,3L3,5.5L0,2.5L-3,5.5L-5.5,3L-2.5,0Z",
  hexagon: "M5.5,0L2.75,4.8H-2.75L-5.5,0L-2.75,-4.8H2.75Z",
};

/** Three significant digits. */
function short(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size > 0 && (size >= 1e6 || size < 1e-4)) return value.toExponential(2);
  return size >= 1000 ? value.toFixed(0) : size === 0 ? "0" : value.toPrecision(3);
}

/** Round numbers inside [low, high], about `count` of them. */
function ticks(low, high, count) {
  const rough = (high - low) / Math.max(count, 1);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5].find((factor) => factor * power >= rough) ?? 10);
  const numbers = [];
  for (let i = Math.ceil(low / step); i * step <= high; i++) numbers.push(Number((i * step).toPrecision(12)));
  return numbers;
}

/** The smallest and largest of the numbers, and some room. */
function extent(numbers, room = 0.06) {
  let low = Infinity,
    high = -Infinity;
  for (const x of numbers) {
    low = Math.min(low, x);
    high = Math.max(high, x);
  }
  if (!Number.isFinite(low)) return [0, 1];
  const by = high > low ? room * (high - low) : Math.abs(high) * 0.1 || 0.5;
  return [low - by, high + by];
}

const scale =
  ([low, high], from, to) =>
  (x) =>
    from + ((x - low) / (high - low)) * (to - from);

/** An SVG with grid, ticks and axis titles; returns it with its scales. */
function framed(width, height, margin, xs, ys, { xTitle, yTitle, xTicks, yTicks }) {
  const x = scale(xs, margin.left, width - margin.right),
    y = scale(ys, height - margin.bottom, margin.top);
  const svg = shape("svg", { width, height, viewBox: `0 0 ${width} ${height}` });
  for (const at of ticks(...xs, xTicks)) {
    svg.append(shape("line", { class: "grid", x1: x(at), x2: x(at), y1: margin.top, y2: height - margin.bottom }));
    svg.append(
      shape("text", {
        class: "tick",
        x: x(at),
        y: height - margin.bottom + 15,
        "text-anchor": "middle",
        text: String(at),
      }),
    );
  }
  for (const at of ticks(...ys, yTicks)) {
    svg.append(shape("line", { class: "grid", x1: margin.left, x2: width - margin.right, y1: y(at), y2: y(at) }));
    svg.append(
      shape("text", { class: "tick", x: margin.left - 6, y: y(at) + 4, "text-anchor": "end", text: String(at) }),
    );
  }
  if (xTitle)
    svg.append(
      shape("text", {
        x: (margin.left + width - margin.right) / 2,
        y: height - 6,
        "text-anchor": "middle",
        text: xTitle,
      }),
    );
  if (yTitle) {
    const middle = (margin.top + height - margin.bottom) / 2;
    svg.append(
      shape("text", { transform: `translate(13 ${middle}) rotate(-90)`, "text-anchor": "middle", text: yTitle }),
    );
  }
  return { svg, x, y };
}

/** Boxes [left, top, right, bottom] that labels keep clear of; `place` gives the first free box around a point. */
function labelPlaces(room, points) {
  const taken = points.map(([x, y]) => [x - 7, y - 7, x + 7, y + 7]);
  const free = (box) =>
    box[0] >= room[0] &&
    box[1] >= room[1] &&
    box[2] <= room[2] &&
    box[3] <= room[3] &&
    taken.every((other) => box[0] >= other[2] || box[2] <= other[0] || box[1] >= other[3] || box[3] <= other[1]);
  const around = [
    [1, -1],
    [1, 1],
    [-1, -1],
    [-1, 1],
    [0, -1],
    [0, 1],
    [1, 0],
    [-1, 0],
  ];
  return function place([x, y], text) {
    const width = 6.2 * text.length + 4,
      height = 13;
    for (const reach of [11, 17, 26]) {
      for (const [dx, dy] of around) {
        const away = dx && dy ? 0.7 * reach : reach;
        const cx = x + dx * (away + width / 2),
          cy = y + dy * (away + height / 2);
        const box = [cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2];
        if (free(box)) {
          taken.push(box);
          return { cx, cy, far: reach > 11 };
        }
      }
    }
    return null;
  };
}

/** The path through the points that no other one of them dominates, as a staircase from left to right. */
function staircase(points, x, y) {
  const sorted = [...points].sort((a, b) => b[0] - a[0] || b[1] - a[1]);
  let best = -Infinity;
  const kept = sorted.filter((p) => p[1] > best && ((best = p[1]), true)).reverse();
  return kept.map(([a, b], i) => (i ? `V${y(b)}H${x(a)}` : `M${x(a)},${y(b)}`)).join("");
}

/** The front in two objectives.
 * points: [{name, x, y (estimates), label, colour, marker, dominated, chosen, hint}]; lines: [{colour, points: [[x, y]]}];
 * on: {choose(name, second), hover(name, x, y)}. */
function drawFront(host, { points, lines, titles, limit, on }) {
  const width = Math.max(host.clientWidth, 280),
    height = Math.min(Math.max(0.62 * width, 340), 540);
  const margin = { left: 56, right: 14, top: 10, bottom: 42 };
  const range = (axis) =>
    extent(points.flatMap((p) => [p[axis].value, p[axis].low ?? p[axis].value, p[axis].high ?? p[axis].value]));
  const [xs, ys] = [range("x"), range("y")];
  const { svg, x, y } = framed(width, height, margin, xs, ys, {
    xTitle: titles[0],
    yTitle: titles[1],
    xTicks: Math.min(8, width / 90),
    yTicks: Math.min(8, height / 55),
  });
  svg.setAttribute("role", "group");
  svg.setAttribute("aria-label", `${titles[1]} against ${titles[0]}`);
  if (limit[0] >= xs[0] && limit[1] >= ys[0]) {
    svg.append(
      shape("path", {
        class: "limit",
        fill: "none",
        d: `M${x(limit[0])},${margin.top}V${y(limit[1])}H${width - margin.right}`,
      }),
    );
  }
  for (const line of lines) {
    svg.append(
      shape("path", {
        d: staircase(line.points, x, y),
        fill: "none",
        "stroke-width": 1.6,
        opacity: 0.8,
        style: { stroke: line.colour },
      }),
    );
  }
  for (const p of points) svg.append(bars(p, x, y));
  const spots = points.map((p) => [x(p.x.value), y(p.y.value)]);
  const place = labelPlaces([margin.left, margin.top, width - margin.right, height - margin.bottom], spots);
  const order = points.map((_, i) => i).sort((a, b) => Boolean(points[b].chosen) - Boolean(points[a].chosen));
  const labels = order.map((i) => label(points[i], spots[i], place)).filter(Boolean);
  points
    .map((_, i) => i)
    .sort((a, b) => points[b].dominated - points[a].dominated)
    .forEach((i) => svg.append(mark(points[i], spots[i], on)));
  svg.append(...labels);
  host.replaceChildren(svg);
  rove(host);
  return points.filter((p) => p.label || p.chosen).length - labels.length;
}

function bars(p, x, y) {
  const group = shape("g", { opacity: 0.45, style: { stroke: p.colour } });
  const line = (x1, y1, x2, y2) => group.append(shape("line", { x1, y1, x2, y2, "stroke-width": 1.2 }));
  if (p.x.low !== null) line(x(p.x.low), y(p.y.value), x(p.x.high), y(p.y.value));
  if (p.y.low !== null) line(x(p.x.value), y(p.y.low), x(p.x.value), y(p.y.high));
  return group;
}

function mark(p, [cx, cy], on) {
  const group = shape("g", {
    class: "point",
    transform: `translate(${cx} ${cy})`,
    role: "button",
    tabindex: -1,
    "data-point": p.name,
    "data-x": cx,
    "aria-label": p.hint,
    "aria-pressed": Boolean(p.chosen),
  });
  group.append(shape("circle", { class: "halo", r: 12 }));
  if (p.chosen) group.append(shape("circle", { class: "ring", r: 10 }));
  const fill = p.dominated ? "var(--grey)" : p.colour;
  group.append(
    shape("path", {
      d: MARKERS[p.marker],
      "stroke-width": 1.2,
      style: { fill, stroke: p.dominated ? p.colour : "var(--page)" },
    }),
  );
  group.addEventListener("click", (event) => on.choose(p.name, event.shiftKey));
  group.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    on.choose(p.name, event.shiftKey);
  });
  for (const kind of ["pointerenter", "focus"]) group.addEventListener(kind, () => on.hover(p, cx, cy));
  for (const kind of ["pointerleave", "blur"]) group.addEventListener(kind, () => on.hover(null));
  return group;
}

function label(p, spot, place) {
  const text = [p.chosen, p.label].filter(Boolean).join(" · ");
  const box = text && place(spot, text);
  if (!box) return null;
  const group = shape("g");
  if (box.far)
    group.append(
      shape("line", {
        x1: spot[0],
        y1: spot[1],
        x2: box.cx,
        y2: box.cy,
        "stroke-width": 0.7,
        opacity: 0.6,
        style: { stroke: p.colour },
      }),
    );
  group.append(
    shape("text", {
      class: p.chosen ? "label chosen" : "label",
      x: box.cx,
      y: box.cy + 4,
      "text-anchor": "middle",
      text,
      style: { fill: p.colour },
    }),
  );
  return group;
}

/** One tab stop for all points; arrow keys go from left to right. */
function rove(host) {
  const marks = [...host.querySelectorAll(".point")].sort((a, b) => a.dataset.x - b.dataset.x);
  if (marks.length) marks[0].setAttribute("tabindex", 0);
  marks.forEach((mark, i) =>
    mark.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      marks[(i + step + marks.length) % marks.length].focus();
    }),
  );
}

/** Every objective from its worst to its best value; one line per point. points: as for drawFront, with `values`. */
function drawParallel(host, { points, objectives, on }) {
  const width = Math.max(host.clientWidth, 280),
    height = 260,
    left = 60,
    right = 60,
    top = 30,
    bottom = 44;
  const svg = shape("svg", {
    width,
    height,
    viewBox: `0 0 ${width} ${height}`,
    role: "img",
    "aria-label": "all objectives side by side",
  });
  const at = (j) => left + (j * (width - left - right)) / (objectives.length - 1);
  const ranges = objectives.map((_, j) =>
    extent(
      points.map((p) => p.values[j]),
      0,
    ),
  );
  const y = (value, j) => scale(ranges[j], height - bottom, top)(value);
  objectives.forEach((name, j) => {
    svg.append(shape("line", { class: "axis", x1: at(j), x2: at(j), y1: top, y2: height - bottom }));
    svg.append(
      shape("text", { class: "tick", x: at(j), y: top - 8, "text-anchor": "middle", text: short(ranges[j][1]) }),
    );
    svg.append(
      shape("text", {
        class: "tick",
        x: at(j),
        y: height - bottom + 15,
        "text-anchor": "middle",
        text: short(ranges[j][0]),
      }),
    );
    svg.append(shape("text", { x: at(j), y: height - 8, "text-anchor": "middle", text: name }));
  });
  const rank = (p) => (p.chosen ? 2 : p.dominated ? 0 : 1);
  for (const p of [...points].sort((a, b) => rank(a) - rank(b))) {
    const d = p.values.map((value, j) => `${j ? "L" : "M"}${at(j)},${y(value, j)}`).join("");
    const line = shape(
      "path",
      {
        d,
        fill: "none",
        "stroke-width": p.chosen ? 3 : 1.4,
        opacity: p.chosen ? 1 : 0.75,
        "data-line": p.name,
        style: { stroke: p.dominated && !p.chosen ? "var(--grey)" : p.colour, cursor: "pointer" },
      },
      shape("title", { text: p.hint }),
    );
    line.addEventListener("click", (event) => on.choose(p.name, event.shiftKey));
    svg.append(line);
    if (p.chosen)
      svg.append(
        shape("text", {
          class: "label chosen",
          x: at(objectives.length - 1) + 10,
          y: y(p.values.at(-1), objectives.length - 1) + 4,
          text: p.chosen,
          style: { fill: p.colour },
        }),
      );
  }
  host.replaceChildren(svg);
}
