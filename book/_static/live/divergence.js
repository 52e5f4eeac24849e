/* A Gaussian N(m, s²) against the mixture ½N(−a, 1) + ½N(a, 1), in both directions of
the KL divergence (book/objectives/reverse.md).

data: nothing; both laws are formulas.

KL(p ‖ q) = ∫ p log(p/q) on [−a − 10, a + 10], KL(q ‖ p) = ∫ q log(q/p) on m ± 10 s,
by the trapezoidal rule, which is exact to rounding for such integrands. */
"use strict";

{
const NODES = 2001, COARSE = 601, COARSEST = 81;  // for a descent, for a landscape
const XS = live.linspace(-9, 9, 181);
const COLUMNS = 33, ROWS = 24;  // of the landscape, even in m and in log s
const MEANS = live.linspace(-5, 5, COLUMNS + 1), LOGS = live.linspace(Math.log(0.3), Math.log(5), ROWS + 1);

live.define("divergence", {
  title: "Two directions of the divergence",
  panels: [[330, 350], [330, 350]],
  controls: [
    live.choice("way", "objective", [["reverse", "reverse, KL(q ‖ p)"], ["forward", "forward, KL(p ‖ q)"]], "reverse"),
    live.slider("a", "half-distance a of the modes", { min: 0, max: 4, step: 0.05, value: 3 }),
    live.slider("m", "mean m of the model", { min: -5, max: 5, step: 0.05, value: 0.5 }),
    live.slider("s", "deviation s of the model", { min: 0.3, max: 5, value: 1, log: true, steps: 244 }),
    live.act("descend", "Descend from here"),
  ],

  compute(state, data) {
    const { way, a, m, s } = state;
    return {
      forward: forward(a, m, s), reverse: reverse(a, m, s), xs: XS,
      terms: XS.map((x) => term(x, way, a, m, s)), landscape: landscape(state, data),
    };
  },

  acts: {
    descend({ way, a, m, s }) {
      return descent(way === "reverse" ? (...at) => reverse(...at, COARSE) : forward, slopes[way], a, m, s);
    },
  },

  draw(numbers, state) {
    return [drawLaws(numbers, state), drawLandscape(numbers, state)];
  },

  say(numbers, { way, a, m, s }) {
    const [now, other] = way === "reverse" ? ["reverse", "forward"] : ["forward", "reverse"];
    const n = (v) => live.number(Math.abs(v) < 1e-4 ? 0 : v, 3), at = [a, m, Math.log(s)];
    const slope = Math.hypot(...slopes[way](...at)), here = `N(${n(m)}, ${n(s)}²)`;
    return `Forward KL(p ‖ q) = ${n(numbers.forward)} nats, reverse KL(q ‖ p) = ${n(numbers.reverse)} nats. ` +
      (slope > 2e-3 ? `The ${now} one can still fall: its slope is ${n(slope)}.`
        : bowl(slopes[way], ...at) ? `${here} is a minimum of the ${now} one.`
          : `The ${now} one stands still at ${here}, which is no minimum.`);
  },
});

const half = Math.log(0.5);

function logTarget(x, a) {
  const [u, v] = [live.logNormal(x, a, 1), live.logNormal(x, -a, 1)];
  return Math.max(u, v) + Math.log1p(Math.exp(-Math.abs(u - v))) + half;
}

// d/dx log p
const pull = (x, a) => -x + a * Math.tanh(a * x);

// ∫ f by the trapezoidal rule; f is negligible at the ends.
function integral(f, from, to, nodes = NODES) {
  const h = (to - from) / (nodes - 1);
  let total = 0;
  for (let k = 0; k < nodes; k++) total += f(from + k * h);
  return total * h;
}

function forward(a, m, s) {
  const term = (x) => {
    const log = logTarget(x, a);
    return Math.exp(log) * (log - live.logNormal(x, m, s));
  };
  return integral(term, -a - 10, a + 10);
}

// x = m + s z: the integral over the noise, exp(−z²/2) its weight.
function reverse(a, m, s, nodes = NODES) {
  const term = (z) => {
    const log = live.logNormal(z, 0, 1);
    return Math.exp(log) * (log - Math.log(s) - logTarget(m + s * z, a));
  };
  return integral(term, -10, 10, nodes);
}

// The gradients in (m, log s).
const slopes = {
  forward(a, m, logS) {
    const v = Math.exp(2 * logS);
    return [m / v, 1 - (1 + a * a + m * m) / v];
  },
  reverse(a, m, logS) {
    const s = Math.exp(logS), weight = (z) => Math.exp(live.logNormal(z, 0, 1));
    return [-integral((z) => weight(z) * pull(m + s * z, a), -10, 10, COARSE),
            -1 - integral((z) => weight(z) * s * z * pull(m + s * z, a), -10, 10, COARSE)];
  },
};

// Does the slope grow in every direction from (m, log s)?
function bowl(slope, a, m, logS, h = 1e-3) {
  const change = (u, v) => slope(a, m + u, logS + v).map((g, k) => (g - slope(a, m - u, logS - v)[k]) / (2 * h));
  const [[p, q], [r, t]] = [change(h, 0), change(0, h)];
  return p > 0 && p * t > q * r;
}

/* Gradient descent in (m, log s): a step that does not lower the divergence enough is
   halved, one that does is lengthened. */
function descent(value, slope, a, m, s) {
  const path = [[m, Math.log(s)]];
  let at = path[0], now = value(a, m, s), step = 0.1;
  for (let k = 0; k < 1500; k++) {
    const g = slope(a, ...at), square = g[0] ** 2 + g[1] ** 2;
    if (square < 1e-13) break;
    for (;;) {
      const next = [at[0] - step * g[0], at[1] - step * g[1]];
      const then = value(a, next[0], Math.exp(next[1]));
      if (then <= now - 0.4 * step * square) { [at, now] = [next, then]; break; }
      step /= 2;
      if (step < 1e-9) return thinned(path);
    }
    path.push(at);
    step *= 1.5;
  }
  return thinned(path);
}

// At most 90 states, evenly along the way that the point goes.
function thinned(path) {
  const gone = [0];
  for (let k = 1; k < path.length; k++) {
    gone.push(gone[k - 1] + Math.hypot(path[k][0] - path[k - 1][0], path[k][1] - path[k - 1][1]));
  }
  const kept = path.filter((_, k) => k === path.length - 1 || k === 0 ||
    Math.floor((90 * gone[k]) / gone.at(-1)) > Math.floor((90 * gone[k - 1]) / gone.at(-1)));
  return kept.map(([m, logS]) => ({ m, s: Math.exp(logS) }));
}

// What the divergence sums at x.
function term(x, way, a, m, s) {
  const [p, q] = [logTarget(x, a), live.logNormal(x, m, s)];
  return way === "reverse" ? Math.exp(q) * (q - p) : Math.exp(p) * (p - q);
}

function drawLaws({ xs, terms }, { way, a, m, s }) {
  const [p, q] = [xs.map((x) => Math.exp(logTarget(x, a))), xs.map((x) => Math.exp(live.logNormal(x, m, s)))];
  const above = live.plane({ box: [44, 48, 274, 120], x: [-9, 9], y: [0, 0.55], xticks: [], yticks: [0, 0.2, 0.4] });
  const below = live.plane({ box: [44, 204, 274, 92], x: [-9, 9], y: [-0.5, 2], xlabel: "x",
                             xticks: [-8, -4, 0, 4, 8], yticks: [0, 1, 2] });
  const name = way === "reverse" ? "q log(q/p)" : "p log(p/q)";
  return above.axes() + above.area(xs, p, "blue") + above.line(xs, p, "blue") + above.line(xs, q, "vermilion") +
    live.text(44, 22, "target p", "blue") + live.text(112, 22, "model q = N(m, s²)", "vermilion") +
    live.text(44, 192, `${name}: its area is ${way === "reverse" ? "KL(q ‖ p)" : "KL(p ‖ q)"}`, "green") +
    below.axes() + below.area(xs, terms, "green") + below.line(xs, terms, "green thin") + below.hline(0, "quiet thin");
}

const middles = (edges) => edges.slice(1).map((v, k) => (edges[k] + v) / 2);

// The divergence of N(m, s²) at the middle of each cell of m and log s, row by row.
const landscape = live.remembered(["way", "a"], ({ way, a }) => {
  const value = way === "reverse" ? (m, s) => reverse(a, m, s, COARSEST) : closed(a);
  const m = middles(MEANS), s = middles(LOGS).map(Math.exp);
  return { m, s, values: s.flatMap((v) => m.map((u) => value(u, v))) };
});

// The darker, the smaller.
function drawLandscape({ landscape: { values } }, { way, a, m, s }) {
  const cells = values.map((v) => Math.exp(-1.2 * v));
  const plane = live.plane({ box: [44, 48, 274, 248], x: [-5, 5], y: [0.3, 5], ylog: true, xlabel: "mean m",
                             xticks: [-4, -2, 0, 2, 4], yticks: [0.5, 1, 2, 4], ylabel: "s" });
  return plane.axes() +
    plane.heat(cells, ROWS, COLUMNS, { css: "green", xs: MEANS, ys: LOGS.map(Math.exp) }) +
    plane.dots([m], [s], "vermilion", 6) +
    live.text(44, 16, `The darker, the smaller ${way === "reverse" ? "KL(q ‖ p)" : "KL(p ‖ q)"}`, "green");
}

// KL(p ‖ N(u, v²)) = ½ (1 + a² + u²)/v² + log v + ½ log 2π − entropy of p
function closed(a) {
  const base = forward(a, 0, 1) - (1 + a * a) / 2;
  return (u, v) => base + (1 + a * a + u * u) / (2 * v * v) + Math.log(v);
}
}
