// Shows epistemic words before and after training.

const UNITS = {
  thousand: ["per 1,000 tokens", (n, of) => (1000 * n) / Math.max(of.tokens, 1)],
  response: ["per completion", (n, of) => n / Math.max(of.completions, 1)],
  count: ["count", (n) => n],
  push: ["teacher\u2019s push (nats per token)", (_, of, words) => meanPush(of, words)],
};

/** Returns the mean of teacher minus student over the tokens of words; null if unknown. */
function meanPush(of, words) {
  let [sum, tokens] = [0, 0];
  for (const word of words) {
    sum += of.push[word]?.[0] ?? 0;
    tokens += of.push[word]?.[1] ?? 0;
  }
  return tokens ? sum / tokens : null;
}

function showWords(report) {
  const panel = document.getElementById("words");
  if (!report.words.length) {
    panel.append(el("p", { textContent: "No run has two evaluations or two steps of rollouts." }));
    return;
  }
  const distinct = (name) => [...new Set(report.words.map((row) => row[name]))];
  const choice = (id, values) =>
    el("select", { id }, ...values.map((value) => option(value, value)));
  const sets = choice("word-set", distinct("set"));
  const lexicons = choice("word-lexicon", distinct("lexicon"));
  const units = el("select", { id: "word-unit" });
  units.append(...Object.entries(UNITS).map(([value, [label]]) => option(value, label)));
  const shown = el("div", { className: "wide" });
  const update = () => shown.replaceChildren(wordTable(report, sets.value, lexicons.value, units.value));
  for (const control of [sets, lexicons, units]) control.onchange = update;
  panel.append(
    el(
      "div",
      { className: "controls" },
      labelled("Completions", sets),
      labelled("Lexicon", lexicons),
      labelled("Unit", units),
    ),
    el("p", {
      className: "help",
      textContent:
        "paper: substrings, as arXiv:2603.24472 counts them; word: whole words with inflections." +
        " Before is a run\u2019s first evaluation, after its last. The push is known of rollouts" +
        " only: teacher minus student log-probability; below 0 the teacher would say it less.",
    }),
    shown,
  );
  update();
}

function wordTable(report, set, lexicon, unit) {
  const rows = report.words.filter((row) => row.set === set && row.lexicon === lexicon);
  if (!rows.length) return el("p", { textContent: "No run has these." });
  const [label, rate] = UNITS[unit];
  const words = [...new Set(rows.flatMap((row) => Object.keys(row.before.words)))];
  const total = (of) => Object.values(of.words).reduce((a, b) => a + b, 0);
  const pick = (word) => (of) =>
    word === null ? rate(total(of), of, words) : rate(of.words[word] || 0, of, [word]);
  const most = Math.max(
    ...words.flatMap((w) => rows.flatMap((row) => [pick(w)(row.before), pick(w)(row.after)])),
  );
  const change = (before, after) => (before === null || after === null ? null : after - before);
  const line = (word) =>
    el(
      "tr",
      { className: word === null ? "total" : "" },
      el("th", { scope: "row", textContent: word ?? "all" }),
      ...rows.flatMap((row) => {
        const [before, after] = [pick(word)(row.before), pick(word)(row.after)];
        const bar = word === null ? 0 : most;
        return [
          wordCell(before, bar),
          wordCell(after, bar),
          el("td", { className: "number change", textContent: signed(change(before, after)) }),
        ];
      }),
    );
  const when = (of) => `step ${of.step}: ${number(of.completions)} completions, ${number(Math.round(of.tokens))} tokens`;
  return el(
    "table",
    { className: "words" },
    el("caption", { textContent: `${set}; ${label}` }),
    el(
      "thead",
      {},
      el("tr", {}, el("td"), ...rows.map((row) => el("th", { scope: "colgroup", colSpan: 3, textContent: row.run }))),
      el(
        "tr",
        {},
        el("th", { scope: "col", textContent: "word" }),
        ...rows.flatMap((row) => [
          el("th", { scope: "col", textContent: "before", title: when(row.before) }),
          el("th", { scope: "col", textContent: "after", title: when(row.after) }),
          el("th", { scope: "col", textContent: "change" }),
        ]),
      ),
    ),
    el("tbody", {}, line(null), ...words.map(line)),
  );
}

function wordCell(value, most) {
  const cell = el("td", { className: "number bar", textContent: number(value) });
  if (most > 0) cell.style.backgroundSize = `${(100 * value) / most}% 3px`;
  return cell;
}
