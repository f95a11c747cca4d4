// Pictures of whole runs: gaps, learning curves, and distributions.

const letters = ["A", "B"], several = data.runs.length > 1;
const runColour = (r) => css(r === 0 ? "run-a" : "run-b");
const runName = (r) => escape(`${letters[r]}: ${data.runs[r].name}`);

function gaps() {
  const COLOURS = { elbo: "#0072b2", policy: "#e69f00", information: "#cc79a7", dynamics: "#009e73", evidence: "#7f7f7f" };
  const found = data.runs.map((run) => run.gaps).filter(Boolean);
  const range = padded(extent(found.flatMap((bars) => bars.flatMap(({ base, width }) => [0, base, base + width]))));
  for (const element of document.querySelectorAll(".gaps")) {
    const bars = data.runs[Number(element.dataset.run)].gaps;
    draw(element, [{ type: "bar", orientation: "h", y: bars.map(({ label }) => label), base: bars.map(({ base }) => base),
      x: bars.map(({ width }) => width), marker: { color: bars.map(({ part }) => COLOURS[part]), line: { color: css("ink"), width: 0.5 } },
      hovertemplate: "%{y} nats<extra></extra>" }], {
      height: 50 + 42 * bars.length, margin: { l: 8, r: 16, t: 4, b: 40 },
      xaxis: { title: { text: "nats" }, range, zeroline: true },
      yaxis: { autorange: "reversed", automargin: true, ticks: "", showline: false },
    });
  }
}

// Learning curves: one picture for each quantity that a run has; of two runs, both in it where their steps are the same.
function curves() {
  const place = find("curves");
  if (place === null) return;
  const groups = new Map(), bands = new Set();
  data.runs.forEach((run, r) => run.curves.forEach((curve) => {
    const key = JSON.stringify([curve.name, curve.unit, curve.over.replace(" of each seed", "")]);
    groups.set(key, [...(groups.get(key) ?? []), { curve, r }]);
    if (curve.band) bands.add(`${curve.name}${several ? ` (${letters[r]})` : ""}: ${curve.band}`);
  }));
  if (!place.childElementCount) for (const _ of groups) place.append(document.createElement("div"));
  [...groups.values()].forEach((group, k) => {
    const traces = [], values = [];
    for (const { curve, r } of group) {
      const colour = runColour(r);
      if (curve.low.length) traces.push(...band(curve.steps, curve.low, curve.high, colour, 0.22));
      for (const own of curve.seeds) traces.push({ ...line(curve.steps, own, 1), opacity: 0.35, line: { color: colour, width: 1 }, showlegend: false });
      traces.push({ type: "scatter", mode: curve.steps.length < 30 ? "lines+markers" : "lines", x: curve.steps, y: curve.middle,
        line: { color: colour, width: 2.5, dash: r ? "dash" : "solid" }, marker: { size: 6, color: colour }, name: several ? runName(r) : "",
        showlegend: several, hovertemplate: `step %{x:,}: %{y:.4g}<extra>${escape(curve.name)}</extra>` });
      if (curve.ceiling) {
        const ends = [curve.steps[0], curve.steps[curve.steps.length - 1]];
        traces.push({ type: "scatter", mode: "lines", x: ends, y: ends.map(() => curve.ceiling[1]), showlegend: !several,
          line: { color: several ? colour : css("soft"), width: 1.5, dash: "dot" }, name: escape(curve.ceiling[0]),
          hovertemplate: `${escape(curve.ceiling[0])} %{y:.4g}<extra></extra>` });
        values.push(curve.ceiling[1]);
      }
      values.push(...curve.middle, ...curve.low, ...curve.high);
    }
    const { curve } = group[0];
    draw(place.children[k], traces, {
      height: 300, margin: { l: 66, r: 12, t: 30, b: 44 }, showlegend: true, legend: { ...LEGEND, traceorder: "normal" },
      xaxis: { title: { text: escape(curve.over) } },
      yaxis: { title: { text: escape(`${curve.name} (${curve.unit})`) }, range: steady(values) },
    });
  });
  const ceiling = data.runs.some((run) => run.curves.some((curve) => curve.ceiling)) ? " The dotted line is the largest ELBO at the run's own α; a tempered start begins at a higher α, where there is more." : "";
  find("curves-note").textContent = bands.size ? `Bands are, of ${[...bands].join("; of ")}.${ceiling}` : ceiling.trim();
}
// A start that is far below everything after it does not take the whole picture.
function steady(values) {
  const sorted = values.filter((value) => value !== null).sort((a, b) => a - b), at = (q) => sorted[Math.round(q * (sorted.length - 1))];
  if (!sorted.length) return undefined;
  const [low, high, tenth] = [sorted[0], sorted[sorted.length - 1], at(0.1)];
  return padded(tenth - low > 3 * (high - tenth) && high > tenth ? [tenth - (high - tenth), high] : [low, high]);
}

// Bars where there are few values, else steps over bins: over the range of what is shown.
function distribution(element, valuesOf, name, height) {
  const everything = panels.filter((panel) => panel.shown).flatMap(valuesOf), [low, high] = extent(everything);
  const levels = [...new Set(everything)].sort((a, b) => a - b), few = levels.length <= 12;
  const short = levels.map(text), names = new Set(short).size === levels.length ? short : levels.map((level) => (level === null ? text(level) : String(level)));
  const bins = 40, width = (high - low) / bins || 1;
  const traces = panels.map((panel) => {
    const { source } = panel, values = valuesOf(panel), total = Math.max(values.length, 1), colour = colourOf(source);
    const mean = values.includes(null) ? null : values.reduce((sum, value) => sum + value, 0) / total;
    const label = escape(several ? `${letters[panel.r]}, ${source.label}` : source.label);
    const common = { name: `${label}, mean ${text(mean)}`, visible: panel.shown ? true : "legendonly" };
    if (few) {
      const y = levels.map((level) => values.filter((value) => value === level).length / total);
      const labels = levels.length <= 4 && !several && window.innerWidth > 600
        ? { text: y.map(percent), textposition: "outside", textangle: 0, cliponaxis: false } : {};
      return { ...common, type: "bar", x: names, y,
        marker: { color: colour, pattern: panel.r ? { shape: "/", fgcolor: colour, bgcolor: faint(colour, 0.25), size: 6 } : {} }, ...labels,
        hovertemplate: `${escape(name)} %{x}: %{y:.1%}<extra>${label}</extra>` };
    }
    const counts = new Array(bins).fill(0);
    for (const value of values) {
      const bin = Math.floor((value - low) / width);
      if (value !== null && value >= low && value <= high) counts[Math.min(bin, bins - 1)] += 1;
    }
    return { ...common, type: "scatter", mode: "lines", x: [...counts, 0].map((_, k) => low + k * width),
      y: [...counts, 0].map((count) => count / total),
      line: { shape: "hv", color: colour, width: 2, dash: panel.r ? "dash" : "solid" },
      hovertemplate: `${escape(name)} from %{x:.4g}: %{y:.1%}<extra>${label}</extra>` };
  });
  draw(element, traces, {
    height: height + (several ? 60 : 0), bargap: 0.25, showlegend: true, margin: { l: 60, r: 12, t: 20, b: 48 }, legend: { ...LEGEND, y: 1.04 },
    xaxis: { title: { text: escape(name) }, type: few ? "category" : "linear", showgrid: false, showline: true },
    yaxis: { title: { text: "share of trajectories" }, tickformat: ".0%", rangemode: "tozero" },
  });
}
const returns = () => distribution(find("returns"), (panel) => panel.source.returns, "return (reward units)", 340);

// What a program draws once a trajectory.
function latents() {
  for (const element of document.querySelectorAll(".latent")) {
    const name = element.dataset.latent;
    distribution(element, (panel) => (panel.draws.latents[name] ? panel.kept.flatMap((i) => [panel.draws.latents[name][i]].flat()) : []),
      name, 280);
  }
}
