/* Sinkhorn's algorithm on the line (book/ot/sinkhorn.md).

data: x (n,) in [0, 1], a (n,), b (n,), weights; the cost is |x − y|²; tol.

The plain iteration on the potentials, in the log domain:
f_i = −ε log Σ_j b_j exp((g_j − C_ij)/ε), and the same for g, until the rows of the
plan are within tol of a, or the sweeps are spent. */
"use strict";

{
live.define("sinkhorn", {
  title: "Entropic plans",
  panels: [[330, 340], [330, 340]],
  controls: [
    live.slider("eps", "strength of the entropy ε", { min: 0.002, max: 1, value: 0.03, log: true, steps: 54, digits: 2 }),
    live.slider("sweeps", "sweeps, at most", { min: 1, max: 1000, value: 1000, log: true, steps: 30, whole: true }),
    live.play("sweeps", "Play the sweeps"),
  ],

  compute(state, data) {
    const x = Array.from(data.x.data), [a, b] = [live.weights(data.a), live.weights(data.b)];
    const cost = x.flatMap((u) => x.map((v) => (u - v) ** 2));
    const solved = sinkhorn(cost, a, b, state.eps, data.tol, state.sweeps);
    const price = (plan) => plan.reduce((sum, mass, k) => sum + mass * cost[k], 0);
    const n = x.length, least = price(live.monotone(a, b));
    const entropy = solved.plan.reduce((sum, mass, k) =>
      sum + (mass > 0 ? mass * Math.log(mass / (a[Math.floor(k / n)] * b[k % n])) : 0), 0);
    const moved = price(solved.plan);
    return { x, a, b, ...solved, moved, entropy, least, value: moved + state.eps * entropy };
  },

  draw(numbers, state, data) {
    return [drawSheet(numbers), drawErrors(numbers, data.tol)];
  },

  say({ errors, error, ...costs }, state, data) {
    const n = (v) => live.number(v, 3), sweeps = errors.length;
    const [moved, entropy, least, value] =
      ["moved", "entropy", "least", "value"].map((name) => n(costs[name]));
    const reached = error < data.tol
      ? `${sweeps} ${sweeps === 1 ? "sweep brings" : "sweeps bring"} the rows within ${n(data.tol)}.`
      : `After ${sweeps} ${sweeps === 1 ? "sweep" : "sweeps"} the rows are off by ${n(error)}.`;
    const rest = error < data.tol
      ? `The plan moves the mass for ${moved}; the least is ${least}. Its two ends tell ` +
        `${entropy} nats about each other, so the entropic cost is ${value}.`
      : `The plan is no coupling yet, so its price, ${moved}, may lie below the least ` +
        `price of a coupling, ${least}.`;
    return `${reached} ${rest}`;
  },
});

// The rows of the plan are a_i exp(f_i − f'_i), with f' the potential of the next sweep.
function sinkhorn(cost, a, b, eps, tol, most) {
  const n = a.length, m = b.length, errors = [];
  const [logA, logB] = [a.map(Math.log), b.map(Math.log)];
  const K = Float64Array.from(cost, (c) => -c / eps);
  const across = K.map((_, k) => K[(k % n) * m + Math.floor(k / n)]);  // its transpose
  let g = new Float64Array(m), f = update(K, g, logB);  // in units of ε
  for (;;) {
    g = update(across, f, logA);
    const next = update(K, g, logB);
    errors.push(live.sum(a.map((mass, i) => Math.abs(mass * Math.exp(f[i] - next[i]) - mass))));
    if (errors.at(-1) < tol || errors.length >= most) break;
    f = next;
  }
  const plan = cost.map((_, k) => {
    const i = Math.floor(k / m), j = k % m;
    return Math.exp(f[i] + g[j] + K[k] + logA[i] + logB[j]);
  });
  return { plan, errors, error: errors.at(-1) };
}

// −log Σ_j exp(g_j + K_ij + log b_j), for each i
function update(K, g, logB) {
  const m = g.length, terms = new Float64Array(m);
  return Float64Array.from({ length: K.length / m }, (_, i) => {
    let top = -Infinity, total = 0;
    for (let j = 0; j < m; j++) {
      terms[j] = g[j] + K[i * m + j] + logB[j];
      if (terms[j] > top) top = terms[j];
    }
    for (let j = 0; j < m; j++) total += Math.exp(terms[j] - top);
    return -top - Math.log(total);
  });
}

function rowSum(plan, i, m) {
  let sum = 0;
  for (let j = 0; j < m; j++) sum += plan[i * m + j];
  return sum;
}

function drawSheet({ x, a, b, plan }) {
  const n = x.length, range = [0, 1];
  const middle = live.plane({ box: [52, 76, 210, 210], x: range, y: range, xlabel: "x, from a",
                              xticks: [0, 0.5, 1], yticks: [0, 0.5, 1] });
  const cells = x.flatMap((_, j) => x.map((__, i) => Math.sqrt(plan[i * n + j])));
  const rows = a.map((_, i) => rowSum(plan, i, n));
  const high = 1.05 * Math.max(...a, ...rows);
  const top = live.plane({ box: [52, 22, 210, 48], x: range, y: [0, high] });
  const side = live.plane({ box: [268, 76, 48, 210], x: [0, 1.05 * Math.max(...b)], y: range });
  return middle.axes() + middle.heat(cells, n, n) +
    top.area(x, a, "blue") + top.line(x, rows, "vermilion thin") +
    side.area(b, x, "orange", 0) + side.line(b, x, "orange thin") +
    live.text(56, 16, "a", "blue") + live.text(72, 16, "and the rows of the plan", "vermilion") +
    live.text(300, 70, "b", "orange", "middle") + live.text(40, 70, "y", "label", "end");
}

function drawErrors({ errors }, tol) {
  const plane = live.plane({ box: [52, 76, 250, 210], x: [1, 1000], y: [tol / 10, 2], xlog: true, ylog: true,
                             xlabel: "sweeps", xticks: [1, 10, 100, 1000] });
  const sweeps = errors.map((_, k) => k + 1);
  // On a logarithmic axis a few hundred sweeps need no more than a few dots.
  const kept = sweeps.filter((k) => k < 60 || k % 10 === 0 || k === errors.length);
  const shown = kept.map((k) => Math.max(errors[k - 1], tol / 10));
  return plane.axes() + plane.hline(tol, "quiet dash thin") +
    plane.line(kept, shown, "vermilion") +
    plane.dots([errors.length], [Math.max(errors.at(-1), tol / 10)], "vermilion", 5) +
    live.text(52, 34, "How far the rows are from a", "vermilion") +
    live.text(52, 54, `after ${errors.length} ${errors.length === 1 ? "sweep" : "sweeps"}; dashed: the goal`, "quiet");
}
}
