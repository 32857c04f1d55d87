// Starts the page: its views, its theme, and links into it.

const VIEWS = ["overview", "curves", "words", "answers", "rollouts"];
const THEMES = ["system", "light", "dark"];

/** Returns the list of a view; undefined for a view without one, or without anything to list. */
function listOf(name) {
  const list = { answers: asked, rollouts: browser }[name];
  return list?.inputs ? list : undefined;
}

function openView(name) {
  for (const view of VIEWS) {
    document.getElementById(view).hidden = view !== name;
    const tab = document.getElementById(`tab-${view}`);
    tab.setAttribute("aria-selected", String(view === name));
    tab.tabIndex = view === name ? 0 : -1;
  }
  hideTip();
  fitCharts();
  listOf(name)?.drawRows();
  listOf(name)?.scrollToOpen();
}

function currentView() {
  return VIEWS.find((view) => !document.getElementById(view).hidden) ?? "overview";
}

/** Writes view, filters and what is open into the address, so that a link restores them. */
function writeHash() {
  const name = currentView();
  const values = new URLSearchParams();
  const list = listOf(name);
  if (list) {
    for (const [key, value] of Object.entries(list.values())) {
      if (value !== (list.defaults[key] ?? "")) values.set(key, value);
    }
    if (list.open !== null) values.set("open", list.open);
  }
  const query = values.toString();
  history.replaceState(null, "", `#${name}${query && `?${query}`}`);
}

/** Restores view, filters and what is open from the address. */
async function readHash() {
  const [name, query] = location.hash.slice(1).split("?");
  const view = VIEWS.includes(name) ? name : "overview";
  openView(view);
  for (const each of VIEWS) {
    const list = listOf(each);
    if (!list || (each !== view && list.open !== null)) continue;
    const values = new URLSearchParams(each === view ? query : "");
    list.write(Object.fromEntries(values));
    const open = Number(values.get("open") ?? NaN);
    if (Number.isInteger(open) && open >= 0 && open < list.total) list.open = open;
    await list.apply();
  }
}

function setTheme(name) {
  document.documentElement.dataset.theme = name;
  document.getElementById("theme").textContent = `Theme: ${name}`;
  redraw();
}

function onKey(event) {
  const writing = event.target.matches("input, select, textarea");
  if (writing || event.altKey || event.ctrlKey || event.metaKey) return;
  const list = listOf(currentView());
  if (list) {
    if (event.key === "j") list.moveBy(1);
    if (event.key === "k") list.moveBy(-1);
    if (event.key === "/") {
      event.preventDefault();
      list.inputs.text.focus();
    }
  }
  if (event.target.matches("[role=tab]") && ["ArrowLeft", "ArrowRight"].includes(event.key)) {
    const by = event.key === "ArrowRight" ? 1 : -1;
    const next = VIEWS[(VIEWS.indexOf(currentView()) + by + VIEWS.length) % VIEWS.length];
    document.getElementById(`tab-${next}`).click();
    document.getElementById(`tab-${next}`).focus();
  }
}

async function start() {
  const report = await block("report");
  unfold(report, report.series);
  showOverview(report);
  showCurves(report);
  showWords(report);
  for (const view of VIEWS) {
    document.getElementById(`tab-${view}`).onclick = () => {
      openView(view);
      writeHash();
    };
  }
  let theme = 0;
  document.getElementById("theme").onclick = () => {
    theme = (theme + 1) % THEMES.length;
    setTheme(THEMES[theme]);
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraw());
  document.addEventListener("keydown", onKey);
  window.addEventListener("hashchange", readHash);
  showRollouts(report, await block("index"));
  showAnswers(report, await block("answers"));
  await readHash();
  // Milliseconds from the request of the page to the first view.
  requestAnimationFrame(() => {
    document.documentElement.dataset.ready = Math.round(performance.now());
  });
}

window.addEventListener("unhandledrejection", (event) => fail(event.reason));
window.addEventListener("error", (event) => fail(event.error ?? event.message));
start();
