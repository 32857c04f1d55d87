// Starts the page: its views, its theme, and links into it.

const VIEWS = ["overview", "curves", "words", "rollouts"];
const THEMES = ["system", "light", "dark"];

function openView(name) {
  for (const view of VIEWS) {
    document.getElementById(view).hidden = view !== name;
    const tab = document.getElementById(`tab-${view}`);
    tab.setAttribute("aria-selected", String(view === name));
    tab.tabIndex = view === name ? 0 : -1;
  }
  hideTip();
  if (name === "curves") fitCharts();
  if (name === "rollouts" && browser.list) {
    drawRows();
    scrollToOpen();
  }
}

function currentView() {
  return VIEWS.find((view) => !document.getElementById(view).hidden) ?? "overview";
}

/** Writes view, filters and open rollout into the address, so that a link restores them. */
function writeHash() {
  const name = currentView();
  const values = new URLSearchParams();
  if (name === "rollouts" && browser.controls) {
    for (const [key, value] of Object.entries(filterValues())) {
      if (value !== "" && !(key === "order" && value === "file")) values.set(key, value);
    }
    if (browser.open !== null) values.set("open", browser.open);
  }
  const query = values.toString();
  history.replaceState(null, "", `#${name}${query && `?${query}`}`);
}

/** Restores view, filters and open rollout from the address. */
async function readHash() {
  const [name, query] = location.hash.slice(1).split("?");
  const view = VIEWS.includes(name) ? name : "overview";
  openView(view);
  if (!browser.controls || (view !== "rollouts" && browser.open !== null)) return;
  const values = new URLSearchParams(view === "rollouts" ? query : "");
  for (const [key, input] of Object.entries(browser.controls.inputs)) {
    input.value = values.get(key) ?? (key === "order" ? "file" : "");
    if (input.selectedIndex === -1) input.selectedIndex = 0;
  }
  const open = Number(values.get("open") ?? NaN);
  if (Number.isInteger(open) && open >= 0 && open < browser.index.run.length) browser.open = open;
  await applyFilters();
}

function setTheme(name) {
  document.documentElement.dataset.theme = name;
  document.getElementById("theme").textContent = `Theme: ${name}`;
  redraw();
}

function onKey(event) {
  const writing = event.target.matches("input, select, textarea");
  if (writing || event.altKey || event.ctrlKey || event.metaKey) return;
  if (currentView() === "rollouts" && browser.list) {
    if (event.key === "j") moveBy(1);
    if (event.key === "k") moveBy(-1);
    if (event.key === "/") {
      event.preventDefault();
      browser.controls.inputs.text.focus();
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
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  document.addEventListener("keydown", onKey);
  window.addEventListener("hashchange", readHash);
  showRollouts(report, await block("index"));
  await readHash();
  // Milliseconds from the request of the page to the first view.
  requestAnimationFrame(() => {
    document.documentElement.dataset.ready = Math.round(performance.now());
  });
}

window.addEventListener("unhandledrejection", (event) => fail(event.reason));
window.addEventListener("error", (event) => fail(event.error ?? event.message));
start();
