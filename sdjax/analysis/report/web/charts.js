// Draws the curves of families of runs with uPlot, by step, tokens or time.

const DASHES = [[], [6, 4], [2, 3]];
const AXES = { step: "step", tokens: "tokens", seconds: "time" };
const STILL = 20; // a line of fewer points is not smoothed
const NEAR = 7; // pixels from the cursor to a mark that it names
const HEIGHT = { story: 170, curves: 240 };
// What a group of charts draws. The story stays as it is; the controls change the curves.
const LOOK = { axis: "step", band: "range", single: false, smooth: 0, marks: true };
const looks = {
  story: { ...LOOK, hidden: new Set(), charts: [] },
  curves: { ...LOOK, hidden: new Set(), charts: [] },
};

/** Adds to the series of metrics what the file leaves out because it follows from the rest. */
function unfold(report, series) {
  for (const families of Object.values(series)) {
    for (const values of families) {
      if (!values) continue;
      values.steps = report.grids[values.grid];
      if (values.runs) continue;
      values.runs = [values.mean];
      values.low = values.high = values.mean;
      values.number = values.mean.map(() => 1);
    }
  }
  return series;
}

/** Returns the numbers of the runs of a family, in the order of its columns. */
function runsOf(report, family) {
  return report.runs.flatMap((run, i) => (run.family === family ? [i] : []));
}

/** Returns steps on an axis by the clock of a run or family; null if it keeps no times. */
function along(steps, axis, clock) {
  if (axis === "step") return steps;
  if (!clock) return null;
  let i = 0;
  return steps.map((step) => {
    while (i + 1 < clock.steps.length && clock.steps[i + 1] <= step) i += 1;
    const [at, used] = [clock.steps[i], clock[axis][i]];
    if (step <= at || i + 1 === clock.steps.length) return used;
    const share = (step - at) / (clock.steps[i + 1] - at);
    return used + share * (clock[axis][i + 1] - used);
  });
}

/** Returns the exponential moving average of values, corrected for its beginning. */
function smoothed(values, weight) {
  let [sum, known] = [0, 0];
  return values.map((value) => {
    if (value === null) return null;
    sum = weight * sum + (1 - weight) * value;
    known = weight * known + (1 - weight);
    return sum / known;
  });
}

/** Returns seconds in the unit that suits the largest of them: a divisor and its name. */
function timeUnit(most) {
  if (most >= 2 * 3600) return [3600, "h"];
  return most >= 120 ? [60, "min"] : [1, "s"];
}

function addChart(report, grid, spec, kind, first = false) {
  const canvas = el("div", { className: "canvas", role: "img" });
  const readout = el("div", { className: "readout" });
  const chart = { report, spec, canvas, readout, kind, look: looks[kind], plot: null };
  canvas.style.height = `${HEIGHT[kind]}px`;
  canvas.setAttribute("aria-label", describe(chart));
  const unit = spec.unit ? ` (${spec.unit})` : "";
  const figure = el(
    "figure",
    { className: kind },
    el("figcaption", { title: spec.help, textContent: spec.title + unit }),
    spec.sentences ? tell(spec.sentences) : null,
    canvas,
    readout,
    tableOf(chart),
  );
  if (first) grid.prepend(figure);
  else grid.append(figure);
  chart.look.charts.push(chart);
  draw(chart);
}

function tableOf(chart) {
  const data = el("details", {}, el("summary", { textContent: "as a table" }));
  data.ontoggle = () => {
    data.querySelector("table")?.remove();
    if (data.open) data.append(chartTable(chart));
  };
  return data;
}

/** Returns the sentences of a panel; those of families bear their colours. */
function tell(sentences) {
  const items = sentences.map(({ text, family }) => {
    const swatch = family === null ? null : el("span", { className: "swatch" });
    if (swatch) swatch.style.background = colourOf(family);
    return el("li", {}, swatch, visible(text));
  });
  return el("ul", { className: "told" }, ...items);
}

/** Returns the lines of a chart: one per metric and family that has it. */
function linesOf(chart) {
  const { axis, hidden } = chart.look;
  const { report, spec } = chart;
  return Object.entries(spec.metrics).flatMap(([metric, label], dash) =>
    report.series[metric].flatMap((values, family) => {
      if (values === null || hidden.has(family)) return [];
      const x = along(values.steps, axis, report.clocks.families[family]);
      const name = report.families[family] + (label && `, ${label}`);
      return x ? [{ values, x, family, dash, name }] : [];
    }),
  );
}

/** Returns the edges of a band: over runs, or else the interval of an accuracy over questions. */
function bandOf(values, kind) {
  if (kind === "none") return null;
  if (values.runs.length > 1 && kind === "range") return [values.low, values.high];
  if (values.runs.length > 1 && kind === "half") {
    const edge = (sign) =>
      values.mean.map((m, i) => (values.half[i] === null ? null : m + sign * values.half[i]));
    return [edge(-1), edge(1)];
  }
  return values.least ? [values.least, values.most] : null;
}

/** Returns the tables, series and bands of lines in the form that uPlot takes. */
function plotted(chart, lines) {
  const { look, report } = chart;
  const series = [{}];
  const bands = [];
  const tables = [];
  const add = (columns, column, how) => {
    columns.push(column);
    series.push({ spanGaps: true, points: { show: column.length < 40 }, ...how });
  };
  for (const line of lines) {
    const colour = colourOf(line.family);
    const columns = [line.x];
    tables.push(columns);
    const band = bandOf(line.values, look.band);
    if (band) {
      bands.push({ series: [series.length + 1, series.length], fill: `${colour}2b` });
      for (const edge of band) add(columns, edge, { stroke: "transparent", points: { show: false } });
    }
    const smooth = look.smooth > 0 && line.x.length >= STILL;
    const main = { stroke: colour, width: 2, dash: DASHES[line.dash % DASHES.length] };
    if (smooth) {
      add(columns, line.values.mean, { stroke: `${colour}55`, width: 1, points: { show: false } });
      line.smooth = smoothed(line.values.mean, look.smooth);
    }
    add(columns, smooth ? line.smooth : line.values.mean, main);
    if (look.single && line.values.runs.length > 1) {
      const runs = runsOf(report, line.family);
      line.values.runs.forEach((values, i) => {
        const x = along(line.values.steps, look.axis, report.clocks.runs[runs[i]]);
        const own = [x];
        tables.push(own);
        add(own, smooth ? smoothed(values, look.smooth) : values, { stroke: `${colour}88`, width: 1 });
      });
    }
  }
  return { series, bands, tables };
}

function draw(chart) {
  chart.plot?.destroy();
  chart.plot = null;
  const width = chart.canvas.clientWidth;
  const lines = linesOf(chart);
  chart.canvas.classList.toggle("none", !lines.length);
  if (!width || !lines.length) return void chart.readout.replaceChildren(lines.length ? "" : absent(chart));
  const { look } = chart;
  const { series, bands, tables } = plotted(chart, lines);
  const most = Math.max(...lines.map((line) => line.x.at(-1)));
  const [divisor, unit] = look.axis === "seconds" ? timeUnit(most) : [1, ""];
  chart.unit = { divisor, unit };
  const axis = {
    stroke: css("--muted"),
    grid: { stroke: css("--line"), width: 1 },
    ticks: { stroke: css("--line"), width: 1 },
  };
  const label = unit ? `time in steps (${unit})` : AXES[look.axis];
  const scaled = divisor === 1 ? tables : tables.map(([x, ...rest]) => [x.map((v) => v / divisor), ...rest]);
  const ticks = (_, values) => values.map((value) => compact(value));
  const options = {
    width,
    height: HEIGHT[chart.kind],
    legend: { show: false },
    scales: { x: { time: false } },
    cursor: { sync: { key: chart.kind }, points: { size: 6 } },
    axes: [
      { ...axis, label, labelSize: 18, size: 34, values: ticks },
      { ...axis, size: 58, values: (_, ticked) => ticked.map((t) => number(t, 4)) },
    ],
    series,
    bands,
    hooks: { setCursor: [(plot) => read(chart, lines, plot)], draw: [(plot) => drawMarks(chart, plot)] },
  };
  chart.marks = marksOf(chart, divisor);
  chart.plot = new uPlot(options, uPlot.join(scaled), chart.canvas);
  chart.lines = lines;
  read(chart, lines, chart.plot);
}

function absent(chart) {
  const { metrics } = chart.spec;
  if (!Object.keys(metrics).length) return "";
  return chart.look.axis === "step" ? "no family is chosen" : "the runs keep no times";
}

/** Returns a number of tokens or steps in a few characters: 1.5 M. */
function compact(value) {
  return value.toLocaleString("en-US", { notation: "compact", maximumSignificantDigits: 4 });
}

/** Returns the warnings of the families in sight, with their places on the axis. */
function marksOf(chart, divisor) {
  const { report, look } = chart;
  if (!look.marks) return [];
  return report.warnings.flatMap((warning) => {
    const { family } = report.runs[warning.run];
    if (look.hidden.has(family)) return [];
    const clock = report.clocks.runs[warning.run];
    const at = along([warning.first, warning.last], look.axis, clock);
    return at ? [{ ...warning, family, from: at[0] / divisor, to: at[1] / divisor }] : [];
  });
}

/** Draws a triangle per warning at the top edge, filled for an alarm, and a line while it lasts. */
function drawMarks(chart, plot) {
  if (!chart.marks.length) return;
  const { ctx, bbox } = plot;
  const ratio = devicePixelRatio;
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left - 6 * ratio, bbox.top - 12 * ratio, bbox.width + 12 * ratio, bbox.height + 12 * ratio);
  ctx.clip();
  ctx.lineWidth = ratio;
  for (const mark of chart.marks) {
    const [x, end] = [mark.from, mark.to].map((value) => plot.valToPos(value, "x", true));
    const top = bbox.top + 9 * ratio;
    ctx.strokeStyle = ctx.fillStyle = colourOf(mark.family);
    ctx.setLineDash([]);
    ctx.beginPath();
    ctx.moveTo(x, top);
    ctx.lineTo(x - 5 * ratio, top - 8 * ratio);
    ctx.lineTo(x + 5 * ratio, top - 8 * ratio);
    ctx.closePath();
    if (mark.alarm) ctx.fill();
    ctx.stroke();
    ctx.beginPath();
    ctx.moveTo(x, top - 8 * ratio);
    ctx.lineTo(end, top - 8 * ratio);
    ctx.stroke();
    if (!mark.alarm) continue;
    ctx.setLineDash([2 * ratio, 4 * ratio]);
    ctx.beginPath();
    ctx.moveTo(x, top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
  }
  ctx.restore();
}

/** Writes the values at the cursor below a chart, or the last values without a cursor. */
function read(chart, lines, plot) {
  const places = plot.data[0];
  const at = plot.cursor.idx ?? places.length - 1;
  const { divisor, unit } = chart.unit;
  const place = places[at];
  const brief = chart.kind === "story";
  const rows = lines.map((line) => {
    const { values } = line;
    let i = values.steps.length - 1;
    while (i > 0 && line.x[i] / divisor > place) i -= 1;
    const swatch = el("span", { className: `swatch dash${line.dash % DASHES.length}` });
    swatch.style.borderColor = colourOf(line.family);
    const away = line.x[i] / divisor === place ? "" : `, step ${number(values.steps[i])}`;
    const smooth = line.smooth ? `, smoothed ${number(line.smooth[i])}` : "";
    const value = el("b", { textContent: number(values.mean[i]) });
    const more = brief ? "" : smooth + spread(values, i, chart.look.band);
    return el("li", {}, swatch, `${line.name}: `, value, more + away);
  });
  const head = chart.look.axis === "step" ? `step ${number(place)}` : `${AXES[chart.look.axis]} ${number(place, 4)} ${unit}`;
  const x = plot.cursor.left ?? -10;
  const near = x < 0 ? [] : chart.marks.filter((mark) => isNear(plot, mark, x));
  const marks = near.slice(0, 3).map((mark) => el("li", { className: "mark", textContent: markText(chart.report, mark) }));
  chart.readout.replaceChildren(el("span", { textContent: head }), el("ul", {}, ...rows, ...marks));
}

/** Returns the interval, questions and number of runs of a value. */
function spread(values, i, band) {
  const parts = [];
  if (values.least && values.least[i] !== null) {
    const interval = `95 % interval ${number(values.least[i])} to ${number(values.most[i])}`;
    parts.push(`${interval}, ${number(values.questions[i])} questions`);
  }
  if (values.runs.length > 1) {
    const edges = band === "questions" || values.number[i] < 2 ? null : bandOf(values, band);
    const range = edges ? `${number(edges[0][i])} to ${number(edges[1][i])}, ` : "";
    parts.push(`${range}n = ${values.number[i]}`);
  }
  return parts.length ? ` (${parts.join("; ")})` : "";
}

function isNear(plot, mark, x) {
  const [from, to] = [mark.from, mark.to].map((value) => plot.valToPos(value, "x"));
  return x > from - NEAR && x < to + NEAR;
}

function markText(report, mark) {
  const steps = mark.first === mark.last ? `step ${mark.first}` : `steps ${mark.first} to ${mark.last}`;
  return visible(`${mark.alarm ? "\u25bc" : "\u25bd"} ${report.runs[mark.run].name}, ${steps}: ${mark.text}`);
}

function describe(chart) {
  const { title, sentences } = chart.spec;
  if (sentences) return visible(`${title}. ${sentences.map(({ text }) => text).join(" ")}`);
  const ends = linesOf(chart).map((line) => {
    const mean = line.values.mean;
    return `${line.name}: from ${number(mean[0])} to ${number(mean.at(-1))}`;
  });
  return `${title} by step. ${ends.join("; ")}`;
}

function chartTable(chart) {
  const lines = linesOf(chart);
  const steps = [...new Set(lines.flatMap((line) => line.values.steps))].sort((a, b) => a - b);
  const places = lines.map((line) => new Map(line.values.steps.map((step, i) => [step, i])));
  const rows = steps.map((step) => [
    number(step),
    ...lines.map((line, l) => {
      const i = places[l].get(step);
      return i === undefined ? "" : number(line.values.mean[i]) + spread(line.values, i, "none");
    }),
  ]);
  return table(["step", ...lines.map((line) => line.name)], rows);
}

/** Draws the charts whose place has another width than they have. */
function fitCharts() {
  for (const { charts } of Object.values(looks)) {
    for (const chart of charts) {
      const width = chart.canvas.clientWidth;
      if (width && !chart.plot) draw(chart);
      else if (width && width !== chart.plot.width) chart.plot.setSize({ width, height: HEIGHT[chart.kind] });
    }
  }
}

/** Keeps the charts of a grid as wide as their places. */
function watchWidth(grid) {
  // In the next frame, because a chart of a different width triggers the observer again.
  new ResizeObserver(() => requestAnimationFrame(fitCharts)).observe(grid);
}

function redraw(kinds = Object.keys(looks)) {
  for (const kind of kinds) looks[kind].charts.forEach(draw);
}
