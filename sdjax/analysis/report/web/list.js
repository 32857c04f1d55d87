// A list with filters beside the one thing that is open; it creates only the visible rows.

const ROW = 54; // pixels, as in style.css

/**
 * Makes the list of a view. `shown` are the numbers of what passes the filters, `open` is one of
 * them. Its owner sets: `inputs` by name and `defaults` of them, `total` and `noun`, `filter` (which
 * returns the numbers that pass, or null if a newer call replaces it), `makeRow`, and `show`, which
 * shows one number, or null.
 */
class Browser {
  constructor(id, label) {
    this.shown = [];
    this.open = null;
    this.filtering = 0;
    this.count = el("p", { id: id === "list" ? "count" : `${id}-count`, className: "count", role: "status" });
    this.space = el("div", { className: "space" });
    this.list = el("div", { id, className: "list", tabIndex: 0, role: "listbox", "aria-label": `${label}; arrow keys move` });
    this.list.append(this.space);
    this.list.onscroll = () => this.drawRows();
    this.list.onkeydown = (event) => this.onKey(event);
    this.list.onclick = (event) => {
      const row = event.target.closest("[data-i]");
      if (row) this.openAt(Number(row.dataset.i));
    };
    // In the next frame, because new rows trigger the observer again.
    new ResizeObserver(() => requestAnimationFrame(() => this.drawRows())).observe(this.list);
  }

  /** Applies the filters when an input changes; `first` of them open the first row again. */
  watch(first) {
    let wait;
    for (const input of Object.values(this.inputs)) {
      input.oninput = () => {
        clearTimeout(wait);
        if (first.includes(input)) this.open = null;
        wait = setTimeout(() => this.apply(), input.type === "search" ? 200 : 0);
      };
    }
  }

  /** Returns the button that resets the filters. */
  clearButton(id) {
    const clear = el("button", { type: "button", id, textContent: "Clear" });
    clear.onclick = () => {
      this.write({});
      this.apply();
    };
    return clear;
  }

  /** Returns the values of the filters. */
  values() {
    return Object.fromEntries(Object.entries(this.inputs).map(([name, input]) => [name, input.value]));
  }

  /** Sets the filters; those without a value, or with one that does not exist, to their defaults. */
  write(values) {
    for (const [name, input] of Object.entries(this.inputs)) {
      const otherwise = this.defaults[name] ?? "";
      input.value = values[name] ?? otherwise;
      if (input.selectedIndex === -1) input.value = otherwise;
    }
  }

  async apply() {
    const mine = ++this.filtering;
    const values = this.values();
    if (values.text) this.count.textContent = "searching \u2026";
    const shown = await this.filter(values);
    if (mine !== this.filtering) return;
    this.shown = shown;
    const all = number(this.total);
    this.count.textContent = shown.length === this.total ? `${all} ${this.noun}` : `${number(shown.length)} of ${all} ${this.noun}`;
    this.space.style.height = `${shown.length * ROW}px`;
    this.list.scrollTop = 0;
    if (shown.length) await this.openAt(shown.includes(this.open) ? this.open : shown[0]);
    else await this.openAt(null);
  }

  async openAt(i) {
    this.open = i;
    this.scrollToOpen();
    this.drawRows();
    writeHash();
    await this.show(i);
  }

  moveBy(steps) {
    if (!this.shown.length) return;
    const at = this.shown.indexOf(this.open) + steps;
    this.openAt(this.shown[Math.min(Math.max(at, 0), this.shown.length - 1)]);
  }

  onKey(event) {
    const page = Math.max(1, Math.floor(this.list.clientHeight / ROW) - 1);
    const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    if (event.key in moves && !event.altKey && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      this.moveBy(moves[event.key]);
    }
  }

  drawRows() {
    const { list, shown } = this;
    const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 5);
    const last = Math.min(shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + 5);
    const rows = [];
    for (let at = first; at < last; at++) rows.push(this.rowAt(at));
    this.space.replaceChildren(...rows);
    const open = shown.indexOf(this.open);
    if (open >= first && open < last) list.setAttribute("aria-activedescendant", rows[open - first].id);
    else list.removeAttribute("aria-activedescendant");
  }

  rowAt(at) {
    const i = this.shown[at];
    const row = this.makeRow(i);
    const attributes = { "aria-selected": String(i === this.open), "aria-posinset": at + 1, "aria-setsize": this.shown.length };
    for (const [name, value] of Object.entries(attributes)) row.setAttribute(name, value);
    row.setAttribute("role", "option");
    row.className = i === this.open ? "rollout open" : "rollout";
    row.dataset.i = i;
    row.style.top = `${at * ROW}px`;
    return row;
  }

  scrollToOpen() {
    const { list, shown } = this;
    const top = shown.indexOf(this.open) * ROW;
    if (top < 0) return;
    if (top < list.scrollTop) list.scrollTop = top;
    else if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
  }
}

/** Returns an expression that finds a text in upper or lower case and with any white space. */
function pattern(text) {
  const escaped = text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&").replace(/\s+/g, "\\s+");
  return new RegExp(escaped, "gi");
}

function gradeMark(correct) {
  const [mark, label] = correct === null ? ["?", "not graded"] : correct ? ["\u2713", "correct"] : ["\u2717", "wrong"];
  return el("span", { className: `grade ${label.replace(" ", "-")}`, title: label, "aria-label": label, role: "img", textContent: mark });
}
