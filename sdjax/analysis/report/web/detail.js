// Shows one rollout: the prompts of student and teacher, and the completion by tokens.

const view = { colour: "push", scale: 3, found: "", row: null, tops: null };

/** Returns the number of the block that holds a rollout. */
function blockOf(index, i) {
  let low = 0;
  let high = index.first.length - 1;
  while (low < high) {
    const middle = Math.ceil((low + high) / 2);
    if (index.first[middle] <= i) low = middle;
    else high = middle - 1;
  }
  return low;
}

async function showDetail(report, index, i) {
  const b = blockOf(index, i);
  const at = i - index.first[b];
  const wanted = [block(`text-${b}`), block(`detail-${b}`)];
  if (index.tops[i]) wanted.push(block(`tops-${b}`));
  const [texts, details, tops] = await Promise.all(wanted);
  if (browser.open !== i) return; // the reader has opened another rollout
  const row = { ...details.rows[at], text: texts[at], tokens: index.kept[i] === 1 };
  for (const name of ["prompt", "reprompt"]) {
    if (row[name] !== undefined) row[name] = details.strings[row[name]];
  }
  row.pieces = cut(row.text, row.cuts);
  view.row = row;
  view.tops = tops ? { ...tops.rows[at], strings: tops.strings } : null;
  const panel = document.getElementById("detail");
  hideTip();
  const parts = [
    heading(report, index, i, row),
    siblings(index, i),
    prompts(row),
    completionPart(row),
    graded(row),
  ];
  panel.replaceChildren(...parts.filter((part) => part !== null));
  panel.scrollTop = 0;
  panel.dataset.shown = i;
}

function cut(text, lengths) {
  let at = 0;
  return lengths.map((length) => text.slice(at, (at += length)));
}

function heading(report, index, i, row) {
  const chips = [
    ["run", report.runs[index.run[i]].name],
    ["step", number(index.step[i])],
    ["example", visible(index.id[i])],
    ["completion", number(index.sibling[i] + 1)],
    ["reward", number(index.reward[i])],
    ["length", `${number(index.length[i])} tokens${index.finish[i] === "length" ? ", cut off" : ""}`],
    ["mean push", nats(index.push[i])],
    ["on epistemic words", index.epistemic_push[i] === null ? null : nats(index.epistemic_push[i])],
    ["distilled", row.distilled === undefined ? null : row.distilled ? "yes" : "no"],
  ];
  const facts = chips
    .filter(([, value]) => value !== null)
    .map(([name, value]) => el("span", { className: "chip" }, `${name} `, el("b", { textContent: value })));
  const step = (label, by, title) =>
    el("button", { type: "button", textContent: label, title, onclick: () => moveBy(by) });
  return el(
    "div",
    { className: "heading" },
    gradeMark(index.correct[i]),
    ...facts,
    el("span", { className: "steps" }, step("\u2191", -1, "previous (k)"), step("\u2193", 1, "next (j)")),
  );
}

/** Returns links to the other completions of the same prompt in the same step. */
function siblings(index, i) {
  const same = (j) => ["run", "step", "id"].every((name) => index[name][j] === index[name][i]);
  let first = i;
  while (first > 0 && same(first - 1)) first -= 1;
  const group = [];
  for (let j = first; j < index.run.length && same(j); j++) group.push(j);
  if (group.length < 2) return null;
  const links = group.map((j) =>
    el(
      "button",
      { type: "button", className: j === i ? "sibling open" : "sibling", title: `completion ${index.sibling[j] + 1}, reward ${number(index.reward[j])}`, onclick: () => openRollout(j) },
      gradeMark(index.correct[j]),
    ),
  );
  return el("div", { className: "siblings" }, el("span", { textContent: "completions of this prompt" }), ...links);
}

function prompts(row) {
  const part = (title, ...content) =>
    el("section", { className: "prompt" }, el("h2", { textContent: title }), el("pre", { dir: "auto", tabIndex: 0 }, ...content));
  const made = el("div", { className: "prompts" });
  if (row.prompt !== undefined) made.append(part("Student reads", visible(row.prompt)));
  if (row.reprompt !== undefined) {
    const [before, added, after] = insertion(row.prompt ?? "", row.reprompt);
    const shown = [visible(before), el("mark", { textContent: visible(added) }), visible(after)];
    const what = row.demonstration === undefined ? "" : demonstrationOf(row.demonstration);
    made.append(part(`Teacher reads${what}`, ...shown));
  } else if (row.prompt !== undefined) {
    const why = row.tokens ? "No teacher ran on this completion." : "No reprompt was kept of this completion.";
    made.append(el("section", { className: "prompt" }, el("p", { className: "help", textContent: why })));
  }
  return made;
}

function demonstrationOf(value) {
  const n = Number(value);
  return Number.isInteger(n) ? `, shown completion ${n + 1}` : `, shown ${value}`;
}

/** Splits a text in three: the start and the end that it shares with another, and the middle. */
function insertion(from, to) {
  const most = Math.min(from.length, to.length);
  let start = 0;
  while (start < most && from[start] === to[start]) start += 1;
  let end = 0;
  while (end < most - start && from.at(-1 - end) === to.at(-1 - end)) end += 1;
  return [to.slice(0, start), to.slice(start, to.length - end), to.slice(to.length - end)];
}

function graded(row) {
  const parts = [];
  const add = (label, text) => {
    if (text !== undefined && text !== "" && text !== "{}") {
      parts.push(el("dt", { textContent: label }), el("dd", {}, el("bdi", { textContent: visible(text) })));
    }
  };
  add("right answer", row.answer);
  add("feedback", row.feedback);
  add("grader\u2019s details", row.details);
  return parts.length ? el("dl", { className: "graded" }, ...parts) : null;
}
