// Shows all curves, with controls for axis, smoothing and bands.

function showCurves(report) {
  const panel = document.getElementById("curves");
  const look = looks.curves;
  const change = (name, value) => {
    look[name] = value;
    redraw(["curves"]);
  };
  const choice = (id, name, ...options) => {
    const select = el("select", { id }, ...options);
    select.onchange = () => change(name, select.value);
    return select;
  };
  const box = (id, name, label) => {
    const input = el("input", { type: "checkbox", id, checked: look[name] });
    input.onchange = () => change(name, input.checked);
    return el("label", { className: "field row" }, input, label);
  };
  const axis = choice("axis", "axis", option("step", "step"), option("tokens", "tokens"), option("seconds", "time in steps"));
  const band = choice(
    "band",
    "band",
    option("range", "least to most of the runs"),
    option("half", "95 % interval over runs"),
    option("questions", "95 % interval over questions"),
    option("none", "none"),
  );
  const grid = el("div", { className: "charts" });
  const smooth = slider(look, (value) => change("smooth", value));
  panel.append(
    el(
      "div",
      { className: "controls" },
      labelled("Axis", axis),
      labelled("Smoothing", smooth),
      labelled("Band", band),
      report.families.length < report.runs.length ? box("single", "single", "each run") : null,
      report.warnings.length ? box("marks", "marks", "warnings") : null,
      report.more.length ? labelled("Another metric", moreMetrics(report, grid)) : null,
      familyBoxes(report),
    ),
    el("p", { className: "help", textContent: curvesHelp(report) }),
    grid,
  );
  for (const chart of report.charts) addChart(report, grid, chart, "curves");
  if (!report.charts.length) grid.append("The runs have no metrics yet.");
  watchWidth(grid);
}

function curvesHelp(report) {
  return (
    "A line is the mean over the runs of a family; n is the number of runs that have the step." +
    " An interval over runs is Student\u2019s t; a single run\u2019s accuracy has its interval over" +
    " questions. Smoothing is an exponential moving average; the raw line stays, faint." +
    " Time in steps leaves out evaluations and checkpoints. \u25bc marks an alarm, \u25bd a warning." +
    " Drag to zoom, double-click to zoom out." +
    (report.thinned ? ` ${report.thinned}` : "")
  );
}

/** Returns a slider of the weight of the moving average, with its value beside it. */
function slider(look, change) {
  const input = el("input", { type: "range", id: "smooth", min: 0, max: 0.99, step: 0.01, value: look.smooth });
  const shown = el("output", { htmlFor: "smooth", textContent: "none" });
  let wait;
  input.oninput = () => {
    const weight = Number(input.value);
    shown.textContent = weight ? weight.toFixed(2) : "none";
    cancelAnimationFrame(wait);
    wait = requestAnimationFrame(() => change(weight));
  };
  return el("span", { className: "pair" }, input, shown);
}

function moreMetrics(report, grid) {
  const more = el("select", { id: "more" }, option("", "choose a metric"));
  more.append(...report.more.map((name) => option(name, visible(name))));
  more.onchange = async () => {
    const name = more.value;
    if (!name) return;
    more.value = "";
    if (!report.series[name]) Object.assign(report.series, unfold(report, await block("more")));
    addChart(report, grid, { title: name, unit: "", help: "", metrics: { [name]: "" } }, "curves", true);
  };
  return more;
}

function familyBoxes(report) {
  const { hidden } = looks.curves;
  const boxes = report.families.map((name, i) => {
    const box = el("input", { type: "checkbox", checked: true });
    box.onchange = () => {
      if (box.checked) hidden.delete(i);
      else hidden.add(i);
      redraw(["curves"]);
    };
    const swatch = el("span", { className: "swatch" });
    swatch.style.background = colourOf(i);
    const runs = runsOf(report, i).length;
    const label = runs > 1 ? `${name} (${runs} runs)` : name;
    return el("label", { className: "field row" }, box, swatch, label);
  });
  return el("div", { className: "families", role: "group", "aria-label": "Families" }, ...boxes);
}
