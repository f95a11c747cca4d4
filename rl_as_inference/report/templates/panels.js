// The panels of trajectories: grids, rows over time, lines, and what the agent believed.

// A draw that has ended stays where it ended.
const at = (path, time) => path[Math.min(time, path.length - 1)];
const picked = (panel) => panel.kept[Math.min(choice.rank, panel.kept.length - 1)];

const now = () => ({
  type: "line", xref: "x", yref: "paper", x0: choice.time, x1: choice.time, y0: 0, y1: 1,
  line: { color: css("soft"), width: 1, dash: "dot" } });

// A grid and what stands on it; values are one a cell, null where nothing can be.
function cells(view, width, values, low, high, hover, custom, drawnOn, corner = false) {
  const rows = view.letters.length, columns = view.letters[0].length;
  const axis = { showticklabels: false, ticks: "", showgrid: false, zeroline: false };
  const signs = [];
  view.letters.forEach((row, r) => row.forEach((letter, c) => {
    if ((letter === "K" && view.meanings.K === "key") || (letter === "D" && view.meanings.D === "door")) {
      signs.push({ type: "path", path: corner ? glyph(letter, c - 0.26, r - 0.26, 0.5) : glyph(letter, c, r), fillcolor: "#ffd84d", line: { color: "#000000", width: 1.2 }, layer: "above" });
    }
  }));
  // Grey alone would be a colour of the scale, or nearly. All walls are one shape, as a map may have thousands.
  const stripes = view.letters.flatMap((row, r) => row.flatMap((letter, c) => (letter === "#" ? [
    `M${c - 0.5},${r}L${c},${r - 0.5}M${c - 0.5},${r + 0.5}L${c + 0.5},${r - 0.5}M${c},${r + 0.5}L${c + 0.5},${r}`] : [])));
  if (stripes.length) {
    signs.push({ type: "path", path: stripes.join(""), line: { color: "#000000", width: 1.2 }, layer: "below" });
  }
  const said = view.letters.map((row) => row.map((letter) => (
    letter === "#" || (letter === "K" && view.meanings.K === "key") || (letter === "D" && view.meanings.D === "door") ? "" : escape(letter))));
  return {
    traces: [
      { type: "heatmap", z: values, zmin: low, zmax: high, colorscale: SCALE, showscale: false, xgap: 1, ygap: 1, text: said,
        texttemplate: "%{text}", customdata: custom, hovertemplate: hover, hoverongaps: false },
      ...drawnOn,
    ],
    layout: {
      height: Math.round(width * rows / columns), margin: { l: 1, r: 1, t: 1, b: 1 }, plot_bgcolor: WALL, shapes: signs,
      xaxis: { ...axis, range: [-0.5, columns - 0.5] }, yaxis: { ...axis, range: [rows - 0.5, -0.5] },
    },
  };
}

function grid(panel) {
  const { view } = panel, columns = view.letters[0].length;
  const counts = new Float64Array(view.letters.length * columns);
  for (const i of panel.kept) {
    const path = panel.draws.state[i];
    const states = choice.cells === "here" ? [at(path, choice.time)] : path.slice(0, choice.time + 1);
    for (const cell of new Set(states.map((state) => view.cells[state]))) counts[cell] += 1;
  }
  const total = Math.max(panel.kept.length, 1), i = picked(panel);
  const shares = view.letters.map((row, r) => row.map((_, c) => counts[r * columns + c] / total));
  const seen = shares.map((row, r) => row.map((share, c) => (view.letters[r][c] === "#" && share === 0 ? null : Math.sqrt(share))));
  const walked = i === undefined ? [] : panel.draws.state[i].slice(0, choice.time + 1).map((state) => view.cells[state]);
  const xs = walked.map((cell) => cell % columns), ys = walked.map((cell) => Math.floor(cell / columns));
  return cells(view, panel.plot.clientWidth || 280, seen, 0, 1, "row %{y}, column %{x}: %{customdata:.1%} of draws<extra></extra>",
    shares, [...rimmed(xs, ys), point(xs.slice(-1), ys.slice(-1))]);
}

function index(panel) {
  const { view } = panel, times = view.horizon + 1;
  const counts = Array.from({ length: view.num_states }, () => new Array(times).fill(0));
  for (const i of panel.kept) for (let t = 0; t < times; t++) counts[at(panel.draws.state[i], t)][t] += 1;
  const total = Math.max(panel.kept.length, 1);
  const shares = counts.map((row) => row.map((count) => count / total));
  const i = picked(panel);
  const ys = i === undefined ? [] : panel.draws.state[i].slice(0, choice.time + 1);
  const xs = ys.map((_, t) => t);
  return {
    traces: [
      { type: "heatmap", z: shares.map((row) => row.map(Math.sqrt)), zmin: 0, zmax: 1, colorscale: SCALE,
        showscale: false, customdata: shares,
        hovertemplate: "time %{x}, state %{y}: %{customdata:.1%} of draws<extra></extra>" },
      ...rimmed(xs, ys), point(xs.slice(-1), ys.slice(-1)),
    ],
    layout: {
      height: 300, margin: { l: 48, r: 8, t: 4, b: 40 }, shapes: [now()],
      xaxis: { title: { text: "time (steps)" }, range: [-0.5, view.horizon + 0.5], showgrid: false },
      yaxis: { title: { text: "state" }, range: [-0.5, view.num_states - 0.5], showgrid: false,
        tickformat: "d", ...(view.num_states <= 12 ? { dtick: 1 } : {}) },
    },
  };
}

// Of two runs one may have fewer dimensions.
const dimension = (view, which) => Math.min(Number(which), view.names.length - 1);
const along = (panel, which, i) => (
  which === "time" ? panel.draws.state[0][i].map((_, t) => t) : panel.draws.state[dimension(panel.view, which)][i]);
const title = (view, which) => (which === "time" ? "time (steps)" : escape(view.names[dimension(view, which)]));

// The range of the sources that are shown, so that a wide one can be put aside; of two problems, each has its own.
const compared = (panel) => panels.filter((other) => other.shown && other.run.problem === panel.run.problem
  && String(other.view.names) === String(panel.view.names));
function spread(panel, which) {
  const most = Math.max(...compared(panel).map((other) => other.view.horizon));
  if (which === "time") return [-0.03 * most, 1.03 * most];
  const paths = compared(panel).flatMap((other) => other.draws.state[dimension(other.view, which)]);
  return padded(extent(paths.map(extent).flat()));
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
  const i = picked(panel), end = choice.time + 1, colour = colourOf(panel.source);
  const xs = i === undefined ? [] : along(panel, choice.x, i).slice(0, end);
  const ys = i === undefined ? [] : along(panel, choice.y, i).slice(0, end);
  return {
    traces: [
      { type: "scatter", mode: "lines", ...all, line: { color: colour, width: 1 }, opacity: 0.25, hoverinfo: "skip" },
      { type: "scatter", mode: "markers", ...dots, marker: { color: colour, size: 5 }, opacity: 0.7, hoverinfo: "skip" },
      { ...line(xs, ys), hoverinfo: "x+y" }, point(xs.slice(-1), ys.slice(-1)),
    ],
    layout: {
      height: 300, margin: { l: 56, r: 8, t: 4, b: 40 }, shapes: choice.x === "time" ? [now()] : [],
      xaxis: { title: { text: title(panel.view, choice.x) }, range: spread(panel, choice.x) },
      yaxis: { title: { text: title(panel.view, choice.y) }, range: spread(panel, choice.y) },
    },
  };
}
const drawing = { grid, index, series };

// Actions and rewards over time: bands of the draws that are kept, and the picked one.
const QUANTILES = [0.05, 0.25, 0.75, 0.95];
function quantiles(rows, times) {
  return times.map((t) => {
    const own = rows.map((row) => row[t]).filter((value) => value !== undefined && value !== null).sort((a, b) => a - b);
    return QUANTILES.map((q) => (own.length ? own[Math.round(q * (own.length - 1))] : null));
  });
}
function taken(panel) {
  const which = Math.min(Number(choice.action), panel.view.action_names.length - 1);
  return panel.draws.action.map((path) => path.map((action) => (Array.isArray(action) ? action[which] : action)));
}
function overTime(panel) {
  const element = panel.element.querySelector(".steps");
  if (element === null) return;
  const { view } = panel, colour = colourOf(panel.source), i = picked(panel);
  const which = Math.min(Number(choice.action), view.action_names.length - 1);
  const times = Array.from({ length: view.horizon }, (_, t) => t);
  const kinds = [[(other) => taken(other), escape(view.action_names[which]), "y2"], [(other) => other.draws.reward, "", "y"]];
  const heading = (name, y) => ({ text: name, x: 0, xref: "paper", xanchor: "left", y, yref: "paper", yanchor: "bottom", showarrow: false });
  const traces = [], layout = { height: 270, margin: { l: 56, r: 8, t: 20, b: 40 }, shapes: [now()],
    annotations: [heading(kinds[0][1], 1), heading("reward (reward units)", 0.44)],
    xaxis: { title: { text: "time (steps)" }, range: spread(panel, "time"), anchor: "y" } };
  for (const [of, , yaxis] of kinds) {
    const rows = of(panel), levels = quantiles(panel.kept.map((k) => rows[k]), times);
    const side = (k) => levels.map((level) => level[k]);
    const own = i === undefined ? [] : rows[i].slice(0, choice.time + 1);
    traces.push(...[...band(times, side(0), side(3), colour, 0.2), ...band(times, side(1), side(2), colour, 0.35),
      { ...line(own.map((_, t) => t), own, 2), hoverinfo: "x+y" }].map((trace) => ({ ...trace, yaxis })));
    const named = yaxis === "y2" && view.actions && view.action_names.length === 1 ? {
      tickvals: view.actions.map((_, k) => k), ticktext: view.actions.map(escape) } : {};
    layout[yaxis === "y" ? "yaxis" : "yaxis2"] = {
      domain: yaxis === "y" ? [0, 0.44] : [0.56, 1],
      range: padded(extent(compared(panel).flatMap((other) => of(other).map(extent).flat()))), ...named };
  }
  draw(element, traces, layout);
}

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
    : [{ type: "heatmap", z: belief.map((row) => row.slice(0, length)), zmin: 0, zmax: 1, showscale: true,
      colorscale: SCALE, colorbar: { title: { text: "belief", side: "right" }, thickness: 10, len: 1, tickformat: ".0%" },
      hovertemplate: "step %{x}, state %{y}: %{z:.3f}<extra></extra>" }];
  traces.push({ ...point(truth.map((_, t) => t), truth), showlegend: false });
  const up = few ? { title: { text: "belief" }, range: [0, 1] }
    : { title: { text: "state believed" }, tickformat: "d", ...(belief.length <= 12 ? { dtick: 1 } : {}) };
  return { traces, layout: { barmode: "stack", bargap: 0.08, showlegend: few, yaxis: up } };
}

function fan(panel, i) {
  const which = choice.y === "time" ? choice.x : choice.y, colour = colourOf(panel.source);
  const of = which === "time" ? 0 : dimension(panel.view, which), length = panel.draws.length[i];
  const rows = panel.draws.belief[i][of].map((row) => row.slice(0, length)), times = rows[0].map((_, t) => t);
  const path = panel.draws.state[of][i].slice(0, Math.min(choice.time + 1, length));
  const traces = [...band(times, rows[0], rows[4], colour, 0.2), ...band(times, rows[1], rows[3], colour, 0.4),
    { type: "scatter", mode: "lines", x: times, y: rows[2], line: { color: colour, width: 2 }, hoverinfo: "x+y" },
    line(path.map((_, t) => t), path), point(path.map((_, t) => t).slice(-1), path.slice(-1))];
  const shown = compared(panel).filter((other) => other.draws.belief).map((other) => [other, picked(other)]).filter(([, k]) => k !== undefined);
  const range = padded(extent(shown.flatMap(([other, k]) => other.draws.belief[k][dimension(other.view, of)].flat())));
  return { traces, layout: { yaxis: { title: { text: escape(panel.view.names[of]) }, range } } };
}

function believe(panel) {
  const element = panel.element.querySelector(".belief"), i = picked(panel);
  if (element === null || !panel.draws.belief) return;
  const { traces, layout } = i === undefined ? { traces: [], layout: {} } : { shares, fan }[panel.view.belief](panel, i);
  draw(element, traces, {
    height: 220, margin: { l: 56, r: 8, t: 4, b: 40 }, shapes: [now()], legend: { ...LEGEND, font: { size: 11 } },
    xaxis: { title: { text: "time (steps)" }, range: [-0.5, panel.view.horizon + 0.5] }, ...layout,
  });
}

// Soft values and policies on a grid.
function valueMaps() {
  const sets = data.runs.map((run, r) => ({ run, r })).filter(({ run }) => run.values);
  if (!sets.length) return;
  const chosen = Number(find("copy")?.value ?? 0), step = Number(find("values-step")?.value ?? 0);
  const [low, high] = extent(sets.flatMap(({ run }) => run.values.maps.flatMap((map) => map.v.flat())));
  bar(find("values-bar"), "soft V (reward units)", [0, 0.25, 0.5, 0.75, 1].map((share) => [share, text(low + share * (high - low))]));
  for (const { run, r } of sets) {
    const { view, values } = run, columns = view.letters[0].length, copy = Math.min(chosen, view.copies.length - 1);
    const k = values.times.reduce((best, time, i) => (time <= step ? i : best), 0);
    if (find("values-time") !== null) find("values-time").textContent = values.stationary ? "any" : values.times[k];
    const stateAt = new Array(view.letters.length * columns).fill(null);
    view.cells.forEach((cell, state) => { if (view.copy_of[state] === copy) stateAt[cell] = state; });
    const byCell = (of) => view.letters.map((row, i) => row.map((letter, c) => {
      const state = stateAt[i * columns + c];
      return state === null || letter === "#" ? null : of(state);
    }));
    for (const map of values.maps) {
      const element = document.querySelector(`.value-map[data-map="${map.key}"][data-run="${r}"] .map`);
      const width = element.clientWidth || 280, size = width / columns;
      const named = (a) => values.actions?.[a] ?? values.arrows?.[a] ?? `action ${a}`;
      const told = byCell((state) => (values.ends[state] ? "over"
        : map.p[k][state].map((p, a) => `${escape(named(a))} ${percent(p)}`).join(", ")));
      const v = byCell((state) => map.v[k][state]);
      const drawnOn = size < 14 ? [] : values.arrows ? rimmed(...arrows(values, view, map.p[k], stateAt), size < 24 ? 1 : 1.6)
        : [likeliest(values, view, map.p[k], stateAt, named)];
      const hovered = v.map((row, i) => row.map((value, c) => [text(value), told[i][c]]));
      const { traces, layout } = cells(view, width, v, low, high,
        "row %{y}, column %{x}: soft V %{customdata[0]}<br>%{customdata[1]}<extra></extra>", hovered, drawnOn, true);
      draw(element, traces, layout);
    }
  }
}
const WAYS = { "↑": [0, -1], "↓": [0, 1], "←": [-1, 0], "→": [1, 0] };
function arrows(values, view, policy, stateAt) {
  const columns = view.letters[0].length, xs = [], ys = [];
  stateAt.forEach((state, cell) => {
    const x = cell % columns, y = Math.floor(cell / columns);
    if (state === null || values.ends[state] || view.letters[y][x] === "#") return;
    policy[state].forEach((p, a) => {
      if (p < 0.03) return;
      const [dx, dy] = WAYS[values.arrows[a]], long = 0.46 * p, head = Math.min(0.12, 0.5 * long);
      const tip = [x + dx * long, y + dy * long], neck = [x + dx * (long - head), y + dy * (long - head)];
      xs.push(x, tip[0], null, neck[0] - dy * head, tip[0], neck[0] + dy * head, null);
      ys.push(y, tip[1], null, neck[1] - dx * head, tip[1], neck[1] + dx * head, null);
    });
  });
  return [xs, ys];
}
function likeliest(values, view, policy, stateAt, named) {
  const columns = view.letters[0].length, found = { x: [], y: [], text: [] };
  stateAt.forEach((state, cell) => {
    if (state === null || values.ends[state]) return;
    const best = policy[state].indexOf(Math.max(...policy[state]));
    found.x.push(cell % columns);
    found.y.push(Math.floor(cell / columns) + 0.25);
    found.text.push(escape(values.actions ? named(best) : String(best)));
  });
  return { type: "scatter", mode: "text", ...found, textfont: { color: "#ffffff", size: 10, shadow: "0 0 3px #000" }, hoverinfo: "skip" };
}
