"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const { view } = data;
const find = (id) => document.getElementById(id);
const FONT = { family: "system-ui, sans-serif", size: 12, color: "#1a1a1a" };

if (data.gaps) Plotly.newPlot("gaps", data.gaps.data, data.gaps.layout, { responsive: true, displayModeBar: false });

// What the controls say. `rank` counts from 0 among the draws that the filter keeps, in the chosen order.
const choice = {
  time: view.horizon, cells: "visited", by: "return", least: 0, most: 1, order: "return-down", rank: 0,
  x: view.in_plane ? "0" : "time", y: view.in_plane ? "1" : "0",
};
const panels = data.sources.map((source) => {
  const element = document.querySelector(`.panel[data-source="${source.key}"]`);
  return { source, draws: source.draws, element, plot: element.querySelector(".plot"), kept: [], shown: true };
});

const text = (value) => (value === null || value === undefined ? "−∞" : String(Number(value.toPrecision(4)))).replace("-", "−");
const extent = (values) => {
  let low = Infinity, high = -Infinity;
  for (const value of values) if (value !== null) { low = Math.min(low, value); high = Math.max(high, value); }
  return low <= high ? [low, high] : [0, 0];
};
const limits = Object.fromEntries(["return", "log_weight"].map(
  (name) => [name, extent(data.sources.flatMap((source) => source.draws[name]))]));

// Which draws a panel keeps, in the order of the choice.
function keep(panel) {
  const [low, high] = limits[choice.by], slack = 1e-9 * (high - low + 1);
  const bounds = [low + choice.least * (high - low) - slack, low + choice.most * (high - low) + slack];
  const values = panel.draws[choice.by];
  const passes = (value) => (value === null ? choice.least === 0 : value >= bounds[0] && value <= bounds[1]);
  panel.kept = values.map((_, i) => i).filter((i) => passes(values[i]));
  const [name, way] = choice.order.split("-");
  if (way) {
    const keys = panel.draws[name === "weight" ? "log_weight" : "return"].map((key) => key ?? -Infinity);
    const sign = way === "down" ? -1 : 1;
    panel.kept.sort((i, j) => (keys[i] === keys[j] ? i - j : sign * (keys[i] < keys[j] ? -1 : 1)));
  }
}
const picked = (panel) => panel.kept[Math.min(choice.rank, panel.kept.length - 1)];

// A draw that has ended stays where it ended.
const at = (path, time) => path[Math.min(time, path.length - 1)];

const shade = (colour) => [[0, "#ffffff"], [1, colour]];
const line = (x, y, name) => ({
  type: "scatter", mode: "lines", x, y, name, line: { color: "#000000", width: 2 }, hoverinfo: "skip" });
const point = (x, y) => ({
  type: "scatter", mode: "markers", x, y, hoverinfo: "skip",
  marker: { color: "#ffffff", size: 10, line: { color: "#000000", width: 2.5 } } });

function grid(panel) {
  const rows = view.letters.length, columns = view.letters[0].length;
  const counts = new Float64Array(rows * columns);
  for (const i of panel.kept) {
    const path = panel.draws.state[i];
    const cells = choice.cells === "here" ? [at(path, choice.time)] : new Set(path.slice(0, choice.time + 1));
    for (const cell of cells) counts[cell] += 1;
  }
  const total = Math.max(panel.kept.length, 1);
  const shares = view.letters.map((row, r) => row.map((_, c) => counts[r * columns + c] / total));
  const i = picked(panel);
  const walked = i === undefined ? [] : panel.draws.state[i].slice(0, choice.time + 1);
  const xs = walked.map((cell) => cell % columns), ys = walked.map((cell) => Math.floor(cell / columns));
  const width = panel.plot.clientWidth || 280;
  const axis = { showticklabels: false, ticks: "", showgrid: false, zeroline: false, fixedrange: true };
  return {
    traces: [
      { type: "heatmap", z: shares.map((row) => row.map(Math.sqrt)), zmin: 0, zmax: 1, colorscale: shade(panel.source.colour),
        showscale: false, xgap: 1, ygap: 1, text: view.letters, texttemplate: "%{text}", customdata: shares,
        hovertemplate: "row %{y}, column %{x}: %{customdata:.1%} of draws<extra></extra>" },
      line(xs, ys), point(xs.slice(-1), ys.slice(-1)),
    ],
    layout: {
      height: Math.round(width * rows / columns), margin: { l: 1, r: 1, t: 1, b: 1 }, plot_bgcolor: "#c8c8c8",
      xaxis: { ...axis, range: [-0.5, columns - 0.5] }, yaxis: { ...axis, range: [rows - 0.5, -0.5] },
    },
  };
}

function index(panel) {
  const times = view.horizon + 1;
  const counts = Array.from({ length: view.num_states }, () => new Array(times).fill(0));
  for (const i of panel.kept) for (let t = 0; t < times; t++) counts[at(panel.draws.state[i], t)][t] += 1;
  const total = Math.max(panel.kept.length, 1);
  const shares = counts.map((row) => row.map((count) => count / total));
  const i = picked(panel);
  const ys = i === undefined ? [] : panel.draws.state[i].slice(0, choice.time + 1);
  const xs = ys.map((_, t) => t);
  return {
    traces: [
      { type: "heatmap", z: shares.map((row) => row.map(Math.sqrt)), zmin: 0, zmax: 1, colorscale: shade(panel.source.colour),
        showscale: false, customdata: shares,
        hovertemplate: "time %{x}, state %{y}: %{customdata:.1%} of draws<extra></extra>" },
      line(xs, ys), point(xs.slice(-1), ys.slice(-1)),
    ],
    layout: {
      height: 300, margin: { l: 48, r: 8, t: 4, b: 40 }, shapes: [now()],
      xaxis: { title: { text: "time (steps)" }, range: [-0.5, view.horizon + 0.5], fixedrange: true, zeroline: false },
      yaxis: { title: { text: "state" }, range: [-0.5, view.num_states - 0.5], fixedrange: true, zeroline: false,
        tickformat: "d", ...(view.num_states <= 12 ? { dtick: 1 } : {}) },
    },
  };
}

const now = () => ({
  type: "line", xref: "x", yref: "paper", x0: choice.time, x1: choice.time, y0: 0, y1: 1,
  line: { color: "#595959", width: 1, dash: "dot" } });

const along = (panel, which, i) => (
  which === "time" ? panel.draws.state[0][i].map((_, t) => t) : panel.draws.state[Number(which)][i]);
const title = (which) => (which === "time" ? "time (steps)" : view.names[Number(which)]);

// The range of the sources that are shown, so that a wide one can be put aside.
function spread(which) {
  if (which === "time") return [-0.03 * view.horizon, 1.03 * view.horizon];
  const paths = panels.filter((panel) => panel.shown).flatMap((panel) => panel.draws.state[Number(which)]);
  const [low, high] = extent(paths.map(extent).flat()), pad = 0.05 * (high - low) || 0.5;
  return [low - pad, high + pad];
}

function series(panel) {
  const all = { x: [], y: [] }, dots = { x: [], y: [] };
  for (const i of panel.kept) {
    const xs = along(panel, choice.x, i), ys = along(panel, choice.y, i);
    for (let t = 0; t < xs.length; t++) { all.x.push(xs[t]); all.y.push(ys[t]); }
    all.x.push(null); all.y.push(null);
    // Over time, a draw that has ended has no place any more; in the plane it stays where it ended.
    if (choice.x === "time" && choice.time >= xs.length) continue;
    dots.x.push(at(xs, choice.time)); dots.y.push(at(ys, choice.time));
  }
  const i = picked(panel), end = choice.time + 1;
  const xs = i === undefined ? [] : along(panel, choice.x, i).slice(0, end);
  const ys = i === undefined ? [] : along(panel, choice.y, i).slice(0, end);
  const colour = panel.source.colour, axis = { fixedrange: true, zeroline: false };
  const timed = choice.x === "time";
  return {
    traces: [
      { type: "scatter", mode: "lines", ...all, line: { color: colour, width: 1 }, opacity: 0.25, hoverinfo: "skip" },
      { type: "scatter", mode: "markers", ...dots, marker: { color: colour, size: 5 }, opacity: 0.7, hoverinfo: "skip" },
      { ...line(xs, ys), hoverinfo: "x+y" }, point(xs.slice(-1), ys.slice(-1)),
    ],
    layout: {
      height: 300, margin: { l: 52, r: 8, t: 4, b: 40 }, shapes: timed ? [now()] : [],
      xaxis: { ...axis, title: { text: title(choice.x) }, range: spread(choice.x) },
      yaxis: { ...axis, title: { text: title(choice.y) }, range: spread(choice.y) },
    },
  };
}

const drawing = { grid, index, series }[view.kind];

// The agent's belief, of the picked draw: shares of few states as bars, of more as a heatmap, real ones as a fan.
const PALETTE = ["#0072b2", "#e69f00", "#009e73", "#cc79a7"];
function shares(panel, i) {
  const belief = panel.draws.belief[i], length = panel.draws.length[i];
  const times = belief[0].slice(0, length).map((_, t) => t);
  const path = panel.draws.state[i].slice(0, Math.min(choice.time + 1, length));
  const few = belief.length <= PALETTE.length;
  const middle = (state, t) => belief.slice(0, state).reduce((sum, row) => sum + row[t], 0) + belief[state][t] / 2;
  const truth = few ? path.map(middle) : path;
  const traces = few
    ? belief.map((row, state) => ({ type: "bar", x: times, y: row.slice(0, length), name: `state ${state}`,
      marker: { color: PALETTE[state] }, hovertemplate: "%{y:.3f}" }))
    : [{ type: "heatmap", z: belief.map((row) => row.slice(0, length)), zmin: 0, zmax: 1, showscale: false,
      colorscale: shade(panel.source.colour), hovertemplate: "step %{x}, state %{y}: %{z:.3f}<extra></extra>" }];
  traces.push({ ...point(truth.map((_, t) => t), truth), showlegend: false });
  const up = few ? { title: { text: "belief" }, range: [0, 1] }
    : { title: { text: "state believed" }, tickformat: "d", ...(belief.length <= 12 ? { dtick: 1 } : {}) };
  return { traces, layout: { barmode: "stack", bargap: 0.08, yaxis: { ...up, fixedrange: true, zeroline: false } } };
}

function fan(panel, i) {
  const which = choice.y === "time" ? choice.x : choice.y;
  const dimension = which === "time" ? 0 : Number(which), length = panel.draws.length[i];
  const rows = panel.draws.belief[i][dimension].map((row) => row.slice(0, length)), times = rows[0].map((_, t) => t);
  const path = panel.draws.state[dimension][i].slice(0, Math.min(choice.time + 1, length));
  const band = (low, high, opacity) => [
    { type: "scatter", mode: "lines", x: times, y: rows[low], line: { width: 0 }, hoverinfo: "skip" },
    { type: "scatter", mode: "lines", x: times, y: rows[high], line: { width: 0 }, hoverinfo: "skip", fill: "tonexty",
      fillcolor: panel.source.colour + opacity }];
  const traces = [...band(0, 4, "33"), ...band(1, 3, "66"),
    { type: "scatter", mode: "lines", x: times, y: rows[2], line: { color: panel.source.colour, width: 2 }, hoverinfo: "x+y" },
    line(path.map((_, t) => t), path), point(path.map((_, t) => t).slice(-1), path.slice(-1))];
  const shown = panels.filter((other) => other.shown && other.draws.belief).map((other) => [other, picked(other)]).filter(([, k]) => k !== undefined);
  const [low, high] = extent(shown.flatMap(([other, k]) => other.draws.belief[k][dimension].flat()));
  const pad = 0.05 * (high - low) || 0.5;
  return { traces, layout: { showlegend: false,
    yaxis: { title: { text: view.names[dimension] }, range: [low - pad, high + pad], fixedrange: true, zeroline: false } } };
}

function believe(panel) {
  const element = panel.element.querySelector(".belief"), i = picked(panel);
  if (element === null || !panel.draws.belief) return;
  const { traces, layout } = i === undefined ? { traces: [], layout: {} } : { shares, fan }[view.belief](panel, i);
  Plotly.react(element, traces, {
    height: 220, margin: { l: 52, r: 8, t: 4, b: 40 }, font: FONT, dragmode: false, autosize: true, shapes: [now()],
    showlegend: true, legend: { orientation: "h", yanchor: "bottom", y: 1.02, x: 0, font: { size: 11 } },
    xaxis: { title: { text: "time (steps)" }, range: [-0.5, view.horizon + 0.5], fixedrange: true, zeroline: false },
    ...layout,
  }, { displayModeBar: false, responsive: true });
}

// What a program draws once a trajectory.
function latents() {
  for (const element of document.querySelectorAll(".latent")) {
    const name = element.dataset.latent;
    distribution(element, (panel) => panel.kept.flatMap((i) => [panel.draws.latents[name][i]].flat()), name, 280);
  }
}

const steps = (count) => `${count} step${count === 1 ? "" : "s"}`;

function describe(panel) {
  const i = picked(panel), { draws } = panel;
  panel.element.querySelector(".count").textContent = `${panel.kept.length} of ${draws.return.length} draws shown`;
  const caption = panel.element.querySelector(".picked");
  if (i === undefined) { caption.textContent = "No draw is left; widen the range."; return; }
  const t = choice.time, length = draws.length[i], position = Math.min(choice.rank, panel.kept.length - 1) + 1;
  const latents = Object.entries(draws.latents).map(([name, values]) => `, ${name} ${[values[i]].flat().map(text).join(" ")}`);
  const whole = `Draw ${position} of ${panel.kept.length}: return ${text(draws.return[i])}, log weight ` +
    `${text(draws.log_weight[i])} nats, ${steps(length)}${latents.join("")}.`;
  const where = place(draws, i, t);
  const earned = draws.reward[i].slice(0, t).reduce((sum, reward) => sum + reward, 0);
  const act = t < length
    ? `, action ${action(draws.action[i][t])}, reward ${text(draws.reward[i][t])}`
    : t > length || length < view.horizon ? `, ended after ${steps(length)}` : "";
  caption.textContent = `${whole} Step ${t}: ${where}${act}; return before it ${text(earned)}.`;
}

function believed(draws, i, state, t) {
  const chance = draws.belief?.[i][state]?.[t];
  return chance === undefined || chance === null ? "" : ` (believed with probability ${text(chance)})`;
}

function place(draws, i, t) {
  if (view.kind === "series") {
    const values = draws.state.slice(0, 4).map((paths) => text(at(paths[i], t)));
    return `state ${values.join(", ")}${view.num_dimensions > 4 ? ", …" : ""}`;
  }
  const state = at(draws.state[i], t);
  if (view.kind === "index") return `state ${state}${believed(draws, i, state, t)}`;
  const columns = view.letters[0].length;
  return `row ${Math.floor(state / columns)}, column ${state % columns}`;
}

function action(value) {
  if (Array.isArray(value)) return value.slice(0, 4).map(text).join(", ") + (value.length > 4 ? ", …" : "");
  return view.arrows ? `${value} (${view.arrows[value]})` : text(value);
}

const percent = (share) => `${Number((100 * share).toPrecision(3))} %`;

// Bars where there are few values, else steps over bins: over the range of what is shown.
function distribution(element, valuesOf, name, height) {
  const everything = panels.filter((panel) => panel.shown).flatMap(valuesOf), [low, high] = extent(everything);
  const levels = [...new Set(everything)].sort((a, b) => a - b), few = levels.length <= 12;
  const bins = 40, width = (high - low) / bins || 1;
  const traces = panels.map((panel) => {
    const { source } = panel, values = valuesOf(panel), total = Math.max(values.length, 1);
    const mean = values.reduce((sum, value) => sum + value, 0) / total;
    const common = { name: `${escape(source.label)}, mean ${text(mean)}`, visible: panel.shown ? true : "legendonly" };
    if (few) {
      const y = levels.map((level) => values.filter((value) => value === level).length / total);
      const labels = levels.length <= 4 && window.innerWidth > 600
        ? { text: y.map(percent), textposition: "outside", textangle: 0, cliponaxis: false } : {};
      return { ...common, type: "bar", x: levels.map(text), y, marker: { color: source.colour }, ...labels,
        hovertemplate: `${escape(name)} %{x}: %{y:.1%}<extra>${escape(source.label)}</extra>` };
    }
    const counts = new Array(bins).fill(0);
    for (const value of values) {
      const bin = Math.floor((value - low) / width);
      if (value !== null && value >= low && value <= high) counts[Math.min(bin, bins - 1)] += 1;
    }
    return { ...common, type: "scatter", mode: "lines", x: [...counts, 0].map((_, k) => low + k * width),
      y: [...counts, 0].map((count) => count / total), line: { shape: "hv", color: source.colour, width: 2 },
      hovertemplate: `${escape(name)} from %{x:.4g}: %{y:.1%}<extra>${escape(source.label)}</extra>` };
  });
  Plotly.react(element, traces, {
    height, font: { ...FONT, size: 13 }, dragmode: false, bargap: 0.25, showlegend: true,
    margin: { l: 60, r: 12, t: 20, b: 48 },
    legend: { orientation: "h", yanchor: "bottom", y: 1.04, x: 0, xanchor: "left" },
    xaxis: { title: { text: escape(name) }, type: few ? "category" : "linear", showgrid: false, zeroline: false,
      showline: true, fixedrange: true },
    yaxis: { title: { text: "share of trajectories" }, tickformat: ".0%", rangemode: "tozero", fixedrange: true },
  }, { displayModeBar: false, responsive: true });
}
const returns = () => distribution(find("returns"), (panel) => panel.source.returns, "return (reward units)", 340);

// Plotly's labels know some tags.
function escape(label) { return label.replace(/[<>&]/g, (sign) => ({ "<": "&lt;", ">": "&gt;", "&": "&amp;" })[sign]); }

function show(panel) {
  panel.element.hidden = !panel.shown;
  if (!panel.shown) return;
  const { traces, layout } = drawing(panel);
  Plotly.react(panel.plot, traces, { showlegend: false, font: FONT, dragmode: false, autosize: true, ...layout },
    { displayModeBar: false, responsive: true });
  believe(panel);
  describe(panel);
}

function showAll() {
  find("time").value = choice.time;
  find("time-value").textContent = `step ${choice.time} of ${view.horizon}`;
  const [low, high] = limits[choice.by];
  find("least-value").textContent = text(low + choice.least * (high - low));
  find("most-value").textContent = text(low + choice.most * (high - low));
  panels.forEach(show);
}

function filter() {
  panels.forEach(keep);
  const most = Math.max(1, ...panels.map((panel) => panel.kept.length));
  choice.rank = Math.min(choice.rank, most - 1);
  find("rank").max = most;
  find("rank").value = choice.rank + 1;
  showAll();
  latents();
}

function step(time) {
  choice.time = Math.max(0, Math.min(view.horizon, time));
  showAll();
}

let timer = null;
function stop() {
  clearInterval(timer);
  timer = null;
  find("play").textContent = "▶ Play";
  find("play").setAttribute("aria-label", "play");
}
function play() {
  if (timer !== null) { stop(); return; }
  if (choice.time >= view.horizon) step(0);
  // Ten seconds or so from one end to the other, at a pace that eyes and old telephones can follow.
  const pause = Math.max(120, Math.min(500, 10000 / Math.max(view.horizon, 1)));
  const stride = Math.max(1, Math.round(view.horizon * pause / 10000));
  timer = setInterval(() => { step(choice.time + stride); if (choice.time >= view.horizon) stop(); }, pause);
  find("play").textContent = "❚❚ Pause";
  find("play").setAttribute("aria-label", "pause");
}
function pick(rank) {
  const most = Math.max(1, ...panels.map((panel) => panel.kept.length));
  choice.rank = Math.max(0, Math.min(most - 1, Number.isFinite(rank) ? rank : 0));
  find("rank").value = choice.rank + 1;
  showAll();
}

find("time").addEventListener("input", (event) => { stop(); step(Number(event.target.value)); });
find("play").addEventListener("click", play);
find("back").addEventListener("click", () => { stop(); step(choice.time - 1); });
find("forward").addEventListener("click", () => { stop(); step(choice.time + 1); });
find("previous").addEventListener("click", () => pick(choice.rank - 1));
find("next").addEventListener("click", () => pick(choice.rank + 1));
find("rank").addEventListener("change", (event) => pick(Math.round(Number(event.target.value)) - 1));
find("order").addEventListener("change", (event) => { choice.order = event.target.value; choice.rank = 0; filter(); });
find("filter-by").addEventListener("change", (event) => {
  Object.assign(choice, { by: event.target.value, least: 0, most: 1 });
  find("least").value = 0;
  find("most").value = 1000;
  filter();
});
for (const end of ["least", "most"]) {
  find(end).addEventListener("input", (event) => { choice[end] = Number(event.target.value) / 1000; filter(); });
}
for (const toggle of document.querySelectorAll(".toggles input")) {
  toggle.addEventListener("change", () => {
    panels.find((panel) => panel.source.key === toggle.dataset.source).shown = toggle.checked;
    showAll();
    returns();
    latents();
  });
}
for (const [id, name] of [["cells", "cells"], ["axis-x", "x"], ["axis-y", "y"]]) {
  const control = find(id);
  if (control === null) continue;
  control.value = choice[name];
  control.addEventListener("change", () => { choice[name] = control.value; showAll(); });
}
if (view.kind === "grid") {
  // Wide grids need wide panels, and a panel's height follows from its width.
  if (view.letters[0].length > 1.5 * view.letters.length) find("panels").classList.add("wide");
  let width = window.innerWidth;
  window.addEventListener("resize", () => { if (window.innerWidth !== width) { width = window.innerWidth; showAll(); } });
}
filter();
returns();
// The legend is the same switch as the boxes above.
find("returns").on("plotly_legendclick", (event) => {
  document.querySelectorAll(".toggles input")[event.curveNumber].click();
  return false;
});
find("returns").on("plotly_legenddoubleclick", () => false);
