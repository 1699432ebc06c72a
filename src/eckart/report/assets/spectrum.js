// The chosen matrix: its singular values on a logarithmic axis, the marks on them, and its numbers.

const MARGIN = { top: 46, right: 16, bottom: 40, left: 62 };
const DEEPEST = 1e-7; // of σ₁: what is below is rounding, and drawn at the bottom

let shown = null; // the axes of the spectrum on the page

function drawDetail() {
  const { section, row } = state, name = field(section, row, "name"), drawn = section.spectra[row];
  $("detail").dataset.selected = name;
  $("detail-kind").textContent = `${section.title} · ${show(field(section, row, "m"))} × ${show(field(section, row, "n"))}`;
  $("detail-title").replaceChildren(...breakable(name));
  const missing = drawn.count - drawn.known;
  $("detail-note").hidden = missing === 0;
  $("detail-note").textContent = missing === 0 ? "" :
    `The ${drawn.known} largest of ${drawn.count} singular values are known (fast mode), and the exact energy. ` +
    "A range surely holds the number; “–” needs every singular value.";
  drawSpectrum();
  drawNumbers();
}

const indexOf = (drawn, i) => (drawn.at ? drawn.at[i] : i + 1);

function axesOf(section, row, others) {
  const drawn = section.spectra[row], edge = field(section, row, "noise_edge");
  const tops = [drawn, ...others].map((o) => o.values[0]).filter((v) => v > 0);
  const top = Math.max(...tops, edge || 0) || 1;
  const least = drawn.values.filter((v) => v > top * DEEPEST).at(-1) || top / 10;
  const low = Math.min(least, edge || least), count = Math.max(drawn.count, 2);
  const width = Math.max($("spectrum").clientWidth, 280), height = $("spectrum").clientHeight || 380;
  const logarithmic = $("log-index").checked;
  const y0 = Math.log10(low) - 0.03, y1 = Math.log10(top) + 0.06;
  const bend = logarithmic ? Math.log : (i) => i;
  const span = [bend(1), bend(count)];
  const right = width - MARGIN.right, bottom = height - MARGIN.bottom;
  const x = (i) => MARGIN.left + ((bend(Math.max(i, 1)) - span[0]) / (span[1] - span[0])) * (right - MARGIN.left);
  const y = (v) => bottom - ((Math.max(Math.log10(Math.max(v, 1e-300)), y0) - y0) / (y1 - y0)) * (bottom - MARGIN.top);
  return { x, y, y0, y1, count, logarithmic, width, height, right, bottom, drawn, edge };
}

function drawSpectrum() {
  const { section, row } = state, svg = $("spectrum"), kind = field(section, row, "kind");
  const siblings = $("siblings").checked
    ? section.spectra.filter((_, i) => i !== row && field(section, i, "kind") === kind && field(section, i, "layer") !== null) : [];
  const axes = (shown = axesOf(section, row, siblings));
  svg.setAttribute("viewBox", `0 0 ${axes.width} ${axes.height}`);
  svg.replaceChildren(...gridLines(axes), ...siblings.map((other) => curve(axes, other, "sibling")));
  drawMarks(svg, axes);
  svg.append(curve(axes, axes.drawn, "curve"));
  if (axes.drawn.values.length <= 64)
    axes.drawn.values.forEach((v, i) => svg.append(draw("circle", { class: "dot", cx: axes.x(indexOf(axes.drawn, i)), cy: axes.y(v), r: 3.2 })));
  drawTail(svg, axes);
  svg.append(draw("g", { id: "cursor" }));
  $("spectrum-words").textContent = spectrumWords(section, row);
}

function curve(axes, drawn, className) {
  const inside = className === "sibling" ? ([i, v]) => i <= axes.count && v >= 10 ** axes.y0 : () => true;
  const points = drawn.values.map((v, i) => [indexOf(drawn, i), v]).filter(inside);
  return draw("path", { class: className, d: points.map(([i, v], k) => `${k ? "L" : "M"}${axes.x(i).toFixed(1)} ${axes.y(v).toFixed(1)}`).join("") });
}

// Where the unknown singular values of a fast profile can lie: not above the last known one.
function drawTail(svg, axes) {
  const { drawn } = axes;
  if (drawn.known === drawn.count) return;
  const y = axes.y(drawn.values.at(-1));
  svg.append(draw("line", { class: "tail", x1: axes.x(drawn.known), x2: axes.right, y1: y, y2: y }));
  svg.append(draw("text", { class: "tail-word", x: axes.right - 4, y: y - 7, "text-anchor": "end" }, "unknown: below"));
}

function niceSteps(low, high) {
  const steps = [];
  for (let decade = Math.floor(low); decade <= Math.ceil(high); decade++)
    for (const digit of [1, 2, 5]) steps.push({ value: digit * 10 ** decade, major: digit === 1 });
  const inside = steps.filter((s) => Math.log10(s.value) >= low && Math.log10(s.value) <= high);
  return high - low > 2.2 ? inside.filter((s) => s.major) : inside;
}

function ticksOf(axes) {
  if (axes.logarithmic) return niceSteps(0, Math.log10(axes.count)).map((s) => s.value);
  const raw = axes.count / 5, power = 10 ** Math.floor(Math.log10(raw));
  const size = [1, 2, 5, 10].map((d) => Math.max(d * power, 1)).find((s) => s >= raw);
  return [1, ...Array.from({ length: Math.floor(axes.count / size) }, (_, i) => (i + 1) * size)];
}

function gridLines(axes) {
  const parts = [];
  for (const { value, major } of niceSteps(axes.y0, axes.y1)) {
    const y = axes.y(value);
    parts.push(draw("line", { class: major ? "grid" : "grid minor", x1: MARGIN.left, x2: axes.right, y1: y, y2: y }));
    parts.push(draw("text", { x: MARGIN.left - 8, y: y + 4, "text-anchor": "end" }, show(value, 2)));
  }
  let taken = -Infinity;
  for (const value of ticksOf(axes)) {
    const x = axes.x(value);
    parts.push(draw("line", { class: "grid minor", x1: x, x2: x, y1: MARGIN.top, y2: axes.bottom }));
    if (x - taken < 34) continue;
    parts.push(draw("text", { x, y: axes.bottom + 17, "text-anchor": "middle" }, show(value, 2)));
    taken = x;
  }
  parts.push(draw("line", { class: "grid", x1: MARGIN.left, x2: axes.right, y1: axes.bottom, y2: axes.bottom }));
  parts.push(draw("text", { x: axes.right, y: axes.bottom + 34, "text-anchor": "end" }, "index i"));
  parts.push(draw("text", { x: MARGIN.left - 8, y: MARGIN.top - 8, "text-anchor": "end" }, "σᵢ"));
  return parts;
}

function drawMarks(svg, axes) {
  const { section, row } = state, rank = suggested(section, row);
  const place = (x, before) => (before ? { x: x - 5, "text-anchor": "end" } : { x: x + 5, "text-anchor": "start" });
  if (typeof rank === "number") {
    const x = axes.x(Math.max(rank, 1));
    svg.append(draw("rect", { class: "kept", x: MARGIN.left, y: MARGIN.top, width: x - MARGIN.left, height: axes.bottom - MARGIN.top }));
    svg.append(draw("line", { class: "chosen", x1: x, x2: x, y1: MARGIN.top - 4, y2: axes.bottom }));
    svg.append(draw("text", { class: "chosen-word", ...place(x, x > axes.right - 170), y: axes.bottom - 8 }, `rank ${rank} at budget ${state.budget}`));
  }
  drawEnergyMarks(svg, axes, place);
  if (axes.edge === null || axes.edge === 0) return;
  const y = axes.y(axes.edge);
  svg.append(draw("line", { class: "edge", x1: MARGIN.left, x2: axes.right, y1: y, y2: y }));
  svg.append(draw("text", { class: "edge-word", x: MARGIN.left + 6, y: y + 16 }, `noise edge ${show(axes.edge, 3)}`));
}

// The ranks that hold 90 % and 99 % of the energy; the words stand so that neither crosses the other's line.
function drawEnergyMarks(svg, axes, place) {
  const { section, row } = state;
  const marks = [["energy_rank_90", "90 %"], ["energy_rank_99", "99 %"]].map(([key, percent]) => ({ percent, value: field(section, row, key) }));
  const starts = marks.map(({ value }) => axes.x(Array.isArray(value) ? value[0] : value || 1));
  const before = starts[1] > axes.right - 160;
  marks.forEach(({ percent, value }, i) => {
    if (!value) return;
    const y = (i === 0) === before ? 30 : 14, x = starts[i];
    if (Array.isArray(value)) svg.append(draw("rect", { class: "band", x, y: MARGIN.top, width: axes.x(value[1]) - x, height: axes.bottom - MARGIN.top }));
    else svg.append(draw("line", { class: "energy", x1: x, x2: x, y1: y + 4, y2: axes.bottom }));
    svg.append(draw("text", { class: "energy-word", ...place(x, before && x > MARGIN.left + 150), y }, `${percent} of energy: ${show(value)}`));
  });
}

function spectrumWords(section, row) {
  const outliers = field(section, row, "outliers"), value = (key) => show(field(section, row, key));
  return `The ${section.spectra[row].count} singular values of the matrix, σ₁ = ${value("spectral_norm")}. ` +
    `90 % of the energy is in ${value("energy_rank_90")} directions, 99 % in ${value("energy_rank_99")}` +
    (outliers === null ? "." : `; ${show(outliers)} stand clear of the noise edge.`);
}

// The point nearest to the pointer, with its number.
function readOut(event) {
  const { drawn, x, y, width } = shown;
  const pointer = event.clientX - $("spectrum").getBoundingClientRect().left;
  const away = (i) => Math.abs(x(indexOf(drawn, i)) - pointer);
  const best = drawn.values.reduce((found, _, i) => (away(i) < away(found) ? i : found), 0);
  const index = indexOf(drawn, best), value = drawn.values[best], left = x(index) > width - 150;
  $("cursor").replaceChildren(
    draw("circle", { class: "cursor", cx: x(index), cy: y(value), r: 5 }),
    draw("text", { class: "readout", x: x(index) + (left ? -9 : 9), y: y(value) - 9, "text-anchor": left ? "end" : "start" },
      `σ at ${index}: ${show(value)}`));
}

function drawNumbers() {
  const { section, row } = state, rank = suggested(section, row);
  const pairs = section.columns.filter((key) => !PLACE.includes(key) && key !== "m" && key !== "n").map((key) => [key, field(section, row, key)]);
  if (rank !== null) pairs.unshift(["suggested_rank", rank]);
  $("numbers").replaceChildren(...pairs.map(([key, value]) => {
    const term = make("dt", {}, make("a", { href: "#word-" + key, title: data.columns[key].words }, label(key)));
    return make("div", { "data-key": key, class: typeof value === "string" && rank !== value ? "words" : null }, term, make("dd", {}, show(value)));
  }));
}
