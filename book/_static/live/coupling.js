/* Couplings of two laws on the line (book/ot/kantorovich.md).

data: x (n,), cells of equal width; pairs: [{name, a (n,), b (n,)}, …], weights.

The plan is (1 − s) a ⊗ b + s P*, where P* is the monotone plan, which is optimal for
every cost |x − y|^p, p ≥ 1.  Nothing is solved: both marginals are read from the left. */
"use strict";

{
live.define("coupling", {
  title: "Couplings of two laws",
  panels: [[330, 340], [330, 340]],
  controls: [
    live.choice("pair", "the two laws", [[0, "one hill, two hills"], [1, "a shift"], [2, "narrow and wide"]], 0),
    live.choice("p", "cost", [[2, "|x − y|²"], [1, "|x − y|"]], 2),
    live.slider("s", "s, from independent (0) to optimal (1)", { min: 0, max: 1, step: 0.01, value: 0.3 }),
    live.slider("grain", "a grain at x", { min: -1.875, max: 2.875, step: 0.25, value: 0.875 }),
    live.play("s", "Play"),
  ],

  compute(state, data) {
    const x = Array.from(data.x.data), n = x.length;
    const [a, b] = [data.pairs[state.pair].a, data.pairs[state.pair].b].map(live.weights);
    const best = live.monotone(a, b);
    const plan = best.map((mass, k) =>
      (1 - state.s) * a[Math.floor(k / n)] * b[k % n] + state.s * mass);
    const price = (weight) => weight.reduce((sum, mass, k) =>
      sum + mass * Math.abs(x[Math.floor(k / n)] - x[k % n]) ** state.p, 0);
    const independent = price(a.flatMap((u) => b.map((v) => u * v)));
    const row = nearest(x, state.grain);
    const goes = plan.slice(row * n, row * n + n).map((mass) => mass / a[row]);
    return { x, a, b, plan, goes, at: x[row], cost: price(plan), independent, least: price(best) };
  },

  draw(numbers, state) {
    return [drawPlan(numbers), drawGrain(numbers, state)];
  },

  say({ cost, independent, least, at, goes, x }, state) {
    const mean = goes.reduce((sum, w, k) => sum + w * x[k], 0);
    const name = state.p === 2 ? "W₂²" : "W₁";
    const number = (v) => live.number(v, 4);
    return `The plan costs ${number(cost)}. Independent points cost ${number(independent)}, ` +
      `the cheapest plan ${name} = ${number(least)}. ` +
      `The grain at x = ${live.number(at)} goes to y = ${live.number(mean)} on average.`;
  },
});

const nearest = (x, value) =>
  x.reduce((best, v, k) => (Math.abs(v - value) < Math.abs(x[best] - value) ? k : best), 0);

const edges = (x) => [...x, 2 * x.at(-1) - x.at(-2)].map((v) => v - (x[1] - x[0]) / 2);

function drawPlan({ x, a, b, plan, at }) {
  const n = x.length, cuts = edges(x), range = [cuts[0], cuts[n]];
  const middle = live.plane({ box: [52, 76, 210, 210], x: range, y: range, xlabel: "x, from μ" });
  // Rows of the picture are y; the root of the mass makes a thin sheet visible.
  const cells = x.flatMap((_, j) => x.map((__, i) => Math.sqrt(plan[i * n + j])));
  const top = live.plane({ box: [52, 22, 210, 48], x: range, y: [0, 1.05 * Math.max(...a)] });
  const side = live.plane({ box: [268, 76, 48, 210], x: [0, 1.05 * Math.max(...b)], y: range });
  return middle.axes() + middle.heat(cells, n, n, { xs: cuts, ys: cuts }) +
    middle.vline(at, "vermilion thin") + top.area(x, a, "blue") + top.line(x, a, "blue thin") +
    side.area(b, x, "orange", 0) + side.line(b, x, "orange thin") +
    live.text(56, 34, "μ", "blue") + live.text(300, 70, "ν", "orange", "middle") +
    live.text(40, 70, "y", "label", "end");
}

function drawGrain({ x, b, goes, at }, state) {
  const peak = Math.max(...b), n = x.length, cuts = edges(x);
  const plane = live.plane({ box: [44, 76, 272, 210], x: [cuts[0], cuts[n]], y: [0, 1.02],
                             xlabel: "y, where it goes", yticks: [0, 0.5, 1] });
  const scale = Math.max(...goes);
  const bars = x.map((_, k) => goes[k] / scale);
  return plane.axes() + plane.area(x, b.map((v) => v / peak), "orange") +
    plane.line(x, b.map((v) => v / peak), "orange thin") +
    plane.line(...steps(cuts, bars), "vermilion") +
    live.text(44, 34, `Where the grain at x = ${live.number(at)} goes`, "vermilion") +
    live.text(44, 54, state.s === 0 ? "independent: as ν, wherever it starts"
      : "shaded: all of ν. Both scaled to 1", "quiet");
}

// A histogram as a line: its corners.
const steps = (cuts, values) => [
  values.flatMap((_, k) => [cuts[k], cuts[k + 1]]), values.flatMap((v) => [v, v])];
}
