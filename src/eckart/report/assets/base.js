// Data, small helpers, numbers as people read them, and colour.

const data = JSON.parse(document.getElementById("profile-data").textContent);
const state = { section: data.sections[0], row: 0, statistic: "", budget: "", sort: null, down: true };
const PLACE = ["name", "layer", "kind"];
// Viridis: even in lightness, and told apart with every kind of colour vision.
const RAMP = ["440154", "482475", "414487", "355f8d", "2a788e", "21918c", "22a884", "44bf70", "7ad151", "bddf26", "fde725"];

const $ = (id) => document.getElementById(id);

function make(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes || {})) if (value !== null) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function draw(tag, attributes, ...children) {
  const node = document.createElementNS(document.querySelector("svg").namespaceURI, tag);
  for (const [key, value] of Object.entries(attributes || {})) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function field(section, row, key) {
  const column = section.columns.indexOf(key);
  return column < 0 ? null : section.rows[row][column];
}

const label = (key) => data.columns[key].label;
const isNumber = (value) => typeof value === "number" || Array.isArray(value);
const middle = (value) => (Array.isArray(value) ? (value[0] + value[1]) / 2 : typeof value === "number" ? value : null);

function show(value, digits = 4) {
  if (value === null || value === undefined || value === "") return "–";
  if (Array.isArray(value)) return show(value[0], digits) + "–" + show(value[1], digits);
  if (typeof value !== "number") return value;
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e9) return value.toLocaleString("en");
  if (size >= 10 ** digits && size < 1e9) return Math.round(value).toLocaleString("en");
  if (size >= 1e9 || size < 1e-4) return value.toExponential(Math.max(digits - 2, 1));
  return String(Number(value.toPrecision(digits)));
}

// A number short enough for a cell of the map; a range of 2 % or less is as good as its middle.
function brief(value) {
  if (value === null) return "";
  if (Array.isArray(value)) return value[1] <= 1.025 * value[0] ? "≈ " + brief(middle(value)) : brief(value[0]) + "–" + brief(value[1]);
  const size = Math.abs(value);
  if (size >= 1e6 || (size < 1e-3 && size > 0)) return value.toExponential(0).replace("e+", "e");
  if (size >= 1e4) return Math.round(value / 1000) + "k";
  if (Number.isInteger(value) || size >= 100) return String(Math.round(value));
  return value.toFixed(size >= 10 ? 1 : size >= 0.1 || size === 0 ? 2 : 3);
}

// From the values of one statistic to places 0 … 1 on the ramp; logarithmic where they span more than a factor of 50.
function scaleOf(section, key) {
  const found = section.rows.map((_, row) => middle(field(section, row, key))).filter((value) => value !== null);
  const low = Math.min(...found), high = Math.max(...found);
  const logarithmic = low > 0 && high / low > 50;
  const bend = logarithmic ? Math.log : (value) => value;
  const place = (value) => (high > low ? (bend(value) - bend(low)) / (bend(high) - bend(low)) : 0.5);
  const ranges = section.rows.some((_, row) => Array.isArray(field(section, row, key)));
  return { low, high, logarithmic, ranges, known: found.length, place };
}

function colour(place) {
  const position = Math.max(0, Math.min(1, place)) * (RAMP.length - 1);
  const first = Math.min(Math.floor(position), RAMP.length - 2), share = position - first;
  const channel = (stop, i) => parseInt(RAMP[stop].slice(2 * i, 2 * i + 2), 16);
  return [0, 1, 2].map((i) => Math.round(channel(first, i) * (1 - share) + channel(first + 1, i) * share));
}

// Black or white, whichever stands out more (WCAG's relative luminance).
function inkOn(rgb) {
  const linear = rgb.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.179 ? "#000" : "#fff";
}

const ranksAt = (budget) => (data.budgets.find((b) => String(b.budget) === String(budget)) || { ranks: {} }).ranks;

// The suggested rank of a row at the chosen budget: a number, "dense", or null.
function suggested(section, row) {
  if (!state.budget || section.of !== data.ranked) return null;
  const rank = ranksAt(state.budget)[field(section, row, "name")];
  if (rank === undefined) return null;
  return rank >= section.spectra[row].count ? "dense" : rank;
}
