// Shows the completion: coloured tokens, marked epistemic words, details of a token on hover.

const COLOURINGS = {
  push: ["teacher \u2212 student log-probability", (row) => row.push, true],
  student_entropy: ["student's entropy", (row) => row.student_entropy, false],
  teacher_entropy: ["teacher's entropy", (row) => row.teacher_entropy, false],
  none: ["nothing", () => null, false],
};
// Orange and blue are distinct for every kind of colour vision.
const LOWERED = [217, 95, 2];
const RAISED = [37, 111, 190];
const UNSURE = [128, 78, 160];

function completionPart(row) {
  const choices = Object.entries(COLOURINGS).filter(([, [, of]], i, all) => of(row) || i === all.length - 1);
  if (!choices.some(([name]) => name === view.colour)) view.colour = choices[0][0];
  const colour = el("select", { id: "colour" }, ...choices.map(([name, [label]]) => option(name, label)));
  colour.value = view.colour;
  const scale = el("select", { id: "scale" }, ...[1, 3, 6, 10].map((n) => option(n, `${n} nats`)));
  scale.value = view.scale;
  const legend = el("div", { className: "legend" });
  const text = el("div", {
    id: "completion",
    dir: "auto",
    tabIndex: 0,
    role: "group",
    "aria-label": "Completion; left and right arrows go through its tokens",
    "aria-describedby": "tip",
  });
  const paint = () => {
    view.colour = colour.value;
    view.scale = Number(scale.value);
    paintTokens(text, row);
    legend.replaceChildren(...legendOf(row));
  };
  colour.onchange = scale.onchange = paint;
  text.append(...paragraphs(row));
  text.onmouseover = (event) => {
    const token = event.target.closest("[data-t]");
    if (token) showTip(token, Number(token.dataset.t));
    else hideTip();
  };
  text.onmouseleave = hideTip;
  text.onblur = hideTip;
  text.onkeydown = (event) => onTokenKey(event, text, row);
  paint();
  const why = row.tokens ? null : el("p", { className: "help", textContent: "Only text and grade were kept of this completion: its words have no colours." });
  const tops = row.tokens && !view.tops && row.student ? el("p", { className: "help", textContent: "No alternatives are kept of this completion." }) : null;
  return el(
    "section",
    {},
    el("div", { className: "controls" }, el("h2", { textContent: "Completion" }), labelled("Colour", colour), labelled("Full colour at", scale), legend),
    why,
    text,
    tops,
  );
}

const PARAGRAPH = 400; // tokens per paragraph; the browser lays out only visible paragraphs

function paragraphs(row) {
  const epistemic = new Set(row.epistemic);
  const found = tokensWith(row, browser.controls.inputs.text.value);
  const out = [];
  let paragraph;
  row.pieces.forEach((piece, t) => {
    if (t % PARAGRAPH === 0) out.push((paragraph = el("span", { className: "paragraph" })));
    const classes = [
      epistemic.has(t) ? "epistemic" : "",
      found.has(t) ? "found" : "",
      piece === "" ? "empty" : "",
      piece.startsWith("\n") ? "newline" : "",
    ];
    paragraph.append(el("span", { className: classes.filter(Boolean).join(" "), textContent: visible(piece), data: { t } }));
  });
  return out;
}

/** Returns the tokens that overlap an occurrence of a text. */
function tokensWith(row, text) {
  const found = new Set();
  if (!text) return found;
  let t = 0;
  let start = 0; // position of token t
  for (const match of row.text.matchAll(pattern(text))) {
    const end = match.index + match[0].length;
    while (t < row.pieces.length && start + row.pieces[t].length <= match.index) {
      start += row.pieces[t++].length;
    }
    for (let u = t, at = start; u < row.pieces.length && at < end; u++) {
      found.add(u);
      at += row.pieces[u].length;
    }
  }
  return found;
}

function paintTokens(text, row) {
  const [, of, diverging] = COLOURINGS[view.colour];
  const values = of(row);
  for (const token of text.querySelectorAll("[data-t]")) {
    const value = values ? values[Number(token.dataset.t)] : null;
    token.style.backgroundColor = value === null || value === undefined ? "" : colourAt(value / 100, diverging);
  }
}

/** Returns the colour of a value in nats: transparent at 0, opaque at the end of the scale. */
function colourAt(value, diverging) {
  const share = Math.min(Math.abs(value) / view.scale, 1);
  const [r, g, b] = diverging ? (value < 0 ? LOWERED : RAISED) : UNSURE;
  return share < 0.02 ? "" : `rgba(${r}, ${g}, ${b}, ${(0.72 * share).toFixed(3)})`;
}

function legendOf(row) {
  const parts = [];
  const [, of, diverging] = COLOURINGS[view.colour];
  if (of(row)) {
    const bar = el("span", { className: "scale", role: "img" });
    const ends = diverging ? [-view.scale, view.scale] : [0, view.scale];
    const stops = [0, 0.25, 0.5, 0.75, 1].map((x) => colourAt(ends[0] + x * (ends[1] - ends[0]), diverging) || "transparent");
    bar.style.background = `linear-gradient(to right, ${stops.join(", ")})`;
    const label = diverging ? "teacher lowers, teacher raises" : "sure, unsure";
    bar.setAttribute("aria-label", `${label}: from ${ends[0]} to ${ends[1]} nats`);
    const [low, high] = label.split(", ");
    parts.push(el("span", { textContent: `${low} ${number(ends[0])}` }), bar, el("span", { textContent: `${signed(ends[1])} nats ${high}` }));
  }
  parts.push(el("span", { className: "epistemic", textContent: "epistemic word" }));
  return parts;
}

function onTokenKey(event, text, row) {
  const moves = { ArrowRight: 1, ArrowLeft: -1 };
  if (!(event.key in moves) || event.altKey || event.ctrlKey || event.metaKey) {
    if (event.key === "Escape") hideTip();
    return;
  }
  event.preventDefault();
  const now = text.querySelector(".at");
  const next = Math.min(Math.max((now ? Number(now.dataset.t) : -1) + moves[event.key], 0), row.pieces.length - 1);
  const token = text.querySelector(`[data-t="${next}"]`);
  if (!token) return;
  now?.classList.remove("at");
  token.classList.add("at");
  token.scrollIntoView({ block: "nearest" });
  showTip(token, next);
}

function logprob(hundredths) {
  if (hundredths === null || hundredths === undefined) return "\u2013";
  return `${fixed(hundredths)} nats (${percent(Math.exp(hundredths / 100))})`;
}

function showTip(token, t) {
  const row = view.row;
  const tip = document.getElementById("tip");
  const value = (name) => row[name]?.[t] ?? null;
  const rows = [];
  const add = (label, text) => rows.push(el("tr", {}, el("th", { scope: "row", textContent: label }), el("td", { textContent: text })));
  const student = value("student");
  const push = value("push");
  if (student !== null) add("student", logprob(student));
  if (push !== null) {
    add("teacher", logprob(student + push));
    add("teacher \u2212 student", nats(push));
  }
  const gap = value("gap");
  if (gap !== null && student === null) add("sampler", logprob(gap));
  else if (gap) add("sampler \u2212 student", nats(gap));
  for (const who of ["student", "teacher"]) {
    const entropy = value(`${who}_entropy`);
    if (entropy !== null) add(`${who}'s entropy`, `${fixed(entropy)} nats`);
  }
  const tops = view.tops ? ["student", "teacher"].map((who) => alternatives(who, t)) : [];
  const head = `${JSON.stringify(visible(row.pieces[t]))}, ${row.tokens ? "token" : "word"} ${number(t + 1)} of ${number(row.pieces.length)}`;
  tip.replaceChildren(
    el("bdi", { className: "what", textContent: head }),
    row.epistemic.includes(t) ? el("span", { className: "epistemic", textContent: "epistemic" }) : "",
    el("table", {}, el("tbody", {}, ...rows)),
    el("div", { className: "tops" }, ...tops.filter(Boolean)),
  );
  tip.hidden = false;
  place(tip, token.getClientRects()[0] ?? token.getBoundingClientRect());
}

/** Returns the likeliest next tokens of student or teacher, with bars of their probability. */
function alternatives(who, t) {
  const flat = view.tops[who]?.[t];
  if (!flat?.length) return null;
  const rows = [];
  for (let at = 0; at < flat.length; at += 2) {
    const text = view.tops.strings[flat[at]];
    const share = flat[at + 1] === null ? null : Math.exp(flat[at + 1] / 100);
    const bar = el("td", { className: "number bar", textContent: percent(share) });
    bar.style.backgroundSize = `${Math.min(100 * (share ?? 0), 100)}% 3px`;
    const same = text === view.row.pieces[t] ? "same" : "";
    rows.push(el("tr", { className: same }, el("td", {}, el("bdi", { textContent: JSON.stringify(visible(text)) })), bar));
  }
  return el("table", {}, el("caption", { textContent: `${who}'s likeliest` }), el("tbody", {}, ...rows));
}

function place(tip, at) {
  const margin = 8;
  const box = tip.getBoundingClientRect();
  const left = Math.min(Math.max(at.left, margin), window.innerWidth - box.width - margin);
  const below = at.bottom + 6;
  const top = below + box.height + margin > window.innerHeight && at.top - box.height - 6 > 0 ? at.top - box.height - 6 : below;
  tip.style.left = `${Math.max(left, margin)}px`;
  tip.style.top = `${top}px`;
}

function hideTip() {
  document.getElementById("tip").hidden = true;
}
