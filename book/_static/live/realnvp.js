/* A trained RealNVP, coupling by coupling.

The page trains the flow and exports the weights of its networks.  A coupling takes
x_B to x_B e^s + t, where a network finds s and t from x_A.  Between two couplings
the figure moves by λs and λt, 0 ≤ λ ≤ 1: that is a coupling too, with inverse and
determinant, but no layer of the trained flow.  The slider counts the page's eight.
*/
"use strict";

(() => {
  // A coupling's network at n numbers: ReLU between its three linear maps.
  function network(layer, input) {
    let h = input;
    for (const at of ["0", "2", "4"]) {
      h = live.linear(h, layer[`${at}.weight`].data, layer[`${at}.bias`].data);
      for (let i = 0; at !== "4" && i < h.length; i++) if (h[i] < 0) h[i] = 0;
    }
    return h;
  }

  /* Carry points through couplings; `steps` are pairs [coupling, λ].
     sign 1: from data to noise; −1: the inverse of each. */
  function carry(points, steps, sign, bound) {
    const x = [points[0].slice(), points[1].slice()], logDet = new Float64Array(x[0].length);
    for (const [layer, part] of steps) {
      const h = network(layer, x[layer.kept]), moved = x[1 - layer.kept];
      for (let i = 0; i < moved.length; i++) {
        const s = part * bound * Math.tanh(h[2 * i]), t = part * h[2 * i + 1];
        moved[i] = sign > 0 ? moved[i] * Math.exp(s) + t : (moved[i] - t) * Math.exp(-s);
        logDet[i] += sign * s;
      }
    }
    return { x, logDet };
  }

  // The couplings of the first k steps in a direction, the last of them in part.
  function first(layers, k, sign) {
    const order = sign > 0 ? layers : layers.slice().reverse();
    return order.slice(0, Math.ceil(k)).map((layer, i) => [layer, Math.min(1, k - i)]);
  }

  const columns = ({ data }) => [0, 1].map((i) =>
    Float64Array.from({ length: data.length / 2 }, (_, k) => data[2 * k + i]));
  const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;

  /* Minus the mean log-density of the data under the flow that has only these k
     couplings: the first ones (from data to noise), or the last ones. */
  function nll(points, layers, k, sign, bound) {
    const steps = first(layers, k, sign);
    const { x, logDet } = carry(points, sign > 0 ? steps : steps.reverse(), 1, bound);
    return mean(logDet.map((v, i) =>
      Math.log(2 * Math.PI) + (x[0][i] ** 2 + x[1][i] ** 2) / 2 - v));
  }

  // Lines of a square grid, 11 each way, as points one after the other.
  const LINES = 11, DOTS = 51, REACH = 2.5;
  function grid() {
    const at = live.linspace(-REACH, REACH, LINES), along = live.linspace(-REACH, REACH, DOTS);
    const across = at.flatMap((v) => along.map(() => v)), up = at.flatMap(() => along);
    return [Float64Array.from([...across, ...up]), Float64Array.from([...up, ...across])];
  }

  const curve = live.remembered(["way"], ({ way }, { points, layers, bound }) => {
    const x = columns(points), sign = way === "noise" ? 1 : -1;
    return [...layers.keys(), layers.length].map((k) => nll(x, layers, k, sign, bound));
  });

  function compute(state, data) {
    const { layers, bound } = data, sign = state.way === "noise" ? 1 : -1;
    const points = columns(data.points), steps = first(layers, state.k, sign);
    const cloud = carry(sign > 0 ? points : columns(data.noise), steps, sign, bound);
    return {
      cloud: cloud.x, logDet: mean(cloud.logDet),
      nll: nll(points, layers, state.k, sign, bound), curve: curve(state, data),
      grid: carry(grid(), steps, sign, bound).x,
    };
  }

  // Where each point came from: the moons, or the quadrants of the noise.
  function origins(state, data) {
    if (state.way === "noise") {
      const n = data.points.shape[0];
      return Array.from({ length: n }, (_, i) => (i < data.upper ? "blue" : "orange"));
    }
    const [x, y] = columns(data.noise);
    const names = ["blue", "green", "orange", "pink"];
    return Array.from(x, (v, i) => names[2 * (v > 0) + (y[i] > 0)]);
  }

  function draw(n, state, data) {
    return [plane(n, origins(state, data)), losses(n, state, data)];
  }

  function plane(n, colors) {
    const p = live.plane({ box: [40, 24, 300, 300], x: [-3.2, 3.2], y: [-3.2, 3.2] });
    const [x, y] = n.grid, at = Array.from(x, (v, i) => `${p.X(v).toFixed(1)} ${p.Y(y[i]).toFixed(1)}`);
    const lines = Array.from({ length: 2 * LINES }, (_, i) =>
      `M${at.slice(i * DOTS, (i + 1) * DOTS).join("L")}`);
    const dots = [...new Set(colors)].map((css) => {
      const mine = (values) => Array.from(values).filter((_, i) => colors[i] === css);
      return p.dots(mine(n.cloud[0]), mine(n.cloud[1]), css, 2);
    });
    return p.cut(`<path class="line quiet thin faint" d="${lines.join("")}"/>`) + dots.join("") + p.axes();
  }

  function losses(n, state, data) {
    const last = data.layers.length, high = Math.max(3, ...n.curve, n.nll);
    const p = live.plane({ box: [48, 24, 270, 300], x: [0, last], y: [0, 1.08 * high],
                           xlabel: "couplings applied", ylabel: "minus log-likelihood of the data (nats)" });
    return p.hline(data.exact, "green") +
      p.note(2.2, data.exact + 0.02 * high, "the exact law", "green") +
      p.line(live.linspace(0, last, last + 1), n.curve, "blue") +
      p.dots(live.linspace(0, last, last + 1), n.curve, "blue", 3) +
      p.dots([state.k], [n.nll], "vermilion", 5) + p.axes();
  }

  function say(n, state, data) {
    const whole = Number.isInteger(state.k), v = (x) => live.number(x, 3);
    const from = state.way === "noise" ? "data towards noise" : "noise towards data";
    const inside = whole ? "" : `, the last of them to ${Math.round(100 * (state.k % 1))} %`;
    return `${live.number(Math.ceil(state.k), 1)} of ${data.layers.length} couplings from ${from}${inside}: ` +
      `mean log|det| ${v(n.logDet)}; minus log-likelihood of the data under these ` +
      `couplings ${v(n.nll)} nats, ` +
      `under the exact law ${v(data.exact)}.`;
  }

  live.define("realnvp", {
    title: "A RealNVP, coupling by coupling",
    panels: [[352, 360], [330, 366]],
    controls: [
      live.choice("way", "direction", [["data", "noise → data"], ["noise", "data → noise"]], "data"),
      live.slider("k", "couplings applied", { min: 0, max: 8, step: 0.05, value: 8 }),
      live.play("k", "Play"),
    ],
    compute, draw, say,
  });
})();
