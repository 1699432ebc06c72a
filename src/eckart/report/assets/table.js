// Every row and column of the section, to sort and to filter.

function drawTable() {
  const { section } = state;
  const keys = section.columns.filter((key) => key !== "layer" && key !== "kind");
  const head = make("tr", {}, ...keys.map((key) => {
    const sorted = state.sort === key ? (state.down ? "descending" : "ascending") : null;
    const arrow = sorted ? (state.down ? " ↓" : " ↑") : "";
    const button = make("button", { type: "button", "data-sort": key, title: data.columns[key].words }, label(key) + arrow);
    return make("th", { scope: "col", "aria-sort": sorted }, button);
  }));
  const rows = sortedRows(section).filter((row) => matches(section, row));
  $("rows").replaceChildren(make("thead", {}, head), make("tbody", {}, ...rows.map((row) => tableRow(section, row, keys))));
  $("shown").textContent = rows.length === section.rows.length ? `${rows.length} matrices` : `${rows.length} of ${section.rows.length} matrices`;
}

function matches(section, row) {
  const name = String(field(section, row, "name")).toLowerCase();
  return $("filter").value.toLowerCase().split(/\s+/).every((word) => name.includes(word));
}

// Rows in the chosen order; what is not known comes last either way.
function sortedRows(section) {
  const order = section.rows.map((_, row) => row);
  if (!state.sort) return order;
  const value = (row) => { const raw = field(section, row, state.sort); return isNumber(raw) ? middle(raw) : raw; };
  const unknown = (v) => v === null || v === undefined || v === "";
  return order.sort((a, b) => {
    const x = value(a), y = value(b);
    if (unknown(x) || unknown(y)) return unknown(x) - unknown(y) || a - b;
    return (typeof x === "number" ? x - y : String(x).localeCompare(String(y), "en", { numeric: true })) * (state.down ? -1 : 1) || a - b;
  });
}

function tableRow(section, row, keys) {
  const name = make("button", { type: "button", class: "link", "data-choose": row }, ...breakable(field(section, row, "name")));
  const cells = keys.filter((key) => key !== "name").map((key) => {
    const value = field(section, row, key), words = typeof value === "string" ? "words" : null;
    return make("td", { class: words, title: words ? value : null }, show(value));
  });
  return make("tr", { "aria-current": row === state.row ? "true" : null }, make("th", { scope: "row" }, name), ...cells);
}

function markRow() {
  for (const tr of $("rows").querySelectorAll("tbody tr")) {
    if (Number(tr.querySelector("button").dataset.choose) === state.row) tr.setAttribute("aria-current", "true");
    else tr.removeAttribute("aria-current");
  }
}

function listenToTable() {
  $("filter").addEventListener("input", drawTable);
  document.addEventListener("click", (e) => {
    const button = e.target.closest("button");
    if (button && button.dataset.choose) choose(Number(button.dataset.choose), true);
    if (!button || !button.dataset.sort) return;
    state.down = state.sort === button.dataset.sort ? !state.down : button.dataset.sort !== "name";
    state.sort = button.dataset.sort;
    drawTable();
    $("rows").querySelector(`[data-sort="${state.sort}"]`).focus();
  });
}
