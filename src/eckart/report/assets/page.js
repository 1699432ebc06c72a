// The page's state: which measurement, which matrix, which statistic, which budget; and the address that names them.

function choose(row, scroll) {
  state.row = row;
  placeOf(row);
  markRow();
  drawDetail();
  remember();
  const detail = $("detail").getBoundingClientRect();
  if (scroll && (detail.top > innerHeight * 0.8 || detail.bottom < 80)) $("detail").scrollIntoView({ block: "start" });
}

// The statistic that a section opens with: the effective rank, or one that a fast profile knows closely.
function usual(section) {
  const known = section.rows.every((_, row) => typeof field(section, row, "effective_rank_fraction") === "number");
  return known ? "effective_rank_fraction" : "stable_rank";
}

function lowest(section) {
  const value = (row) => middle(field(section, row, usual(section))) ?? Infinity;
  return section.rows.reduce((best, _, row) => (value(row) < value(best) ? row : best), 0);
}

function openSection(section, row) {
  const name = field(state.section, state.row, "name");
  const same = section.rows.findIndex((_, i) => field(section, i, "name") === name);
  state.section = section;
  state.row = row ?? (same >= 0 ? same : lowest(section));
  offerStatistics(section);
  $("intro").textContent = section.words;
  $("budget").disabled = section.of !== data.ranked || data.budgets.length === 0;
  for (const tab of $("tabs").children) {
    tab.setAttribute("aria-selected", tab.dataset.of === section.of);
    tab.tabIndex = tab.dataset.of === section.of ? 0 : -1;
  }
  $("panel").setAttribute("aria-labelledby", "tab-" + section.of);
  drawMap();
  drawTable();
  drawDetail();
}

function setBudget(budget) {
  state.budget = budget;
  $("budget").value = budget;
  drawMap();
  drawDetail();
  remember();
}

// The address after # names the view, so that it can be kept and sent: #of=weights&select=NAME&by=alpha&budget=0.8
function remember() {
  const parts = { of: state.section.of, select: field(state.section, state.row, "name") };
  if (state.statistic !== usual(state.section)) parts.by = state.statistic;
  if (state.budget) parts.budget = state.budget;
  const address = "#" + Object.entries(parts).map(([key, value]) => `${key}=${encodeURIComponent(value)}`).join("&");
  try { history.replaceState(null, "", address); } catch { /* a page inside another's sandbox has no address */ }
}

function recall() {
  const parts = new URLSearchParams(location.hash.slice(1).replaceAll("+", "%2B"));
  const name = parts.get("select");
  const has = (section) => (name === null ? -1 : section.rows.findIndex((_, row) => field(section, row, "name") === name));
  const section = data.sections.find((s) => s.of === parts.get("of")) || data.sections.find((s) => has(s) >= 0) || state.section;
  if (statisticsOf(section).includes(parts.get("by"))) state.statistic = parts.get("by");
  if (data.budgets.some((b) => String(b.budget) === parts.get("budget"))) state.budget = $("budget").value = parts.get("budget");
  openSection(section, has(section) >= 0 ? has(section) : undefined);
}

function saveRanks(budget) {
  const text = JSON.stringify(ranksAt(budget), null, 2) + "\n";
  const address = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  make("a", { href: address, download: `ranks-${budget}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}

function tabKey(event) {
  const tabs = [...$("tabs").children], here = tabs.indexOf(document.activeElement);
  const next = { ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: tabs.length - 1 }[event.key];
  if (next === undefined || here < 0) return;
  event.preventDefault();
  const tab = tabs[(next + tabs.length) % tabs.length];
  tab.focus();
  tab.click();
}

function listen() {
  $("tabs").addEventListener("click", (e) => {
    const section = data.sections.find((s) => s.of === e.target.dataset.of);
    if (section) { openSection(section); remember(); }
  });
  $("tabs").addEventListener("keydown", tabKey);
  listenToMap();
  listenToTable();
  $("budget").addEventListener("change", (e) => setBudget(e.target.value));
  $("log-index").addEventListener("change", drawSpectrum);
  $("siblings").addEventListener("change", drawSpectrum);
  $("spectrum").addEventListener("pointermove", readOut);
  $("spectrum").addEventListener("pointerleave", () => $("cursor").replaceChildren());
  $("back").addEventListener("click", () => { const cell = $("map").querySelector('[aria-selected="true"]'); cell.focus(); });
  document.addEventListener("click", (e) => {
    const button = e.target.closest("button");
    if (!button) return;
    if (button.dataset.save) saveRanks(button.dataset.save);
    if (button.dataset.show) {
      openSection(data.sections.find((s) => s.of === data.ranked));
      setBudget(button.dataset.show);
      $("map-title").scrollIntoView();
    }
  });
  addEventListener("hashchange", () => { if (location.hash.includes("select=")) recall(); });
  new ResizeObserver(drawSpectrum).observe($("spectrum").parentElement);
}

$("tabs").append(...data.sections.map((s) => make("button", { type: "button", role: "tab", id: "tab-" + s.of, "aria-controls": "panel", "data-of": s.of }, s.title)));
$("tabs").hidden = data.sections.length < 2;
$("budget").append(make("option", { value: "" }, "off"), ...data.budgets.map((b) => make("option", { value: b.budget }, "at budget " + b.budget)));
state.row = lowest(state.section);
listen();
recall();
