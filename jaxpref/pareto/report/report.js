// The page: the front, the answers, and what ties all together.

// ---- the front

const chosenAs = (name) =>
  ["a", "b"]
    .filter((side) => sides[side].point.name === name)
    .join("")
    .toUpperCase();

function hint(point) {
  const lines = [`${styles[point.method].label}: ${point.name}${dominated.has(point.name) ? " (dominated)" : ""}`];
  if (point.weights) lines.push(`weights: ${weightText(weightsOf(point))}`);
  for (const o of objectives) lines.push(`${axes[o]} ${shown(estimate(point, o))}`);
  return lines.join("\n");
}

function onChart() {
  const tip = element("div", { className: "tip", hidden: true, ariaHidden: "true" });
  at("chart").append(tip);
  return {
    choose: (name, second) => {
      choosePoint(second ? "b" : "a", name);
      changed();
      refocus(name);
    },
    hover: (p, x, y) => {
      tip.hidden = !p;
      if (!p) return;
      tip.textContent = p.hint;
      tip.style.left = `${Math.max(0, Math.min(x + 14, at("chart").clientWidth - tip.offsetWidth))}px`;
      tip.style.top = `${y + 14}px`;
    },
    tip,
  };
}

const refocus = (name) =>
  at("chart")
    .querySelector(`[data-point="${CSS.escape(name)}"]`)
    ?.focus({ preventScroll: true });

function drawFronts() {
  const on = onChart(),
    [x, y] = [objectives[view.x], objectives[view.y]];
  const visible = front.points.filter((p) => !hidden.has(p.method));
  const points = visible.map((p) => ({
    name: p.name,
    x: estimate(p, x),
    y: estimate(p, y),
    values: objectives.map((o) => estimate(p, o).value),
    hint: hint(p),
    label: objectives.length > 2 && dominated.has(p.name) ? "" : labels[p.name],
    colour: colour(p.method),
    marker: styles[p.method].marker,
    dominated: dominated.has(p.name),
    chosen: chosenAs(p.name),
  }));
  const lines =
    objectives.length > 2
      ? []
      : results.sweeps
          .filter((s) => !hidden.has(s.method))
          .map((s) => ({
            colour: colour(s.method),
            points: members(s).map((p) => [estimate(p, x).value, estimate(p, y).value]),
          }));
  const limit = [results.reference_point[x], results.reference_point[y]];
  const unlabelled = drawFront(at("chart"), { points, lines, titles: [axes[x], axes[y]], limit, on });
  at("chart").append(on.tip);
  at("chart-note").textContent = chartNote(unlabelled);
  if (objectives.length > 2) drawParallel(at("parallel"), { points, objectives, on });
}

function chartNote(unlabelled) {
  const notes = [
    "Bars: intervals.",
    "Grey: dominated, another point is at least as good in every objective and better in one.",
    "Dotted: the reference point of the hypervolumes.",
    `${labelled_with[0].toUpperCase()}${labelled_with.slice(1)}.`,
  ];
  if (objectives.length === 2) notes.push("Lines: what a method reaches, with single-objective DPO as its ends.");
  notes.push("Click or press Enter to choose A, with Shift to choose B; arrow keys go from point to point.");
  if (unlabelled) notes.push(`No room for ${unlabelled} ${unlabelled === 1 ? "label" : "labels"}.`);
  return notes.join(" ");
}

function drawLegend() {
  const buttons = Object.keys(styles).map((method) => {
    const icon = shape(
      "svg",
      { width: 18, height: 18, viewBox: "-9 -9 18 18", "aria-hidden": true, style: { width: "18px" } },
      shape("path", { d: MARKERS[styles[method].marker], style: { fill: colour(method) } }),
    );
    const button = element("button", { type: "button" }, icon, styles[method].label);
    button.dataset.method = method;
    button.setAttribute("aria-pressed", !hidden.has(method));
    button.onclick = () => {
      hidden.has(method) ? hidden.delete(method) : hidden.add(method);
      button.setAttribute("aria-pressed", !hidden.has(method));
      drawFronts();
    };
    return button;
  });
  at("legend").replaceChildren(...buttons);
  if (objectives.length < 3) return;
  at("axes").replaceChildren(
    ...["x", "y"].map((axis) => {
      const select = element(
        "select",
        {},
        ...objectives.map((o, j) => element("option", { value: j, textContent: o, selected: j === view[axis] })),
      );
      select.onchange = () => {
        view[axis] = Number(select.value);
        drawFronts();
      };
      return element("label", {}, axis === "x" ? "across" : "up", select);
    }),
  );
}

// ---- answers

function drawPrompts() {
  if (!front.prompts.length)
    return at("prompts").replaceChildren(element("p", { className: "note", textContent: "No answers were recorded." }));
  const select = element(
    "select",
    { ariaLabel: "prompt" },
    ...front.prompts.map((text, i) =>
      element("option", {
        value: i,
        textContent: `${i + 1}. ${text.length > 90 ? `${text.slice(0, 90)}…` : text}`,
        selected: i === view.prompt,
      }),
    ),
  );
  const go = (i) => {
    view.prompt = (i + front.prompts.length) % front.prompts.length;
    select.value = view.prompt;
    drawAnswers();
    writeAddress();
  };
  select.onchange = () => go(Number(select.value));
  const step = (text, by) =>
    element("button", { type: "button", textContent: text, onclick: () => go(view.prompt + by) });
  at("prompts").replaceChildren(step("‹ previous", -1), select, step("next ›", 1));
}

function buildSide(side) {
  const state = sides[side],
    choices = results.sweeps.map((s) => element("option", { value: sweepKey(s), textContent: s.label }));
  state.select = element("select", { ariaLabel: `method of ${side.toUpperCase()}` }, ...choices);
  state.select.onchange = () => {
    chooseWeights(side, state.weights ?? even, sweeps.get(state.select.value));
    changed();
  };
  const several = objectives.length > 2;
  const weighted = front.points.some((p) => p.weights) ? (several ? objectives : [objectives[0]]) : [];
  state.sliders = weighted.map((o) =>
    element("input", { type: "range", min: 0, max: 1, step: "any", ariaLabel: `weight of ${o}, ${side.toUpperCase()}` }),
  );
  state.outputs = state.sliders.map(() => element("output"));
  state.sliders.forEach((slider, j) => {
    slider.oninput = () => {
      chooseWeights(side, moved(state.weights, j, Number(slider.value)));
      changed();
    };
    slider.onkeydown = (event) => {
      const by = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
      if (!by) return;
      event.preventDefault(); // or it would move by less than the way to the next point, and back
      chooseNext(side, j, by);
      changed();
    };
  });
  const rows = state.sliders.map((slider, j) =>
    element(
      "label",
      {},
      element("span", { textContent: several ? objectives[j] : `weight of ${objectives[0]}` }),
      slider,
      state.outputs[j],
    ),
  );
  const ends = weighted.length !== 1
    ? []
    : [
        element(
          "div",
          { className: "ends" },
          element("span", { textContent: `all ${objectives[1]}` }),
          element("span", { textContent: `all ${objectives[0]}` }),
        ),
      ];
  state.title = element("h3", { ariaLive: "polite" });
  state.note = element("p", { className: "note" });
  state.body = element("div");
  return element(
    "article",
    { className: "side", id: `side-${side}` },
    state.title,
    element(
      "div",
      { className: "controls" },
      element("label", {}, element("span", { textContent: "method" }), state.select),
      ...rows,
    ),
    ...ends,
    state.note,
    state.body,
  );
}

function drawAnswers() {
  at("prompt").textContent = front.prompts[view.prompt] ?? "";
  at("prompt").hidden = !front.prompts.length;
  const pictures = front.pictures[view.prompt] ?? [];
  at("pictures").replaceChildren(...pictures.map((src) => element("img", { src, alt: "picture of the prompt" })));
  for (const side of ["a", "b"]) {
    const { point, sweep, weights, ...parts } = sides[side];
    parts.select.value = sweepKey(sweep);
    parts.title.textContent = `${side.toUpperCase()}: ${point.name}`;
    const reached = objectives.map((o) => `${axes[o]} ${shown(estimate(point, o))}`);
    parts.note.textContent = [...(point.weights ? [weightText(weightsOf(point))] : []), ...reached].join("; ");
    parts.sliders.forEach((slider, j) => {
      slider.disabled = !weights;
      slider.value = weights ? weights[j] : 0.5;
      parts.outputs[j].textContent = weights ? weights[j].toFixed(2) : "–";
    });
    const answer = point.answers[view.prompt];
    parts.body.replaceChildren(
      element("pre", {
        className: answer === undefined ? "note" : "answer",
        textContent: answer ?? "no answer was recorded",
      }),
      chips(side),
    );
  }
}

function chips(side) {
  const [mine, other] = [sides[side].point, sides[side === "a" ? "b" : "a"].point].map(
    (p) => (o) => p.rewards[o]?.[view.prompt],
  );
  const known = objectives.filter((o) => mine(o) !== undefined);
  return element(
    "ul",
    { className: "chips", ariaLabel: "rewards of this answer" },
    ...known.map((o) =>
      element("li", {
        textContent: `${o} ${short(mine(o))}${mine(o) > other(o) ? " ▲" : ""}`,
        className: mine(o) > other(o) ? "better" : "",
      }),
    ),
  );
}

// ---- all of it

function changed() {
  drawAll();
  writeAddress();
}

function drawAll() {
  drawFronts();
  drawAnswers();
  drawPoints();
  drawCurves();
}

function drawSummary() {
  const methods = new Set(front.points.map((p) => p.method)).size,
    kept = front.points.length - dominated.size;
  const answers = front.prompts.length ? `; answers to ${new Set(front.prompts).size} prompts` : "";
  at("summary").textContent =
    `${front.points.length} points of ${methods} methods, ${kept} not dominated; ` +
    `objectives: ${objectives.join(", ")}${answers}.`;
  at("about").textContent = JSON.stringify(front.about, null, 2);
}

function themeButton() {
  const root = document.documentElement,
    dark = () =>
      (root.style.colorScheme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const name = () => {
    at("theme").textContent = dark() ? "light" : "dark";
  };
  at("theme").onclick = () => {
    root.style.colorScheme = dark() ? "light" : "dark";
    name();
    writeAddress();
  };
  name();
}

start();
readAddress();
at("sides").replaceChildren(buildSide("a"), buildSide("b"));
themeButton();
drawSummary();
drawLegend();
drawPrompts();
drawMethods();
drawAll();
addEventListener("hashchange", () => {
  readAddress();
  drawPrompts();
  drawAll();
});
let widthDrawn = innerWidth;
addEventListener("resize", () => {
  if (innerWidth !== widthDrawn) {
    widthDrawn = innerWidth;
    drawFronts();
    drawCurves();
  }
});
