// The model as a map: a line for each layer, a column for each kind of matrix, coloured by one statistic.

let grid = []; // grid[line][column]: the cell there, or null
let home = { line: 0, column: 0 }; // the one cell that Tab reaches

function drawMap() {
  const { section } = state, { kinds, lines } = section.map;
  const scale = scaleOf(section, state.statistic);
  const table = $("map");
  const longest = Math.max(...lines.filter((line) => line.cells).map((line) => line.label.length), 1);
  table.style.setProperty("--labels", Math.min(longest * 0.62 + 0.9, 9) + "em");
  table.classList.toggle("many", kinds.length > 14);
  table.classList.toggle("ranked", Boolean(state.budget) && section.of === data.ranked);
  grid = [];
  table.replaceChildren(columnsOf(kinds), headOf(kinds), make("tbody", {}, ...lines.map((line) => lineOf(line, kinds, scale))));
  placeOf(state.row);
  drawLegend(scale);
  drawExtremes(section);
}

function columnsOf(kinds) {
  return make("colgroup", {}, make("col", { class: "labels" }), ...kinds.map(() => make("col")));
}

function headOf(kinds) {
  if (!kinds.length) return make("thead");
  const groups = [];
  for (const [group] of kinds) {
    if (groups.length && groups[groups.length - 1][0] === group) groups[groups.length - 1][1] += 1;
    else groups.push([group, 1]);
  }
  const corner = () => make("td", { class: "blank" });
  const above = groups.map(([group, span]) => make("th", { scope: "colgroup", colspan: span, class: group ? "group" : null }, group));
  const below = kinds.map(([, kind]) => make("th", { scope: "col" }, ...breakable(kind || "weight")));
  const head = make("thead", {}, make("tr", {}, corner(), ...below));
  if (groups.some(([group]) => group)) head.prepend(make("tr", {}, corner(), ...above));
  return head;
}

// Words that may be broken where a name or a range has a joint.
function breakable(words) {
  return words.split(/(?<=[_–]|[.](?=\D))|(?=\[)/).flatMap((part, i) => (i ? [make("wbr"), part] : [part]));
}

function lineOf(line, kinds, scale) {
  const tr = make("tr");
  if (line.cells) {
    tr.append(make("th", { scope: "row" }, line.label));
    grid.push(line.cells.map((row) => (row === null ? null : cellOf(row, scale))));
    grid[grid.length - 1].forEach((cell) => tr.append(cell || make("td", { class: "blank" })));
  } else {
    const cell = cellOf(line.wide, scale);
    cell.setAttribute("colspan", kinds.length + 1);
    cell.classList.add("wide");
    cell.prepend(line.label);
    tr.append(cell);
    grid.push(Array(Math.max(kinds.length, 1)).fill(cell));
  }
  return tr;
}

function cellOf(row, scale) {
  const { section } = state, name = field(section, row, "name"), value = field(section, row, state.statistic);
  const rank = suggested(section, row);
  const words = `${name}: ${label(state.statistic)} ${value === null ? "not known" : show(value)}` + (rank === null ? "" : `, suggested rank ${rank}`);
  const cell = make("td", {
    role: "gridcell", tabindex: -1, "data-name": name, "data-row": row, title: words, "aria-label": words,
    "aria-selected": row === state.row, class: value === null ? "unknown" : Array.isArray(value) ? "range" : null,
  }, make("span", { class: "value" }, ...breakable(brief(value))));
  if (rank !== null) cell.append(make("span", { class: "rank" }, String(rank)));
  if (value !== null) {
    const rgb = colour(scale.place(middle(value)));
    cell.style.background = `rgb(${rgb})`;
    cell.style.color = inkOn(rgb);
  }
  return cell;
}

// Makes the cell of a row the one that Tab reaches and marks it as chosen.
function placeOf(row) {
  for (const [line, cells] of grid.entries()) {
    for (const [column, cell] of cells.entries()) {
      if (!cell) continue;
      const here = Number(cell.dataset.row) === row;
      cell.setAttribute("aria-selected", here);
      cell.tabIndex = here ? 0 : -1;
      if (here && grid[home.line]?.[home.column] !== cell) home = { line, column };
    }
  }
}

function drawLegend(scale) {
  const stops = RAMP.map((hex) => "#" + hex).join(", ");
  const ramp = make("span", { class: "ramp" });
  ramp.style.background = `linear-gradient(to right, ${stops})`;
  const unknown = make("span", { class: "unknown" }, make("span", { class: "swatch" }), "not known");
  const ends = scale.known ? [show(scale.low, 2), ramp, show(scale.high, 2) + (scale.logarithmic ? " (logarithmic)" : "") + (scale.ranges ? " (middle of the range)" : "")] : [];
  $("legend").replaceChildren(...ends, ...(scale.known < state.section.rows.length ? [unknown] : []));
  const words = data.columns[state.statistic];
  const more = make("a", { href: "#word-" + state.statistic }, "more");
  $("statistic-words").replaceChildren(words.words + " ", more);
}

// The rows that are lowest and highest in the chosen statistic, as buttons.
function drawExtremes(section) {
  const value = (row) => middle(field(section, row, state.statistic));
  const order = section.rows.map((_, row) => row).filter((row) => value(row) !== null).sort((a, b) => value(a) - value(b));
  const line = (words, rows) => make("div", {}, make("h3", {}, words), ...rows.map((row) => {
    const button = make("button", { type: "button", class: "link", "data-choose": row });
    button.append(...breakable(field(section, row, "name")), make("span", {}, show(field(section, row, state.statistic), 3)));
    return button;
  }));
  $("extremes").replaceChildren(...(order.length > 3 ? [line("Lowest", order.slice(0, 3)), line("Highest", order.slice(-3).reverse())] : []));
}

function moveTo(line, column) {
  const cell = grid[line] && grid[line][column];
  if (!cell) return false;
  for (const other of $("map").querySelectorAll('[tabindex="0"]')) other.tabIndex = -1;
  cell.tabIndex = 0;
  cell.focus();
  home = { line, column };
  return true;
}

// From `home` in steps of (down, right) to the next cell that is there; a wide cell counts as one.
function step(down, right) {
  const from = grid[home.line][home.column];
  let { line, column } = home;
  for (;;) {
    line += down;
    column += right;
    if (!grid[line] || column < 0 || column >= grid[line].length) return;
    if (grid[line][column] && grid[line][column] !== from) return moveTo(line, column);
  }
}

function mapKey(event) {
  const last = grid.length - 1, ends = (line) => [grid[line].findIndex(Boolean), grid[line].findLastIndex(Boolean)];
  const moves = {
    ArrowDown: () => step(1, 0), ArrowUp: () => step(-1, 0), ArrowRight: () => step(0, 1), ArrowLeft: () => step(0, -1),
    Home: () => (event.ctrlKey ? moveTo(0, ends(0)[0]) : moveTo(home.line, ends(home.line)[0])),
    End: () => (event.ctrlKey ? moveTo(last, ends(last)[1]) : moveTo(home.line, ends(home.line)[1])),
    Enter: () => choose(Number(grid[home.line][home.column].dataset.row), true),
  };
  moves[" "] = moves.Enter;
  if (!moves[event.key]) return;
  event.preventDefault();
  moves[event.key]();
}

function statisticsOf(section) {
  const keys = section.columns.filter((key) => !PLACE.includes(key) && section.rows.some((_, row) => isNumber(field(section, row, key))));
  return [usual(section), ...keys.filter((key) => key !== usual(section))];
}

function offerStatistics(section) {
  const statistics = statisticsOf(section);
  if (!statistics.includes(state.statistic)) state.statistic = usual(section);
  $("statistic").replaceChildren(...statistics.map((key) => make("option", { value: key, selected: key === state.statistic ? "" : null }, label(key))));
}

function listenToMap() {
  $("map").addEventListener("click", (e) => { const cell = e.target.closest("[data-row]"); if (cell) choose(Number(cell.dataset.row), true); });
  $("map").addEventListener("keydown", mapKey);
  $("statistic").addEventListener("change", (e) => { state.statistic = e.target.value; drawMap(); remember(); });
}
