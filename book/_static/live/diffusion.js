/* The walk back, from noise to data, in the plane.

Euler–Maruyama's method for dX = [−f X + c g² s(X, t)] ds + η g dB with VP's f and g.
The score s is that of the mixture, or of the network that the page trained, whose
weights the page exports.  c = ½ (1 + η²) is right; the slides write c = ½, and their
loop also forgets to add the step to X.
*/
"use strict";

(() => {
  /* ---- Noise: the same for every state, from a seed ---------------------------- */

  function uniforms(seed) {  // Mulberry32
    let a = seed;
    return () => {
      a = (a + 0x6d2b79f5) | 0;
      let t = Math.imul(a ^ (a >>> 15), 1 | a);
      t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
      return (((t ^ (t >>> 14)) >>> 0) + 0.5) / 2 ** 32;
    };
  }

  function normals(seed, count) {  // Box–Muller
    const next = uniforms(seed), out = new Float64Array(2 * Math.ceil(count / 2));
    for (let i = 0; i < out.length; i += 2) {
      const radius = Math.sqrt(-2 * Math.log(next())), angle = 2 * Math.PI * next();
      out[i] = radius * Math.cos(angle);
      out[i + 1] = radius * Math.sin(angle);
    }
    return out.subarray(0, count);
  }

  /* ---- The equation: VP on [0, 1] ------------------------------------------------ */

  const beta = (t, [low, high]) => low + (high - low) * t;
  function at(t, [low, high]) {
    const B = low * t + ((high - low) * t * t) / 2;
    return { alpha: Math.exp(-B), sigma: Math.sqrt(-Math.expm1(-2 * B)) };
  }

  // From 1 to 0.001: equal steps, or shorter ones near the data, t = (1 − u)² with even u.
  const grid = ({ steps, even }) => (even ? live.linspace(1, 0.001, steps + 1)
    : live.linspace(0, 1 - Math.sqrt(0.001), steps + 1).map((u) => (1 - u) ** 2));

  /* ---- Scores: (x, t) ↦ values, for points one after the other -------------------- */

  function mixtureScore({ means, variance, betas }) {
    const m = means.data, k = means.shape[0], log = new Float64Array(k);
    return (x, t) => {
      const { alpha, sigma } = at(t, betas), v = alpha ** 2 * variance + sigma ** 2;
      return pointwise(x, (a, b, out, i) => {
        let top = -Infinity, mass = 0, p = 0, q = 0;
        for (let j = 0; j < k; j++) {
          log[j] = -((a - alpha * m[2 * j]) ** 2 + (b - alpha * m[2 * j + 1]) ** 2) / (2 * v);
          top = Math.max(top, log[j]);
        }
        for (let j = 0; j < k; j++) {
          const w = Math.exp(log[j] - top);
          mass += w;
          p += w * m[2 * j];
          q += w * m[2 * j + 1];
        }
        out[i] = ((alpha * p) / mass - a) / v;
        out[i + 1] = ((alpha * q) / mass - b) / v;
      });
    };
  }

  function pointwise(x, set) {
    const out = new Float64Array(x.length);
    for (let i = 0; i < x.length; i += 2) set(x[i], x[i + 1], out, i);
    return out;
  }

  // (α D(x/α, σ/α) − x)/σ² with D = c_skip x + c_out F(c_in x, ¼ ln σ).
  function networkScore({ net: given, sigma_data: d, betas }) {
    const net = Object.fromEntries(
      Object.entries(given).map(([name, w]) => [name, Float64Array.from(w.data)]));
    return (x, t) => {
      const { alpha, sigma } = at(t, betas), level = sigma / alpha, total = Math.hypot(level, d);
      const F = residual(net, x.map((v) => v / alpha / total), Math.log(level) / 4);
      return x.map((v, i) => {
        const D = (d / total) ** 2 * (v / alpha) + ((level * d) / total) * F[i];
        return (alpha * D - v) / sigma ** 2;
      });
    };
  }

  function silu(x) {
    const y = new Float64Array(x.length);
    for (let i = 0; i < x.length; i++) y[i] = x[i] / (1 + Math.exp(-x[i]));
    return y;
  }

  // The residual perceptron of the page, at points x and one time.
  function residual(net, x, t) {
    const layer = (name, v) => live.linear(v, net[`${name}.weight`], net[`${name}.bias`]);
    const width = net["enter.bias"].length;
    const angles = live.linspace(0, 1, width / 2).map((share) => t * 16 ** share);
    const waves = Float64Array.from([...angles.map(Math.cos), ...angles.map(Math.sin)]);
    const told = layer("time.net.2", silu(layer("time.net.0", waves)));
    const h = layer("enter", x);
    for (let i = 0; i < h.length; i++) h[i] += told[i % width];
    for (let k = 0; `blocks.${k}.1.0.bias` in net; k++) {
      const more = layer(`blocks.${k}.1.2`, silu(layer(`blocks.${k}.1.0`, silu(h))));
      for (let i = 0; i < h.length; i++) h[i] += more[i];
    }
    return layer("leave", h);
  }

  /* ---- The walk -------------------------------------------------------------------- */

  function walk(state, data) {
    const { steps, eta, drift, score } = state;
    const size = data.sample.data.length, times = grid(state), noise = normals(1, size * (steps + 1));
    const s = (score === "exact" ? mixtureScore : networkScore)(data);
    const share = drift === "right" ? (1 + eta ** 2) / 2 : 0.5, kept = drift === "loop" ? 0 : 1;
    const clouds = [noise.slice(0, size)];
    for (let k = 0; k < steps; k++) {
      const x = clouds[k], t = times[k], h = t - times[k + 1], b = beta(t, data.betas);
      const pull = s(x, t), z = noise.subarray(size * (k + 1), size * (k + 2));
      const size_of_noise = eta * Math.sqrt(2 * b * h);
      clouds.push(x.map((v, i) =>
        kept * v + h * b * (v + 2 * share * pull[i]) + size_of_noise * z[i]));
    }
    return { times, noise, clouds };
  }

  // To look at another time of the same walk costs nothing.
  const walked = live.remembered(["steps", "even", "eta", "drift", "score"], walk);

  const deviation = (x) => Math.sqrt(x.reduce((sum, v) => sum + v * v, 0) / x.length);

  // Root mean square distance, in a coordinate, to the nearest centre of the law at t.
  function width(x, t, { means, betas }) {
    const { alpha } = at(t, betas), m = means.data.map((v) => alpha * v);
    let sum = 0;
    for (let i = 0; i < x.length; i += 2) {
      let near = Infinity;
      for (let j = 0; j < m.length; j += 2) {
        near = Math.min(near, (x[i] - m[j]) ** 2 + (x[i + 1] - m[j + 1]) ** 2);
      }
      sum += near;
    }
    return Math.sqrt(sum / x.length);
  }

  function distances(x, y) {  // the mean distance of a point of x and one of y
    let sum = 0;
    for (let i = 0; i < x.length; i += 2) {
      for (let j = 0; j < y.length; j += 2) sum += Math.hypot(x[i] - y[j], x[i + 1] - y[j + 1]);
    }
    return (4 * sum) / (x.length * y.length);
  }

  function compute(state, data) {
    const { times, noise, clouds } = walked(state, data);
    const k = Math.round(state.part * state.steps), cloud = clouds[k];
    const moment = data.variance + deviation(data.means.data) ** 2;
    const exact = times.map((t) => {
      const { alpha, sigma } = at(t, data.betas);
      return Math.sqrt(alpha ** 2 * moment + sigma ** 2);
    });
    const { alpha, sigma } = at(times[k], data.betas), fresh = normals(2, cloud.length);
    const truth = Float64Array.from(data.sample.data, (v, i) => alpha * v + sigma * fresh[i]);
    return {
      times, noise, clouds, k, truth, exact, found: clouds.map(deviation),
      width: width(cloud, times[k], data), widthOfTruth: width(truth, times[k], data),
      energy: 2 * distances(cloud, truth) - distances(cloud, cloud) - distances(truth, truth),
    };
  }

  /* ---- The picture ------------------------------------------------------------------- */

  const half = (x, i) => Array.from({ length: x.length / 2 }, (_, k) => x[2 * k + i]);

  function draw(n, state) {
    return [plane(n), moments(n)];
  }

  function plane(n) {
    const p = live.plane({ box: [40, 24, 300, 300], x: [-3.2, 3.2], y: [-3.2, 3.2] });
    const cloud = n.clouds[n.k], past = n.clouds.slice(0, n.k + 1);
    const paths = n.k === 0 ? [] : [0, 2, 4].map((i) =>
      p.line(past.map((x) => x[i]), past.map((x) => x[i + 1]), "quiet thin"));
    return p.dots(half(n.truth, 0), half(n.truth, 1), "orange", 1.6) + paths.join("") +
      p.dots(half(cloud, 0), half(cloud, 1), "blue", 2.2) +
      p.note(-3, 2.75, "walkers", "blue") + p.note(-3, 2.35, "exact law", "orange") + p.axes();
  }

  function moments(n) {
    const top = Math.min(6, Math.max(1.5, ...n.found.map((v) => 1.1 * v)));
    const p = live.plane({ box: [48, 24, 270, 300], x: [1, 0], y: [0, top],
                           xticks: [[1, "1"], [0.5, "½"], [0, "0"]],
                           xlabel: "time t, from noise to data", ylabel: "deviation of a coordinate" });
    return p.line(n.times, n.exact, "orange") + p.line(n.times, n.found, "blue") +
      p.dots([n.times[n.k]], [n.found[n.k]], "blue", 5) + p.axes();
  }

  function say(n, state, data) {
    const v = (x) => live.number(x, 3);
    return `t = ${v(n.times[n.k])} after ${n.k} of ${n.times.length - 1} steps: deviation ` +
      `${v(n.found[n.k])}, exact ${v(n.exact[n.k])}; distance to the nearest centre ` +
      `${v(n.width)}, of an exact sample ${v(n.widthOfTruth)}; squared energy distance ${v(n.energy)} (of two exact samples: ${v(data.floor)}).`;
  }

  live.define("diffusion", {
    title: "The walk back",
    panels: [[352, 360], [330, 366]],
    controls: [
      live.slider("part", "share of the walk", { min: 0, max: 1, step: 0.01, value: 1 }),
      live.play("part", "Play"),
      live.slider("steps", "number of steps", { min: 5, max: 80, step: 1, value: 40, digits: 1 }),
      live.toggle("even", "steps of equal length", false),
      live.slider("eta", "noise η", { min: 0, max: 1, step: 0.05, value: 1 }),
      live.choice("score", "score", [["exact", "exact"], ["network", "trained network"]], "exact"),
      live.choice("drift", "drift", [
        ["right", "right: ½ (1 + η²) g² s"],
        ["half", "slides: ½ g² s"],
        ["loop", "slides' loop: X + is lost"],
      ], "right"),
    ],
    compute, draw, say,
  });
})();
