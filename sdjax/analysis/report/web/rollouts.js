// Lists the rollouts, with filters and an order.

const browser = new Browser("list", "Rollouts");

const ORDERS = {
  file: ["as sampled", null],
  push: ["teacher lowers most", (index, i) => index.push[i] ?? Infinity],
  epistemic: ["lowers epistemic words most", (index, i) => index.epistemic_push[i] ?? Infinity],
  words: ["most epistemic words", (index, i) => -epistemicWords(index, i)],
  long: ["longest", (index, i) => -index.length[i]],
  short: ["shortest", (index, i) => index.length[i]],
  reward: ["highest reward", (index, i) => -(index.reward[i] ?? -Infinity)],
};

function epistemicWords(index, i) {
  let total = 0;
  for (let at = 1; at < index.words[i].length; at += 2) total += index.words[i][at];
  return total;
}

function showRollouts(report, index) {
  const panel = document.getElementById("rollouts");
  Object.assign(browser, { report, index, noun: "rollouts", texts: null });
  if (!index.run) {
    panel.append(el("p", { textContent: "The runs kept no rollouts (log.rollouts)." }));
    return;
  }
  const controls = makeFilters(report, index);
  Object.assign(browser, {
    controls,
    inputs: controls.inputs,
    defaults: { order: "file" },
    total: index.run.length,
    filter: (values) => passing(index, values),
    makeRow: (i) => makeRow(index, i),
    show: (i) => (i === null ? showNothing() : showDetail(report, index, i)),
  });
  browser.watch([controls.inputs.order]);
  controls.bar.append(browser.clearButton("clear"));
  const note = report.rollout_note ? el("p", { className: "help", textContent: report.rollout_note }) : null;
  panel.append(
    controls.bar,
    el("div", { className: "browser" }, el("div", { className: "side" }, browser.count, browser.list, note), el("article", { id: "detail" })),
  );
}

function makeFilters(report, index) {
  const every = option("", "all");
  const run = el("select", { id: "run" }, every, ...report.runs.map((r, i) => option(i, r.name)));
  const range = (id) => el("input", { id, type: "number", min: 0, inputMode: "numeric" });
  const [step0, step1, length0, length1] = ["step0", "step1", "length0", "length1"].map(range);
  const steps = index.step.reduce(([a, b], s) => [Math.min(a, s), Math.max(b, s)], [Infinity, 0]);
  Object.assign(step0, { placeholder: steps[0], ariaLabel: "from step" });
  Object.assign(step1, { placeholder: steps[1], ariaLabel: "to step" });
  Object.assign(length0, { placeholder: "0", ariaLabel: "from tokens" });
  Object.assign(length1, { placeholder: "any", ariaLabel: "to tokens" });
  const correct = el("select", { id: "correct" });
  correct.append(option("", "all"), option("1", "correct"), option("0", "wrong"));
  const word = el("select", { id: "word" }, option("", "all"), option("any", "any epistemic word"));
  word.append(option("none", "none"), ...report.lexicon.map((w, i) => option(i, w)));
  const kept = el("select", { id: "kept" }, option("", "all"), option("kept", "with tokens"));
  kept.append(option("tops", "with alternatives"));
  const text = el("input", { id: "text", type: "search", placeholder: "in completions" });
  const order = el("select", { id: "order" });
  order.append(...Object.entries(ORDERS).map(([value, [label]]) => option(value, label)));
  const inputs = { run, step0, step1, correct, length0, length1, word, kept, text, order };
  const pair = (label, a, b) =>
    el("div", { className: "field", role: "group", "aria-label": label }, el("span", { textContent: label }), el("span", { className: "pair" }, a, "\u2013", b));
  const bar = el(
    "div",
    { className: "controls" },
    labelled("Run", run),
    pair("Step", step0, step1),
    labelled("Graded", correct),
    pair("Length (tokens)", length0, length1),
    labelled("Epistemic word", word),
    labelled("Kept", kept),
    labelled("Text", text),
    labelled("Order", order),
  );
  return { bar, inputs };
}

/** Returns the rollouts that pass the filters, in the chosen order. */
async function passing(index, f) {
  const found = f.text ? await search(pattern(f.text)) : null;
  const bound = (value, otherwise) => (value === "" ? otherwise : Number(value));
  const [step0, step1] = [bound(f.step0, -Infinity), bound(f.step1, Infinity)];
  const [length0, length1] = [bound(f.length0, -Infinity), bound(f.length1, Infinity)];
  const hasWord = (i) => {
    const words = index.words[i];
    if (f.word === "any" || f.word === "none") return (words.length > 0) === (f.word === "any");
    for (let at = 0; at < words.length; at += 2) if (words[at] === Number(f.word)) return true;
    return false;
  };
  const shown = [];
  for (let i = 0; i < index.run.length; i++) {
    if (f.run !== "" && index.run[i] !== Number(f.run)) continue;
    if (index.step[i] < step0 || index.step[i] > step1) continue;
    if (f.correct !== "" && index.correct[i] !== Number(f.correct)) continue;
    if (index.length[i] < length0 || index.length[i] > length1) continue;
    if (f.word !== "" && !hasWord(i)) continue;
    if (f.kept !== "" && !index[f.kept][i]) continue;
    if (found && !found[i]) continue;
    shown.push(i);
  }
  const key = ORDERS[f.order]?.[1];
  if (key) shown.sort((a, b) => key(index, a) - key(index, b) || a - b);
  return shown;
}

function showNothing() {
  const said = el("p", { textContent: "No rollout passes the filters." });
  document.getElementById("detail").replaceChildren(said);
}

/** Returns for each rollout whether an expression matches its completion. */
async function search(expression) {
  if (!browser.texts) {
    const texts = [];
    for (let b = 0; b < browser.index.first.length; b++) texts.push(...(await block(`text-${b}`)));
    browser.texts = texts;
  }
  return browser.texts.map((text) => text.search(expression) >= 0);
}

function makeRow(index, i) {
  const words = epistemicWords(index, i);
  const facts = [
    browser.report.runs.length > 1 ? browser.report.runs[index.run[i]].name : null,
    `step ${index.step[i]}`,
    `${number(index.length[i])} tokens`,
    words ? `${words} epistemic` : null,
    index.push[i] === null ? null : `push ${nats(index.push[i])}`,
  ];
  return el(
    "div",
    { id: `row-${i}` },
    gradeMark(index.correct[i]),
    el("span", { className: "facts", textContent: facts.filter(Boolean).join(" \u00b7 ") }),
    el("bdi", { className: "preview", textContent: visible(index.preview[i]) }),
  );
}

function moveBy(steps) {
  browser.moveBy(steps);
}

function openRollout(i) {
  return browser.openAt(i);
}
