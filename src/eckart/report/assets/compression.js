// The page of a compressed model: what became of each matrix, as a map and as a table.

const usual = () => "kept"; // what the map shows first

function choose(row, scroll) {
  state.row = row;
  placeOf(row);
  markRow();
  remember();
  const chosen = $("rows").querySelector('tr[aria-current="true"]');
  if (scroll && chosen) chosen.scrollIntoView({ block: "center" });
}

// The address after # names the view, so that it can be kept and sent: #select=NAME&by=predicted_error
function remember() {
  const parts = { select: field(state.section, state.row, "name"), by: state.statistic };
  const address = "#" + Object.entries(parts).map(([key, value]) => `${key}=${encodeURIComponent(value)}`).join("&");
  try { history.replaceState(null, "", address); } catch { /* a page inside another's sandbox has no address */ }
}

function recall() {
  const parts = new URLSearchParams(location.hash.slice(1).replaceAll("+", "%2B"));
  const row = state.section.rows.findIndex((_, i) => field(state.section, i, "name") === parts.get("select"));
  if (row >= 0) state.row = row;
  if (statisticsOf(state.section).includes(parts.get("by"))) state.statistic = parts.get("by");
}

recall();
offerStatistics(state.section);
listenToMap();
listenToTable();
drawMap();
drawTable();
