// Tells what happened in pictures and sentences, then lists runs, figures, warnings and configs.

const FACTS = { model: "model", task: "task", lr: "learning rate", program: "program", devices: "devices" };

function showOverview(report) {
  const panel = document.getElementById("overview");
  const names = report.runs.map((run) => run.name);
  const story = el("div", { className: "charts" });
  const wide = (made) => el("div", { className: "wide" }, made);
  panel.append(el("div", { id: "facts", className: "heading" }, ...commonFacts(report)), alarmsOf(report), story);
  for (const spec of report.story) addChart(report, story, spec, "story");
  watchWidth(story);
  panel.append(
    el("p", { className: "help", textContent: `${report.rule} ${STORY_HELP}` }),
    el("h2", { textContent: "Runs" }),
    wide(runsTable(report)),
    el("p", {
      className: "help",
      textContent: "Runs of a family differ only in their seed and their length. Durations are without evaluations and checkpoints.",
    }),
    el("h2", { textContent: "First and last value" }),
    wide(summaryTable(report, names)),
  );
  if (report.warnings.length) panel.append(el("h2", { textContent: "Warnings and alarms" }), wide(warningsTable(report)));
  if (report.warnings_note) panel.append(el("p", { className: "help", textContent: report.warnings_note }));
  const fields = Object.entries(report.differences);
  if (fields.length) {
    const rows = fields.map(([field, values]) => [visible(field), ...values.map((v) => visible(v) || "\u2013")]);
    panel.append(el("h2", { textContent: "Where the configs differ" }), wide(table(["field", ...names], rows)));
  }
}

const STORY_HELP =
  "An accuracy rose or fell if the 95 % interval of its change leaves out 0 (Newcombe)." +
  " Shades are 95 % intervals over questions, or the least and the most of several runs." +
  " A length or rate that changes by less than 5 % hardly changed.";

/** Returns whether all runs agree in a fact that is known. */
function isCommon(report, name) {
  return report.runs.every((run) => run[name] && run[name] === report.runs[0][name]);
}

/** Returns the facts that all runs share, and their steps and durations. */
function commonFacts(report) {
  const facts = Object.entries(FACTS).filter(([name]) => isCommon(report, name));
  const shown = facts.map(([name, label]) => [label, report.runs[0][name]]);
  const families = report.families.length;
  shown.unshift(["runs", number(report.runs.length) + (families < report.runs.length ? ` in ${families} ${families > 1 ? "families" : "family"}` : "")]);
  for (const name of ["steps", "duration"]) {
    const distinct = [...new Set(report.runs.map((run) => run[name]))].filter(Boolean);
    if (distinct.length === 1) shown.push([name, distinct[0]]);
  }
  return shown.map(([label, value]) => el("span", { className: "chip" }, `${label} `, el("b", { textContent: visible(value) })));
}

function alarmsOf(report) {
  // The first alarm of each run; the table below has all.
  const alarms = report.warnings.filter((warning, i, all) => warning.alarm && all.findIndex((one) => one.alarm && one.run === warning.run) === i);
  const shown = alarms.slice(0, 3).map((mark) => el("li", { textContent: markText(report, mark) }));
  if (alarms.length > 3) shown.push(el("li", { textContent: `and ${alarms.length - 3} more runs with alarms, listed below` }));
  return alarms.length ? el("ul", { id: "alarms" }, ...shown) : "";
}

function runsTable(report) {
  const other = Object.entries(FACTS).filter(([name]) => !isCommon(report, name));
  const columns = ["run", "family", "steps", "duration", ...other.map(([, label]) => label), "rollouts", "directory"];
  const rows = report.runs.map((run) =>
    [
      run.name,
      report.families[run.family],
      run.steps,
      run.duration,
      ...other.map(([name]) => run[name]),
      run.rollouts ? number(run.rollouts) : "none kept",
      run.folder,
    ].map((cell) => visible(cell) || "\u2013"),
  );
  return table(columns, rows);
}

function summaryTable(report, names) {
  const last = report.runs.map((run) => [Math.floor(0.9 * run.last) + 1, run.last]);
  const rows = report.summary.map((row) => [
    el("span", { title: row.help, textContent: `${row.label} (${row.unit})` }),
    ...row.values.map((ends, run) => (ends ? endsCell(ends, last[run]) : "\u2013")),
  ]);
  return table(["metric", ...names], [["last steps", ...last.map(stepSpan)], ...rows]);
}

function stepSpan([low, high]) {
  return low >= high ? number(high) : `${number(low)} to ${number(high)}`;
}

/** Returns the first and the last value; names the steps of a value that is not of the last ones. */
function endsCell(ends, last) {
  const [first, after] = ends.steps.map(stepSpan);
  const values = first === after ? ends.values.slice(1) : ends.values;
  const made = el("span", { title: `steps ${first}, then ${after}`, textContent: values.map((value) => number(value)).join(" \u2192 ") });
  const notes = [];
  const bounds = ends.bounds[1];
  if (bounds) notes.push(`${number(bounds.low)} to ${number(bounds.high)}, ${number(bounds.questions)} questions`);
  if (ends.steps[1][0] < last[0]) notes.push(`step ${after}`);
  if (notes.length) made.append(el("small", { textContent: ` (${notes.join("; ")})` }));
  return made;
}

function warningsTable(report) {
  const rows = report.warnings.map((warning) => [
    report.runs[warning.run].name,
    warning.first === warning.last ? number(warning.first) : `${number(warning.first)} to ${number(warning.last)}`,
    warning.alarm ? "\u25bc alarm" : "\u25bd warning",
    el("bdi", { textContent: visible(warning.text) }),
  ]);
  return table(["run", "steps", "kind", "text"], rows, { id: "warnings" });
}
