// Compares held-out answers question by question: before and after, or of two runs.

const asked = new Browser("questions", "Questions");

const CHANGES = {
  all: ["all", () => true],
  better: ["wrong \u2192 right", (before, after) => after > before],
  worse: ["right \u2192 wrong", (before, after) => after < before],
  same: ["as before", (before, after) => after === before],
  right: ["right both times", (before, after) => before === 1 && after === 1],
  wrong: ["wrong both times", (before, after) => before === 0 && after === 0],
};

function showAnswers(report, index) {
  const panel = document.getElementById("answers");
  const { evaluations } = index;
  if (!index.id.length) {
    panel.append(el("p", { textContent: "The runs kept no held-out answers (answers/)." }));
    return;
  }
  const first = evaluations[0].run;
  const last = evaluations.findLastIndex(({ run }) => run === first);
  const name = ({ run, step }) => `${report.runs[run].name}, step ${number(step)}`;
  const pick = (id) => el("select", { id }, ...evaluations.map((one, i) => option(i, name(one))));
  const sets = [...new Set(index.set)];
  const inputs = {
    before: pick("before"),
    after: pick("after"),
    set: el("select", { id: "answer-set" }, option("", "all"), ...sets.map((set) => option(set, visible(set)))),
    change: el("select", { id: "change" }, ...Object.entries(CHANGES).map(([value, [label]]) => option(value, label))),
    text: el("input", { id: "answer-text", type: "search", placeholder: "in questions and answers" }),
  };
  Object.assign(asked, {
    inputs,
    defaults: { before: "0", after: String(last), change: "all" },
    total: index.id.length,
    noun: "questions",
    filter: (values) => questionsThatPass(index, values),
    makeRow: (i) => questionRow(index, i),
    show: (i) => showQuestion(report, index, i),
  });
  asked.write({});
  asked.watch([inputs.change]);
  const totals = el("p", { className: "help", id: "changes" });
  asked.tally = (values) => totals.replaceChildren(tallyOf(index, values));
  panel.append(
    el(
      "div",
      { className: "controls" },
      labelled("Before", inputs.before),
      labelled("After", inputs.after),
      sets.length > 1 ? labelled("Set", inputs.set) : null,
      labelled("Change", inputs.change),
      labelled("Text", inputs.text),
      asked.clearButton("answer-clear"),
    ),
    totals,
    el(
      "div",
      { className: "browser" },
      el("div", { className: "side" }, asked.count, asked.list, index.note ? el("p", { className: "help", textContent: index.note }) : null),
      el("article", { id: "question" }),
    ),
  );
}

/** Returns the shares of right answers to a question in two evaluations; null where not asked. */
function shares(index, i, { before, after }) {
  return [before, after].map((e) => (index.total[i][e] ? index.right[i][e] / index.total[i][e] : null));
}

function tallyOf(index, values) {
  const counts = { better: 0, worse: 0, same: 0 };
  for (let i = 0; i < index.id.length; i++) {
    if (values.set !== "" && index.set[i] !== values.set) continue;
    const [before, after] = shares(index, i, values);
    if (before === null || after === null) continue;
    counts[after > before ? "better" : after < before ? "worse" : "same"] += 1;
  }
  const parts = Object.entries(counts).map(([name, n]) => `${CHANGES[name][0]}: ${number(n)}`);
  const several = index.total.some((of) => of.some((n) => n > 1));
  const why = several ? " A question with several answers counts by how many of them are right." : "";
  return `${parts.join(" \u00b7 ")}.${why}`;
}

async function questionsThatPass(index, values) {
  const found = values.text ? await searchAnswers(index, pattern(values.text), values) : null;
  asked.tally(values);
  const passes = CHANGES[values.change]?.[1] ?? CHANGES.all[1];
  const shown = [];
  for (let i = 0; i < index.id.length; i++) {
    const [before, after] = shares(index, i, values);
    if (before === null && after === null) continue;
    if (values.change !== "all" && (before === null || after === null || !passes(before, after))) continue;
    if (values.set !== "" && index.set[i] !== values.set) continue;
    if (found && !found.has(i)) continue;
    shown.push(i);
  }
  return shown;
}

/** Returns the questions of which the text, the right answer or a chosen answer matches. */
async function searchAnswers(index, expression, { before, after }) {
  const found = new Set();
  const matches = (text) => text.search(expression) >= 0;
  for (let start = 0; start < index.id.length; start += index.per_block) {
    const rows = await block(`answers-${start / index.per_block}`);
    rows.forEach((row, at) => {
      const texts = [row.right, ...row.messages.map(([, text]) => text)];
      for (const e of [before, after]) texts.push(...row.answers[e].map(({ text }) => text));
      if (texts.some(matches)) found.add(start + at);
    });
  }
  return found;
}

/** Returns how many answers to a question are right, with a mark. */
function score(index, i, e) {
  const total = index.total[i][e];
  if (!total) return el("span", { className: "score", textContent: "\u2013" });
  const right = index.right[i][e];
  if (total === 1) return gradeMark(right);
  const kind = right === total ? "correct" : right === 0 ? "wrong" : "mixed";
  return el("span", { className: `score ${kind}`, textContent: `${right}/${total}`, title: `${right} of ${total} right` });
}

function questionRow(index, i) {
  const { before, after } = asked.values();
  return el(
    "div",
    { id: `question-${i}` },
    el("span", { className: "change" }, score(index, i, before), " \u2192 ", score(index, i, after), el("span", { className: "facts", textContent: `${visible(index.set[i])} \u00b7 ${visible(index.id[i])}` })),
    el("bdi", { className: "preview", textContent: visible(index.preview[i]) }),
  );
}

async function showQuestion(report, index, i) {
  const panel = document.getElementById("question");
  if (i === null) {
    panel.replaceChildren(el("p", { textContent: "No question passes the filters." }));
    return;
  }
  const rows = await block(`answers-${Math.floor(i / index.per_block)}`);
  if (asked.open !== i) return; // the reader has opened another question
  const row = rows[i % index.per_block];
  const { before, after, text } = asked.values();
  const step = (label, by, title) => el("button", { type: "button", textContent: label, title, onclick: () => asked.moveBy(by) });
  const chips = [["set", index.set[i]], ["question", index.id[i]], ["right answer", row.right]];
  panel.replaceChildren(
    el(
      "div",
      { className: "heading" },
      ...chips.map(([name, value]) => el("span", { className: "chip" }, `${name} `, el("b", {}, el("bdi", { textContent: visible(value) })))),
      el("span", { className: "steps" }, step("\u2191", -1, "previous (k)"), step("\u2193", 1, "next (j)")),
    ),
    ...row.messages.map(([role, said]) =>
      el("section", { className: "prompt" }, el("h2", { textContent: visible(role) }), el("pre", { dir: "auto", tabIndex: 0, textContent: visible(said) })),
    ),
    el(
      "div",
      { className: "prompts" },
      answersOf(report, index, row, i, Number(before), "Before", text),
      answersOf(report, index, row, i, Number(after), "After", text),
    ),
  );
  panel.dataset.shown = i;
}

function answersOf(report, index, row, i, e, title, text) {
  const { run, step } = index.evaluations[e];
  const head = el("h2", { textContent: `${title}: ${report.runs[run].name}, step ${number(step)} ` });
  head.append(score(index, i, e));
  const answers = row.answers[e].map((answer) => answerPart(answer, text));
  if (!answers.length) answers.push(el("p", { className: "help", textContent: "This evaluation did not ask it." }));
  return el("section", { className: "answers" }, head, ...answers);
}

function answerPart(answer, text) {
  const facts = [answer.tokens === undefined ? null : `${number(answer.tokens)} tokens`, answer.finish === "length" ? "cut off" : null];
  const more = [["feedback", answer.feedback], ["grader\u2019s details", answer.details]].filter(([, value]) => value);
  return el(
    "div",
    { className: "answer" },
    el("p", { className: "facts" }, gradeMark(answer.correct), ` ${facts.filter(Boolean).join(" \u00b7 ")}`),
    el("pre", { dir: "auto", tabIndex: 0 }, ...markedText(answer, text)),
    more.length
      ? el("dl", { className: "graded" }, ...more.flatMap(([name, value]) => [el("dt", { textContent: name }), el("dd", {}, el("bdi", { textContent: visible(value) }))]))
      : null,
  );
}

/** Returns the text of an answer with its epistemic words underlined and what was sought marked. */
function markedText(answer, sought) {
  const kinds = answer.marks.map(([start, length]) => [start, start + length, "epistemic"]);
  const found = sought ? [...answer.text.matchAll(pattern(sought))] : [];
  const matches = found.map((match) => [match.index, match.index + match[0].length]);
  const cuts = new Set([0, answer.text.length, ...kinds.flatMap(([a, b]) => [a, b]), ...matches.flat()]);
  const places = [...cuts].sort((a, b) => a - b);
  let [k, m] = [0, 0];
  return places.slice(0, -1).map((start, at) => {
    const end = places[at + 1];
    while (k < kinds.length && kinds[k][1] <= start) k += 1;
    while (m < matches.length && matches[m][1] <= start) m += 1;
    const is = (span) => span && span[0] <= start && end <= span[1];
    const shown = visible(answer.text.slice(start, end));
    const made = is(matches[m]) ? el("mark", { textContent: shown }) : document.createTextNode(shown);
    return is(kinds[k]) ? el("span", { className: "epistemic" }, made) : made;
  });
}
