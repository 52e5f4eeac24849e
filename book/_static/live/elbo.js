/* What the bound misses: a linear VAE with one latent and x in the plane.

z ~ N(0, 1), x | z ~ N(W z, σ² I) with W = w u, and the encoder q(z | x) =
N(a ⟨u, x⟩, s²).  Everything has a formula: the posterior, log p(x), the ELBO, and
their difference KL(q ‖ posterior).
*/
"use strict";

(() => {
  const U = [0.8, 0.6];  // the decoder's direction, of length one

  function posterior({ w, sigma }) {
    const total = w * w + sigma * sigma;
    return { slope: w / total, spread: sigma / Math.sqrt(total) };
  }

  // log p(x), x ~ N(0, W Wᵀ + σ² I): variances w² + σ² along u and σ² across.
  function evidence(state, along, across) {
    const wide = state.w ** 2 + state.sigma ** 2, thin = state.sigma ** 2;
    return -Math.log(2 * Math.PI) - (Math.log(wide) + Math.log(thin)) / 2 -
      along ** 2 / (2 * wide) - across ** 2 / (2 * thin);
  }

  // E_q log p(x | z) − KL(q ‖ prior) with q = N(mean, s²).
  function bound({ w, sigma, spread }, along, across, mean) {
    const miss = (along - w * mean) ** 2 + across ** 2 + (w * spread) ** 2;
    const fit = -Math.log(2 * Math.PI * sigma ** 2) - miss / (2 * sigma ** 2);
    const rate = (mean ** 2 + spread ** 2 - 2 * Math.log(spread) - 1) / 2;
    return { fit, rate, elbo: fit - rate };
  }

  const normal = (z, mean, std) =>
    Math.exp(-(((z - mean) / std) ** 2) / 2) / (std * Math.sqrt(2 * Math.PI));

  function compute(state, data) {
    const along = U[0] * state.x1 + U[1] * state.x2, across = U[0] * state.x2 - U[1] * state.x1;
    const best = posterior(state), mean = state.slope * along;
    const exact = { mean: best.slope * along, std: best.spread };
    const gap = Math.log(exact.std / state.spread) - 0.5 +
      (state.spread ** 2 + (mean - exact.mean) ** 2) / (2 * exact.std ** 2);
    const z = live.linspace(-3, 3, 121);
    return {
      ...bound(state, along, across, mean), evidence: evidence(state, along, across), gap, mean, exact, z,
      bounds: z.map((v) => bound(state, along, across, v).elbo),
      guess: z.map((v) => normal(v, mean, state.spread)),
      posterior: z.map((v) => normal(v, exact.mean, exact.std)),
      prior: z.map((v) => normal(v, 0, 1)),
      cloud: cloud(state, data),
    };
  }

  // Draws of the model: W z + σ ε with the page's z and ε, as xs and ys.
  function cloud({ w, sigma }, { z, eps }) {
    return [0, 1].map((i) =>
      Array.from(z.data, (v, k) => w * U[i] * v + sigma * eps.data[2 * k + i]));
  }

  function draw(n, state) {
    return [plane(n, state), latent(n, state)];
  }

  function plane(n, { w, sigma, spread, x1, x2 }) {
    const p = live.plane({ box: [44, 28, 290, 290], x: [-3.5, 3.5], y: [-3.5, 3.5],
                           xlabel: "x₁", ylabel: "x₂" });
    const turn = live.linspace(0, 2 * Math.PI, 73);
    const ring = (i) => turn.map((a) => 2 * Math.hypot(w, sigma) * Math.cos(a) * U[i] +
      2 * sigma * Math.sin(a) * (i ? U[0] : -U[1]));
    // What two deviations of a law of z become in the plane, a little beside the line.
    const bar = (mean, std, off, css) => {
      const ends = [mean - 2 * std, mean + 2 * std];
      return p.line(ends.map((z) => w * U[0] * z - off * U[1]), ends.map((z) => w * U[1] * z + off * U[0]), css);
    };
    return p.dots(...n.cloud, "sky", 1.6) + p.line(ring(0), ring(1), "blue") +
      bar(0, 3, 0, "quiet thin") + bar(n.exact.mean, n.exact.std, -0.09, "green thick") +
      bar(n.mean, spread, 0.09, "orange thick") +
      p.dots([x1], [x2], "vermilion", 6) + p.note(x1 + 0.25, x2, "x", "vermilion") + p.axes();
  }

  function latent(n, { spread }) {
    const high = Math.max(1.2, 1.1 * Math.max(...n.guess, ...n.posterior));
    const top = live.plane({ box: [52, 28, 290, 120], x: [-3, 3], y: [0, high], xticks: [],
                             yticks: [0, 1], ylabel: "density of z" });
    const low = live.plane({ box: [52, 190, 290, 128], x: [-3, 3], y: [n.evidence - 5, n.evidence + 1],
                             xlabel: "z, and the mean of q", ylabel: "ELBO (nats)" });
    const side = n.mean > 1.6 ? -1 : 1, words = side > 0 ? "start" : "end";
    return top.line(n.z, n.prior, "quiet") + top.area(n.z, n.posterior, "green") +
      top.line(n.z, n.posterior, "green") + top.line(n.z, n.guess, "orange") +
      top.note(-2.9, 0.825 * high, "posterior", "green") + top.note(-2.9, 0.637 * high, "encoder q", "orange") +
      top.note(-2.9, 0.45 * high, "prior", "quiet") + top.axes() +
      low.hline(n.evidence, "green") + low.note(-2.9, n.evidence + 0.2, "log p(x)", "green") +
      low.line(n.z, n.bounds, "orange") +
      low.line([n.mean, n.mean], [n.elbo, n.evidence], "vermilion thick") +
      low.dots([n.mean], [n.elbo], "orange", 5) +
      low.note(n.mean + 0.12 * side, n.evidence - 0.9, "gap", "vermilion", words) + low.axes();
  }

  function say(n, { spread }) {
    const v = (x) => live.number(x, 3), gap = Math.abs(n.gap) < 1e-12 ? 0 : n.gap;
    return `log p(x) ${v(n.evidence)} = ELBO ${v(n.elbo)} + gap ${v(gap)} nats. ` +
      `Encoder N(${v(n.mean)}, ${v(spread)}²), posterior N(${v(n.exact.mean)}, ${v(n.exact.std)}²).`;
  }

  // From the encoder that stands there to the exact posterior.
  function exact(state) {
    const end = posterior(state);
    return live.linspace(0, 1, 31).map((part) => ({
      slope: state.slope + part * (end.slope - state.slope),
      spread: state.spread * (end.spread / state.spread) ** part,
    }));
  }

  live.define("elbo", {
    title: "What the bound misses",
    panels: [[350, 366], [356, 366]],
    controls: [
      live.slider("slope", "encoder: slope a of its mean", { min: -1, max: 3, step: 0.01, value: 0.2 }),
      live.slider("spread", "encoder: deviation s", { min: 0.1, max: 1.5, step: 0.01, value: 0.8 }),
      live.act("exact", "Move the encoder to the posterior"),
      live.slider("w", "decoder: slope w", { min: 0.1, max: 2, step: 0.01, value: 1.2 }),
      live.slider("sigma", "decoder: noise σ", { min: 0.3, max: 1.5, step: 0.01, value: 0.7 }),
      live.slider("x1", "datum: x₁", { min: -3, max: 3, step: 0.05, value: 1.4 }),
      live.slider("x2", "datum: x₂", { min: -3, max: 3, step: 0.05, value: 0.5 }),
    ],
    compute, draw, say,
    acts: { exact },
  });
})();
