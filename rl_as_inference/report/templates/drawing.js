"use strict";

// What all pictures share: colours of the theme, numbers as text, and the frame of a figure.

const data = JSON.parse(document.getElementById("data").textContent);
const find = (id) => document.getElementById(id);
const root = document.documentElement;
const FONT = "system-ui, sans-serif";

// Brighter is more, in the light and in the dark: the colours of a cell do not change with the page's.
const CIVIDIS = ["#00204c", "#31446b", "#666970", "#958f78", "#cbba69", "#ffe945"];
const SCALE = CIVIDIS.map((colour, i) => [i / (CIVIDIS.length - 1), colour]);
const WALL = "#8a8f96";

const system = window.matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
const css = (name) => getComputedStyle(root).getPropertyValue(`--${name}`).trim();
const colourOf = (source) => (isDark() ? source.colour_on_dark : source.colour);
const faint = (colour, share) => colour + Math.round(255 * share).toString(16).padStart(2, "0");

const text = (value) => (value === null || value === undefined ? "−∞" : String(Number(value.toPrecision(4)))).replace("-", "−");
const percent = (share) => `${Number((100 * share).toPrecision(3))} %`;
const extent = (values) => {
  let low = Infinity, high = -Infinity;
  for (const value of values) if (value !== null) { low = Math.min(low, value); high = Math.max(high, value); }
  return low <= high ? [low, high] : [0, 0];
};
const padded = ([low, high]) => { const pad = 0.05 * (high - low) || 0.5; return [low - pad, high + pad]; };

// Plotly's labels know some tags, and its hover texts know %{…}.
function escape(label) {
  return label.replace(/[<>&]/g, (sign) => ({ "<": "&lt;", ">": "&gt;", "&": "&amp;" })[sign]).replaceAll("%{", "%\u200b{");
}

// A figure in the colours of the theme, without tools that nobody needs on a telephone.
function draw(element, traces, layout) {
  const ink = css("ink"), rule = css("rule"), axes = {};
  for (const [name, value] of Object.entries(layout)) {
    if (/^[xy]axis/.test(name)) {
      axes[name] = { gridcolor: rule, zerolinecolor: css("strong"), linecolor: css("strong"), zeroline: false,
        fixedrange: true, ...value };
    }
  }
  return Plotly.react(element, traces, {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", dragmode: false, autosize: true, showlegend: false,
    font: { family: FONT, size: 12, color: ink },
    hoverlabel: { bgcolor: css("paper"), bordercolor: css("strong"), font: { color: ink, family: FONT } },
    ...layout, ...axes,
  }, { displayModeBar: false, responsive: true });
}

const LEGEND = { orientation: "h", yanchor: "bottom", y: 1.02, x: 0, xanchor: "left", font: { size: 12 } };

// On cells, whose colours may be any: white with a dark rim.
const rimmed = (x, y, width = 2) => [
  { type: "scatter", mode: "lines", x, y, line: { color: "#000000", width: width + 2.5 }, hoverinfo: "skip" },
  { type: "scatter", mode: "lines", x, y, line: { color: "#ffffff", width }, hoverinfo: "skip" }];
const line = (x, y, width = 2.5) => (
  { type: "scatter", mode: "lines", x, y, line: { color: css("ink"), width }, hoverinfo: "skip" });
const point = (x, y) => ({
  type: "scatter", mode: "markers", x, y, hoverinfo: "skip",
  marker: { color: "#ffffff", size: 11, line: { color: "#000000", width: 2.5 } } });

// Two bands and a line: nine tenths and half of some values, at each step.
const band = (x, low, high, colour, share, name) => [
  { type: "scatter", mode: "lines", x, y: low, line: { width: 0 }, hoverinfo: "skip", showlegend: false },
  { type: "scatter", mode: "lines", x, y: high, line: { width: 0 }, hoverinfo: "skip", fill: "tonexty",
    fillcolor: faint(colour, share), showlegend: Boolean(name), name: name ?? "" }];

// What the colours of cells mean: one bar for all of them.
function bar(element, title, ticks) {
  if (element === null) return;
  const part = (name) => { const found = document.createElement("div"); found.className = name; return found; };
  const scale = part("scale"), marks = part("ticks"), heading = document.createElement("div");
  heading.textContent = title;
  for (const [at, label] of ticks) {
    const mark = document.createElement("span");
    mark.textContent = label;
    mark.style.left = `${100 * at}%`;
    marks.append(mark);
  }
  element.replaceChildren(heading, scale, marks);
}

// A key and a door, around a place.
function glyph(letter, x, y, size = 1) {
  const at = (dx, dy) => `${(x + size * dx).toFixed(3)},${(y + size * dy).toFixed(3)}`;
  if (letter === "D") {
    const frame = `M${at(-0.26, 0.4)}L${at(-0.26, -0.4)}L${at(0.26, -0.4)}L${at(0.26, 0.4)}Z`;
    return `${frame}M${at(0.12, -0.04)}L${at(0.2, -0.04)}L${at(0.2, 0.06)}L${at(0.12, 0.06)}Z`;
  }
  const ring = `${Array.from({ length: 24 }, (_, k) => {
    const angle = (2 * Math.PI * k) / 24;
    return (k ? "L" : "M") + at(-0.13 + 0.17 * Math.cos(angle), 0.17 * Math.sin(angle));
  }).join("")}Z`;
  const teeth = [[0.03, -0.05], [0.38, -0.05], [0.38, 0.17], [0.3, 0.17], [0.3, 0.05], [0.24, 0.05], [0.24, 0.14],
    [0.17, 0.14], [0.17, 0.05], [0.03, 0.05]];
  return `${ring}${teeth.map(([dx, dy], k) => (k ? "L" : "M") + at(dx, dy)).join("")}Z`;
}
