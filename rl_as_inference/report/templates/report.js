// The controls, and what they show.

// `rank` counts from 0 among the draws that the filter keeps, in the chosen order.
const horizon = Math.max(...data.runs.map((run) => run.view.horizon));
const plane = data.runs.some((run) => run.view.in_plane);
const choice = {
  time: horizon, cells: "visited", by: "return", least: 0, most: 1, order: "return-down", rank: 0,
  x: plane ? "0" : "time", y: plane ? "1" : "0", action: "0",
};
const panels = data.runs.flatMap((run, r) => run.sources.map((source) => {
  const element = document.querySelector(`.panel[data-source="${source.key}"][data-run="${r}"]`);
  return { source, run, r, view: run.view, draws: source.draws, element, plot: element.querySelector(".plot"), kept: [], shown: true };
}));
const limits = Object.fromEntries(["return", "log_weight"].map(
  (name) => [name, extent(panels.flatMap((panel) => panel.draws[name]))]));

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

const counted = (count, what) => `${count} ${what}${count === 1 ? "" : "s"}`;

function describe(panel) {
  const i = picked(panel), { draws } = panel;
  panel.element.querySelector(".count").textContent = `${panel.kept.length} of ${counted(draws.return.length, "draw")} shown`;
  const caption = panel.element.querySelector(".picked");
  if (i === undefined) { caption.textContent = "No draw is left; widen the range."; return; }
  const t = choice.time, length = draws.length[i], position = Math.min(choice.rank, panel.kept.length - 1) + 1;
  const latents = Object.entries(draws.latents).map(([name, values]) => `, ${name} ${[values[i]].flat().map(text).join(" ")}`);
  const whole = `Draw ${position} of ${panel.kept.length}: return ${text(draws.return[i])}, log weight ` +
    `${text(draws.log_weight[i])} nats, ${counted(length, "step")}${latents.join("")}.`;
  const earned = draws.reward[i].slice(0, t).reduce((sum, reward) => sum + reward, 0);
  const act = t < length
    ? `, ${action(panel.view, draws.action[i][t])}, reward ${text(draws.reward[i][t])}`
    : t > length || length < panel.view.horizon ? `, ended after ${counted(length, "step")}` : "";
  caption.textContent = `${whole} Step ${t}: ${place(panel, i, t)}${act}; return before it ${text(earned)}.`;
}

function believed(draws, i, state, t) {
  const chance = draws.belief?.[i][state]?.[t];
  return chance === undefined || chance === null ? "" : ` (believed with probability ${text(chance)})`;
}

function place({ draws, view }, i, t) {
  if (view.kind === "series") {
    const values = draws.state.slice(0, 4).map((paths, d) => (
      view.num_dimensions > 1 ? `${view.names[d]} ${text(at(paths[i], t))}` : text(at(paths[i], t))));
    return `${view.num_dimensions > 1 ? "" : `${view.names[0]} `}${values.join(", ")}${view.num_dimensions > 4 ? ", …" : ""}`;
  }
  const state = at(draws.state[i], t);
  if (view.kind === "index") return `state ${state}${believed(draws, i, state, t)}`;
  const columns = view.letters[0].length, cell = view.cells[state];
  const copy = view.copies.length > 1 ? `, ${view.copies[view.copy_of[state]]}` : "";
  return `row ${Math.floor(cell / columns)}, column ${cell % columns}${copy}`;
}

function action(view, value) {
  const values = [value].flat(), names = view.action_names ?? ["action"];
  if (values.length > 1) return values.slice(0, 4).map((each, d) => `${names[d]} ${text(each)}`).join(", ") + (values.length > 4 ? ", …" : "");
  const named = view.actions?.[value] ?? view.arrows?.[value];
  return `${names[0]} ${named === undefined ? text(values[0]) : `${value} (${named})`}`;
}

function show(panel) {
  panel.element.hidden = !panel.shown;
  if (!panel.shown) return;
  const { traces, layout } = drawing[panel.view.kind](panel);
  draw(panel.plot, traces, layout);
  overTime(panel);
  believe(panel);
  describe(panel);
}

function showAll() {
  find("time").value = choice.time;
  find("time-value").textContent = `step ${choice.time} of ${horizon}`;
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
  choice.time = Math.max(0, Math.min(horizon, time));
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
  if (choice.time >= horizon) step(0);
  // Ten seconds or so from one end to the other, at a pace that eyes and old telephones can follow.
  const pause = Math.max(120, Math.min(500, 10000 / Math.max(horizon, 1)));
  const stride = Math.max(1, Math.round(horizon * pause / 10000));
  timer = setInterval(() => { step(choice.time + stride); if (choice.time >= horizon) stop(); }, pause);
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
    for (const panel of panels) if (panel.source.key === toggle.dataset.source) panel.shown = toggle.checked;
    showAll();
    returns();
    latents();
  });
}
for (const [id, name] of [["cells", "cells"], ["axis-x", "x"], ["axis-y", "y"], ["axis-action", "action"]]) {
  const control = find(id);
  if (control === null) continue;
  control.value = choice[name];
  control.addEventListener("change", () => { choice[name] = control.value; showAll(); });
}
find("copy")?.addEventListener("change", valueMaps);
find("values-step")?.addEventListener("input", valueMaps);

for (const path of document.querySelectorAll("[data-glyph]")) path.setAttribute("d", glyph(path.dataset.glyph, 0, 0));
bar(find("shares-bar"), "share of draws", [0, 0.01, 0.1, 0.25, 0.5, 1].map((share) => [Math.sqrt(share), share ? `${100 * share} %` : "0"]));

function everything() {
  gaps();
  curves();
  filter();
  valueMaps();
  returns();
}

// The theme: the system's, or the one that was chosen here.
let kept = "";
try { kept = localStorage.getItem("rlai-theme") ?? ""; } catch { /* a page from a file may have no storage */ }
function wear(theme) {
  if (theme) root.dataset.theme = theme; else delete root.dataset.theme;
  find("theme").value = theme;
}
wear(["light", "dark"].includes(kept) ? kept : "");
find("theme").addEventListener("change", (event) => {
  wear(event.target.value);
  try { localStorage.setItem("rlai-theme", event.target.value); } catch { /* likewise */ }
  everything();
});
system.addEventListener("change", everything);

for (const run of data.runs) {
  // Wide grids need wide panels, and a panel's height follows from its width.
  if (run.view.kind === "grid" && run.view.letters[0].length > 1.5 * run.view.letters.length) {
    document.querySelectorAll(".panels.grid").forEach((element) => element.classList.add("broad"));
  }
}
let width = window.innerWidth;
window.addEventListener("resize", () => { if (window.innerWidth !== width) { width = window.innerWidth; showAll(); valueMaps(); } });
everything();
// The legend is the same switch as the boxes above.
find("returns").on("plotly_legendclick", (event) => {
  const { key } = panels[event.curveNumber].source;
  [...document.querySelectorAll(".toggles input")].find((box) => box.dataset.source === key).click();
  return false;
});
find("returns").on("plotly_legenddoubleclick", () => false);
