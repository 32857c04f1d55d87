// Lists the rollouts, with filters and an order; creates only the visible rows.

const ROW = 54; // pixels, as in style.css
const browser = { shown: [], open: null, texts: null, report: null, index: null };

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
  Object.assign(browser, { report, index });
  if (!index.run) {
    panel.append(el("p", { textContent: "The runs kept no rollouts (log.rollouts)." }));
    return;
  }
  const controls = makeFilters(report, index);
  const count = el("p", { id: "count", role: "status" });
  const list = el("div", {
    id: "list",
    tabIndex: 0,
    role: "listbox",
    "aria-label": "Rollouts; arrow keys move",
  });
  const space = el("div", { className: "space" });
  list.append(space);
  list.onscroll = () => drawRows();
  list.onkeydown = onListKey;
  list.onclick = (event) => {
    const row = event.target.closest("[data-i]");
    if (row) openRollout(Number(row.dataset.i));
  };
  Object.assign(browser, { controls, list, space, count });
  const note = report.rollout_note ? el("p", { className: "help", textContent: report.rollout_note }) : null;
  panel.append(
    controls.bar,
    el("div", { className: "browser" }, el("div", { className: "side" }, count, list, note), el("article", { id: "detail" })),
  );
  // In the next frame, because new rows trigger the observer again.
  new ResizeObserver(() => requestAnimationFrame(drawRows)).observe(list);
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
  const clear = el("button", { type: "button", id: "clear", textContent: "Clear" });
  const inputs = { run, step0, step1, correct, length0, length1, word, kept, text, order };
  let wait;
  for (const input of Object.values(inputs)) {
    input.oninput = () => {
      clearTimeout(wait);
      if (input === order) browser.open = null; // show the first row of the new order
      wait = setTimeout(applyFilters, input === text ? 200 : 0);
    };
  }
  clear.onclick = () => {
    for (const input of Object.values(inputs)) input.value = input === order ? "file" : "";
    applyFilters();
  };
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
    clear,
  );
  return { bar, inputs };
}

function filterValues() {
  const out = {};
  for (const [name, input] of Object.entries(browser.controls.inputs)) out[name] = input.value;
  return out;
}

let filtering = 0;

async function applyFilters() {
  const mine = ++filtering;
  const { index } = browser;
  const f = filterValues();
  let found = null;
  if (f.text) {
    browser.count.textContent = "searching \u2026";
    found = await search(pattern(f.text));
    if (mine !== filtering) return;
  }
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
  browser.shown = shown;
  const total = index.run.length;
  browser.count.textContent =
    shown.length === total ? `${number(total)} rollouts` : `${number(shown.length)} of ${number(total)} rollouts`;
  browser.space.style.height = `${shown.length * ROW}px`;
  browser.list.scrollTop = 0;
  const kept = shown.includes(browser.open);
  if (shown.length) await openRollout(kept ? browser.open : shown[0]);
  else showNothing();
}

function showNothing() {
  browser.open = null;
  drawRows();
  writeHash();
  const said = el("p", { textContent: "No rollout passes the filters." });
  document.getElementById("detail").replaceChildren(said);
}

/** Returns an expression that finds a text in upper or lower case and with any white space. */
function pattern(text) {
  const escaped = text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&").replace(/\s+/g, "\\s+");
  return new RegExp(escaped, "gi");
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

function drawRows() {
  const { list, space, shown, index } = browser;
  const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 5);
  const last = Math.min(shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + 5);
  const rows = [];
  for (let at = first; at < last; at++) rows.push(makeRow(index, shown[at], at, shown.length));
  space.replaceChildren(...rows);
  const open = shown.indexOf(browser.open);
  if (open >= first && open < last) list.setAttribute("aria-activedescendant", `row-${browser.open}`);
  else list.removeAttribute("aria-activedescendant");
}

function makeRow(index, i, at, size) {
  const words = epistemicWords(index, i);
  const facts = [
    browser.report.runs.length > 1 ? browser.report.runs[index.run[i]].name : null,
    `step ${index.step[i]}`,
    `${number(index.length[i])} tokens`,
    words ? `${words} epistemic` : null,
    index.push[i] === null ? null : `push ${nats(index.push[i])}`,
  ];
  const row = el(
    "div",
    {
      className: i === browser.open ? "rollout open" : "rollout",
      id: `row-${i}`,
      role: "option",
      "aria-selected": String(i === browser.open),
      "aria-posinset": at + 1,
      "aria-setsize": size,
      data: { i },
    },
    gradeMark(index.correct[i]),
    el("span", { className: "facts", textContent: facts.filter(Boolean).join(" \u00b7 ") }),
    el("bdi", { className: "preview", textContent: visible(index.preview[i]) }),
  );
  row.style.top = `${at * ROW}px`;
  return row;
}

function gradeMark(correct) {
  const [mark, label] = correct === null ? ["?", "not graded"] : correct ? ["\u2713", "correct"] : ["\u2717", "wrong"];
  return el("span", { className: `grade ${label.replace(" ", "-")}`, title: label, "aria-label": label, role: "img", textContent: mark });
}

function onListKey(event) {
  const page = Math.max(1, Math.floor(browser.list.clientHeight / ROW) - 1);
  const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
  if (event.key in moves && !event.altKey && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    moveBy(moves[event.key]);
  }
}

function moveBy(steps) {
  const { shown } = browser;
  if (!shown.length) return;
  const at = shown.indexOf(browser.open) + steps;
  openRollout(shown[Math.min(Math.max(at, 0), shown.length - 1)]);
}

function scrollToOpen() {
  const { list, shown } = browser;
  const top = shown.indexOf(browser.open) * ROW;
  if (top < 0) return;
  if (top < list.scrollTop) list.scrollTop = top;
  else if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
}

async function openRollout(i) {
  browser.open = i;
  scrollToOpen();
  drawRows();
  writeHash();
  await showDetail(browser.report, browser.index, i);
}
