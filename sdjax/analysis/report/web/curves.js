// Draws the curves of families of runs with uPlot.

const DASHES = [[], [6, 4], [2, 3]];
const curves = { charts: [], hidden: new Set(), band: "range", single: false };

function showCurves(report) {
  const panel = document.getElementById("curves");
  const band = el(
    "select",
    { id: "band" },
    option("range", "least to most"),
    option("half", "95 % interval of the mean"),
    option("none", "none"),
  );
  band.onchange = () => redraw((curves.band = band.value));
  const single = el("input", { type: "checkbox", id: "single" });
  single.onchange = () => redraw((curves.single = single.checked));
  const more = el("select", { id: "more" }, option("", "choose a metric"));
  more.append(...Object.keys(report.series).map((name) => option(name, name)));
  const grid = el("div", { className: "charts" });
  more.onchange = () => {
    if (!more.value) return;
    const metrics = { [more.value]: "" };
    addChart(report, grid, { title: more.value, unit: "", help: "", metrics }, true);
    more.value = "";
  };
  panel.append(
    el(
      "div",
      { className: "controls" },
      labelled("Band over runs", band),
      el("label", { className: "field row" }, single, "each run"),
      labelled("Another metric", more),
      familyBoxes(report),
    ),
    el("p", {
      className: "help",
      textContent:
        "A line is the mean over the runs of a family. Drag to zoom, double-click to zoom out." +
        " The interval is Student\u2019s t over runs; a single run has none." +
        (report.thinned ? ` ${report.thinned}` : ""),
    }),
    grid,
  );
  for (const chart of report.charts) addChart(report, grid, chart, false);
  if (!report.charts.length) grid.append("The runs have no metrics yet.");
  // In the next frame, because a chart of a different width triggers the observer again.
  new ResizeObserver(() => requestAnimationFrame(fitCharts)).observe(grid);
}

function fitCharts() {
  for (const chart of curves.charts) {
    const width = chart.canvas.clientWidth;
    if (width && !chart.plot) draw(chart);
    else if (width && width !== chart.plot.width) chart.plot.setSize({ width, height: HEIGHT });
  }
}

function familyBoxes(report) {
  const boxes = report.families.map((name, i) => {
    const box = el("input", { type: "checkbox", checked: true });
    box.onchange = () => {
      if (box.checked) curves.hidden.delete(i);
      else curves.hidden.add(i);
      redraw();
    };
    const swatch = el("span", { className: "swatch" });
    swatch.style.background = colourOf(i);
    const runs = report.runs.filter((run) => run.family === i).length;
    const label = runs > 1 ? `${name} (${runs} runs)` : name;
    return el("label", { className: "field row" }, box, swatch, label);
  });
  return el("div", { className: "families", role: "group", "aria-label": "Families" }, ...boxes);
}

const HEIGHT = 240;

function addChart(report, grid, spec, first) {
  const canvas = el("div", { className: "canvas", role: "img" });
  const readout = el("div", { className: "readout" });
  const data = el("details", {}, el("summary", { textContent: "as a table" }));
  const chart = { report, spec, canvas, readout, plot: null };
  data.ontoggle = () => {
    data.querySelector("table")?.remove();
    if (data.open) data.append(chartTable(chart));
  };
  const unit = spec.unit ? ` (${spec.unit})` : "";
  canvas.setAttribute("aria-label", describe(chart));
  const figure = el(
    "figure",
    {},
    el("figcaption", { title: spec.help, textContent: spec.title + unit }),
    canvas,
    readout,
    data,
  );
  if (first) grid.prepend(figure);
  else grid.append(figure);
  curves.charts.push(chart);
  draw(chart);
}

/** Returns the lines of a chart: one per metric and family that has it. */
function linesOf(chart) {
  return Object.entries(chart.spec.metrics).flatMap(([metric, label], dash) =>
    chart.report.series[metric].flatMap((values, family) =>
      values === null || curves.hidden.has(family)
        ? []
        : [{ values, family, dash, name: chart.report.families[family] + (label && `, ${label}`) }],
    ),
  );
}

function bandOf(values) {
  if (curves.band === "none" || values.runs.length < 2) return null;
  if (curves.band === "range") return [values.low, values.high];
  const edge = (sign) =>
    values.mean.map((m, i) => (values.half[i] === null ? null : m + sign * values.half[i]));
  return [edge(-1), edge(1)];
}

function draw(chart) {
  chart.plot?.destroy();
  chart.plot = null;
  const width = chart.canvas.clientWidth;
  const lines = linesOf(chart);
  if (!width || !lines.length) return;
  const series = [{}];
  const bands = [];
  const tables = lines.map((line) => {
    const colour = colourOf(line.family);
    const columns = [line.values.steps];
    const add = (column, how) => {
      columns.push(column);
      series.push({ spanGaps: true, points: { show: column.length < 40 }, ...how });
    };
    const band = bandOf(line.values);
    if (band) {
      bands.push({ series: [series.length + 1, series.length], fill: `${colour}33` });
      for (const edge of band) add(edge, { stroke: "transparent", points: { show: false } });
    }
    if (curves.single && line.values.runs.length > 1) {
      for (const run of line.values.runs) add(run, { stroke: `${colour}88`, width: 1 });
    }
    line.at = series.length;
    add(line.values.mean, { stroke: colour, width: 2, dash: DASHES[line.dash % DASHES.length] });
    return columns;
  });
  const axis = {
    stroke: css("--muted"),
    grid: { stroke: css("--line"), width: 1 },
    ticks: { stroke: css("--line"), width: 1 },
  };
  const options = {
    width,
    height: HEIGHT,
    legend: { show: false },
    scales: { x: { time: false } },
    cursor: { sync: { key: "steps" }, points: { size: 6 } },
    axes: [
      { ...axis, label: "step", labelSize: 18, size: 34 },
      { ...axis, size: 58, values: (_, ticks) => ticks.map((t) => number(t, 4)) },
    ],
    series,
    bands,
    hooks: { setCursor: [(plot) => read(chart, lines, plot)] },
  };
  chart.plot = new uPlot(options, uPlot.join(tables), chart.canvas);
  chart.lines = lines;
  read(chart, lines, chart.plot);
}

/** Writes the values at the cursor below a chart, or the last values without a cursor. */
function read(chart, lines, plot) {
  const steps = plot.data[0];
  const at = plot.cursor.idx ?? steps.length - 1;
  const rows = lines.map((line) => {
    const values = line.values;
    let i = values.steps.length - 1;
    while (i > 0 && values.steps[i] > steps[at]) i -= 1;
    const band = bandOf(values);
    const low = band && band[0][i] !== null;
    const interval = low ? ` (${number(band[0][i])} to ${number(band[1][i])}, n = ${values.number[i]})` : "";
    const swatch = el("span", { className: `swatch dash${line.dash % DASHES.length}` });
    swatch.style.borderColor = colourOf(line.family);
    const step = values.steps[i] === steps[at] ? "" : `, step ${values.steps[i]}`;
    return el("li", {}, swatch, `${line.name}: `, el("b", { textContent: number(values.mean[i]) }), interval + step);
  });
  chart.readout.replaceChildren(el("span", { textContent: `step ${number(steps[at])}` }), el("ul", {}, ...rows));
}

function describe(chart) {
  const ends = linesOf(chart).map((line) => {
    const mean = line.values.mean;
    return `${line.name}: from ${number(mean[0])} to ${number(mean.at(-1))}`;
  });
  return `${chart.spec.title} by step. ${ends.join("; ")}`;
}

function chartTable(chart) {
  const lines = linesOf(chart);
  const steps = [...new Set(lines.flatMap((line) => line.values.steps))].sort((a, b) => a - b);
  const rows = steps.map((step) => [
    number(step),
    ...lines.map((line) => {
      const i = line.values.steps.indexOf(step);
      return i < 0 ? "" : number(line.values.mean[i]);
    }),
  ]);
  return table(["step", ...lines.map((line) => line.name)], rows);
}

function redraw() {
  for (const chart of curves.charts) draw(chart);
}
