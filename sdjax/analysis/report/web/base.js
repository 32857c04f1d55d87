// Builds elements, formats texts and numbers, and reads the data in the page.
// Model text enters the page only through textContent, so it cannot become HTML.

/** Returns an element. Values become properties, but "aria-..." and "role" become attributes. */
function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("aria-") || name === "role") made.setAttribute(name, value);
    else if (name === "data") Object.assign(made.dataset, value);
    else made[name] = value;
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

// Control characters, marks that change the direction of text, and lone surrogates.
const UNSEEN =
  // eslint-disable-next-line no-control-regex
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;

/** Returns a text with invisible and reordering characters replaced by visible codes. */
function visible(text) {
  return text.replace(UNSEEN, (found) => {
    const code = found.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0");
    return `\u27e8U+${code}\u27e9`;
  });
}

/** Returns a number for people: rounded, with thousands separators and a true minus sign. */
function number(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "\u2013";
  const shown = Number.isInteger(value)
    ? value.toLocaleString("en-US")
    : // To the nearest, and from halfway to even, as the terminal does.
      value.toLocaleString("en-US", { maximumSignificantDigits: digits, roundingMode: "halfEven" });
  return shown.replace("-", "\u2212");
}

/** Returns a change with its sign. */
function signed(value, digits = 3) {
  return value > 0 ? `+${number(value, digits)}` : number(value, digits);
}

/** Returns hundredths of a nat with their sign. */
function nats(hundredths) {
  if (hundredths === null || hundredths === undefined) return "\u2013";
  return `${hundredths > 0 ? "+" : ""}${fixed(hundredths)} nats`;
}

function fixed(hundredths) {
  return (hundredths / 100).toFixed(2).replace("-", "\u2212");
}

function percent(share) {
  if (share === null || share === undefined) return "\u2013";
  return `${number(100 * share, share < 0.0995 ? 2 : 3)} %`;
}

function option(value, label) {
  return el("option", { value, textContent: label });
}

/** Returns a labelled control. */
function labelled(label, control) {
  return el("label", { className: "field" }, el("span", { textContent: label }), control);
}

function table(head, rows, properties = {}) {
  const cells = (tag, row) =>
    row.map((cell, i) => {
      const made = cell instanceof Node ? el(tag, {}, cell) : el(tag, { textContent: cell });
      if (tag === "th") made.scope = "col";
      else if (i > 0) made.className = "number";
      return made;
    });
  return el(
    "table",
    properties,
    el("thead", {}, el("tr", {}, ...cells("th", head))),
    el("tbody", {}, ...rows.map((row) => el("tr", {}, ...cells("td", row)))),
  );
}

function fail(error) {
  const shown = document.getElementById("problem");
  shown.textContent = `This report cannot be shown: ${error.message || error}`;
  shown.hidden = false;
}

async function unpack(base64) {
  if (typeof DecompressionStream === "undefined") {
    throw new Error("the browser has no DecompressionStream; use one from 2023 or later");
  }
  const bytes = Uint8Array.fromBase64
    ? Uint8Array.fromBase64(base64)
    : Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

const parsed = new Promise((resolve) => {
  if (document.readyState !== "loading") resolve();
  else document.addEventListener("DOMContentLoaded", resolve);
});

const unpacked = new Map();
const KEPT = 24; // number of unpacked blocks in memory

/** Returns a block of data by name; blocks below the scripts may still be loading. */
async function block(name) {
  let promise = unpacked.get(name);
  if (promise) {
    unpacked.delete(name);
  } else {
    if (!document.getElementById(`block-${name}`)) await parsed;
    promise = unpack(document.getElementById(`block-${name}`).textContent.trim());
  }
  unpacked.set(name, promise);
  if (unpacked.size > KEPT) unpacked.delete(unpacked.keys().next().value);
  return promise;
}

// The palette of Okabe and Ito, which people with any colour vision can distinguish.
const COLOURS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#999999"];

function colourOf(i) {
  return COLOURS[i % COLOURS.length];
}

/** Returns a colour of the style sheet in the current theme, in a form that a canvas accepts. */
function css(name) {
  const probe = document.body.appendChild(el("span"));
  probe.style.color = `var(${name})`;
  const colour = getComputedStyle(probe).color;
  probe.remove();
  return colour;
}
