// Lists the runs, the changes in each, and the config fields in which they differ.

function showOverview(report) {
  const names = report.runs.map((run) => run.name);
  const columns = ["run", "family", "steps", "rollouts", "directory", "model", "task"];
  columns.push("learning rate", "program", "devices");
  const panel = document.getElementById("overview");
  const runs = report.runs.map((run) => [
    run.name,
    report.families[run.family],
    number(run.steps),
    run.rollouts ? number(run.rollouts) : "none kept",
    run.folder,
    run.model,
    run.task,
    run.lr,
    run.program,
    run.devices,
  ].map((cell) => cell || "\u2013"));
  panel.append(
    el("h2", { textContent: "Runs" }),
    el("div", { className: "wide" }, table(columns, runs)),
    el("p", {
      className: "help",
      textContent: "Runs of a family differ only in their seed; curves show them together.",
    }),
    el("h2", { textContent: "First and last value" }),
    el("div", { className: "wide" }, summaryTable(report, names)),
  );
  const fields = Object.entries(report.differences);
  if (fields.length) {
    const rows = fields.map(([field, values]) => [field, ...values.map((v) => v || "\u2013")]);
    panel.append(
      el("h2", { textContent: "Where the configs differ" }),
      el("div", { className: "wide" }, table(["field", ...names], rows)),
    );
  }
}

function summaryTable(report, names) {
  const rows = report.summary.map((row) => [
    el("span", { title: row.help, textContent: `${row.label} (${row.unit})` }),
    ...row.values.map((ends) =>
      ends ? `${number(ends[0])} \u2192 ${number(ends[1])}` : "\u2013",
    ),
  ]);
  return table(["metric", ...names], rows);
}
