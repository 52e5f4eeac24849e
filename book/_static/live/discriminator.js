/* The best discriminator between data and samples, and what the generator hears from it
(book/gans/vanilla.md).

data: laws: [{means (k,), s}, …], equal mixtures of Gaussians; the model is N(m, s²).

D* = log(p/q); a sample at x is pushed by σ(D*) D*' under the saturating loss, and by
(1 − σ(D*)) D*' under the other.  Integrals are trapezoidal sums, exact to rounding. */
"use strict";

{
const NODES = 4001;
const GRID = live.linspace(-6, 6, 241);
const QUANTILES = [-1.465, -0.792, -0.366, 0, 0.366, 0.792, 1.465];  // of N(0, 1), at k/7 − 1/14

live.define("discriminator", {
  title: "The best discriminator",
  panels: [[330, 350], [330, 350]],
  controls: [
    live.choice("law", "data", [[0, "one Gaussian"], [1, "two Gaussians"]], 1),
    live.slider("m", "shift m of the samples", { min: -4, max: 4, step: 0.05, value: 2.5 }),
    live.slider("s", "scale s of the samples", { min: 0.2, max: 2, value: 0.5, log: true, steps: 100 }),
    live.play("m", "Play the shift"),
  ],

  compute({ law, m, s }, data) {
    const p = data.laws[law], reach = Math.max(...p.means.data.map(Math.abs)) + 10 * p.s;
    const range = [Math.min(-reach, m - 10 * s), Math.max(reach, m + 10 * s)];
    const mean = { js: 0, saturating: 0, other: 0 };
    const xs = live.linspace(...range, NODES), h = xs[1] - xs[0];
    for (const x of xs) {
      const { logP, logQ, D, slope } = verdict(x, p, m, s), q = Math.exp(logQ);
      mean.js += (h / 2) * (Math.exp(logP) * (Math.LN2 - live.softplus(-D)) + q * (Math.LN2 - live.softplus(D)));
      mean.saturating -= h * q * live.sigmoid(D) * slope;
      mean.other -= h * q * live.sigmoid(-D) * slope;
    }
    const seen = { x: GRID.filter((x) => Math.abs(x - m) <= 3 * s) }, seven = { x: QUANTILES.map((z) => m + s * z) };
    for (const part of [seen, seven]) part.pushes = part.x.map((x) => push(x, p, m, s));
    return { ...mean, value: 2 * mean.js - Math.log(4), seen, seven };
  },

  draw(numbers, { law, m, s }, data) {
    return [drawVerdict(data.laws[law], m, s), drawPush(numbers)];
  },

  say({ js, value, saturating, other }) {
    const n = (v) => live.number(Math.abs(v) < 1e-12 ? 0 : v, 3);
    return `JS = ${n(js)} nats, of at most log 2 = 0.693; the best verdict is worth V = ${n(value)}. ` +
      `Derivative of the generator's loss in the shift m, the discriminator held: ${n(saturating)} saturating, ${n(other)} non-saturating.`;
  },
});

// Log-densities, D* = log p − log q and its derivative, at x.
function verdict(x, p, m, s) {
  const means = Array.from(p.means.data), parts = means.map((c) => live.logNormal(x, c, p.s));
  const logSum = live.logSumExp(parts), logP = logSum - Math.log(means.length);
  const score = live.sum(means.map((c, k) => (Math.exp(parts[k] - logSum) * (c - x)) / p.s ** 2));
  const logQ = live.logNormal(x, m, s);
  return { logP, logQ, D: logP - logQ, slope: score + (x - m) / s ** 2 };
}

// What pushes a sample at x: under the saturating loss, and under the other.
function push(x, p, m, s) {
  const { D, slope } = verdict(x, p, m, s);
  return [live.sigmoid(D) * slope, live.sigmoid(-D) * slope];
}

function drawVerdict(p, m, s) {
  const at = GRID.map((x) => verdict(x, p, m, s));
  const density = { data: at.map((v) => Math.exp(v.logP)), model: at.map((v) => Math.exp(v.logQ)) };
  const top = Math.max(...density.data, Math.min(1.2, Math.max(...density.model)));
  const above = live.plane({ box: [44, 48, 274, 120], x: [-6, 6], y: [0, 1.1 * top], xticks: [] });
  const below = live.plane({ box: [44, 204, 274, 92], x: [-6, 6], y: [0, 1.03], xlabel: "x", yticks: [0, 0.5, 1] });
  return above.axes() + above.area(GRID, density.data, "blue") + above.line(GRID, density.data, "blue") +
    above.line(GRID, density.model, "orange") +
    live.text(44, 22, "data p", "blue") + live.text(104, 22, "samples q = N(m, s²)", "orange") +
    live.text(44, 192, "σ(D*) = p/(p + q), “it is data”", "green") +
    below.axes() + below.line(GRID, at.map((v) => live.sigmoid(v.D)), "green");
}

function drawPush({ seen, seven }) {
  const most = Math.max(0.1, ...seen.pushes.flat().map(Math.abs)), height = nice(most);
  const above = live.plane({ box: [44, 48, 274, 120], x: [-6, 6], y: [-height, height], xticks: [],
                             yticks: [-height, 0, height] });
  const below = live.plane({ box: [44, 204, 274, 92], x: [-6, 6], y: [0, 7], xlabel: "x", yticks: [] });
  const { x: points, pushes } = seven;
  const length = 1.5 / Math.max(0.1, ...pushes.flat().map(Math.abs));
  const row = (k, lift, css) => below.arrows(points, points.map((_, i) => i + lift),
    pushes.map((v) => v[k] * length), points.map(() => 0), css);
  return above.axes() + above.hline(0, "quiet thin") +
    above.line(seen.x, seen.pushes.map((v) => v[1]), "sky") +
    above.line(seen.x, seen.pushes.map((v) => v[0]), "vermilion") +
    live.text(44, 16, "Push on a sample at x:", "ink") +
    live.text(44, 36, "saturating", "vermilion") + live.text(128, 36, "non-saturating", "sky") +
    live.text(44, 192, "the same for seven samples", "quiet") +
    below.axes() + below.dots(points, points.map((_, i) => i + 0.5), "orange", 2.5) +
    row(1, 0.65, "sky") + row(0, 0.3, "vermilion");
}

// The next of 1, 2, 5, 10 … above a number.
function nice(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((k) => k * power).find((v) => v >= value * 0.999);
}
}
