/* The live figures: controls, drawing and colours, shared by all.

A figure is a file beside this one that calls

  { live.define("name", {
    title: "two or three words",
    panels: [[320, 300], [320, 300]],       // one or more pictures: width, height
    controls: [live.slider("t", "label", {min: 0, max: 1, step: 0.01, value: 0}), …],
    compute(state, data) { return numbers; },   // the mathematics; no drawing
    draw(numbers, state, data) { return ["<path …/>", "…"]; },   // one inside per panel
    say(numbers, state, data) { return "one sentence with the numbers"; },
    acts: { key(state, data) { return [{t: 0.1}, …]; } },   // the states of a button
  }); }

compute, draw and say are pure and know no document: the build runs them in V8 to
draw the first state into the page, the tests run compute and compare it with the
Python package, the browser runs them when the reader moves a control.

A figure's file stands in a block { … }, so that its own functions stay its own.

A panel, 320 to 360 wide, stands beside its neighbour on a wide screen and below it
on a phone, where it keeps its size.
*/
"use strict";

const live = (() => {
  const figures = new Map();

  /* ---- What a figure is ---------------------------------------------------- */

  function define(name, figure) {
    figures.set(name, figure);
    if (typeof document !== "undefined") hydrate(name);
  }

  /* Controls: plain descriptions; hydrate() ties them to the page's inputs.
     A slider takes min, max, step, value; log: true moves it by equal factors, from
     min to max in as many as `steps` says; whole: true rounds its value; unit and
     digits say how it is written. */
  const slider = (key, label, range) => ({ kind: "slider", key, label, ...range });
  // options: strings, or pairs [value, what is written].
  const choice = (key, label, options, value) => ({ kind: "choice", key, label, options, value });
  const toggle = (key, label, value) => ({ kind: "toggle", key, label, value });
  // A button that moves the slider `key` from where it stands to its end; pressed
  // again while it does, it stops.
  const play = (key, label) => ({ kind: "play", key, label });
  // A button that goes through the states which acts[key] returns.
  const act = (key, label) => ({ kind: "act", key, label });

  /* Data: arrays of 32-bit floats come as {shape, f32: base64}. */
  function unpacked(value) {
    if (value && typeof value === "object" && "f32" in value) {
      return { shape: value.shape, data: floats(value.f32) };
    }
    if (Array.isArray(value)) return value.map(unpacked);
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, unpacked(v)]));
    }
    return value;
  }

  const ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

  function floats(text) {
    const clean = text.replace(/=+$/, "");
    const bytes = new Uint8Array(Math.floor((clean.length * 3) / 4));
    let bits = 0, held = 0, at = 0;
    for (const letter of clean) {
      held = ((held << 6) | ALPHABET.indexOf(letter)) & 0xffff;
      bits += 6;
      if (bits >= 8) bytes[at++] = (held >> (bits -= 8)) & 255;
    }
    return new Float32Array(bytes.buffer);
  }

  function start(name) {
    return Object.fromEntries(
      figures.get(name).controls.filter((c) => "value" in c).map((c) => [c.key, c.value]));
  }

  /* ---- What the build and the tests ask for --------------------------------- */

  // The first state: its pictures, its sentence, the panels and the controls.
  function first(name, data) {
    const figure = figures.get(name), state = start(name), given = unpacked(data);
    const numbers = figure.compute(state, given);
    return { panels: figure.panels, controls: figure.controls,
             pictures: figure.draw(numbers, state, given), says: figure.say(numbers, state, given) };
  }

  // The numbers at a state.
  function compute(name, state, data) {
    return figures.get(name).compute({ ...start(name), ...state }, unpacked(data));
  }

  // The sentence at a state.
  function says(name, state, data) {
    const at = { ...start(name), ...state }, given = unpacked(data), figure = figures.get(name);
    return figure.say(figure.compute(at, given), at, given);
  }

  // The states through which a button goes from a state.
  function states(name, state, data, key) {
    return figures.get(name).acts[key]({ ...start(name), ...state }, unpacked(data));
  }

  // Any value as JSON; typed arrays become lists, what is not finite a string.
  function json(value) {
    return JSON.stringify(value, (_, v) => {
      if (ArrayBuffer.isView(v)) return Array.from(v);
      return typeof v === "number" && !Number.isFinite(v) ? String(v) : v;
    });
  }

  const escaped = (text) => String(text).replace(/[&<>"]/g,
    (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);

  // The whole figure as HTML, in its first state; id is unique in the page.
  function html(name, id, record) {
    const figure = figures.get(name), shown = first(name, record.data);
    const caption = record.caption ? `<figcaption>${escaped(record.caption)}</figcaption>` : "";
    const data = JSON.stringify(record.data).replace(/</g, "\\u003c");
    return `<figure class="pf-live" id="${id}" data-live="${name}">` +
      `<div class="pf-picture">` +
      shown.pictures.map((inside, k) => picture(figure, id, k, inside, record.alt)).join("") +
      `</div><p class="pf-says" aria-live="polite">${escaped(shown.says)}</p>` +
      controls(figure, id) + caption +
      `<script type="application/json">${data}</script></figure>`;
  }

  function picture(figure, id, k, inside, alt) {
    const [width, height] = figure.panels[k];
    const named = k > 0 ? ' aria-hidden="true"'
      : ` role="img" aria-labelledby="${id}-title ${id}-desc"`;
    const said = k > 0 ? "" : `<title id="${id}-title">${escaped(figure.title)}</title>` +
      `<desc id="${id}-desc">${escaped(alt)}</desc>`;
    return `<svg width="${width}" height="${height}" ` +
      `viewBox="0 0 ${width} ${height}"${named}>${said}<g class="pf-inside">${inside}</g></svg>`;
  }

  function controls(figure, id) {
    const rows = figure.controls.map((c) => control(c, `${id}-${c.kind}-${c.key}`)).join("");
    return `<fieldset class="pf-controls" disabled><legend>${escaped(figure.title)}: controls</legend>` +
      rows + `<button type="button" data-kind="reset">Reset</button></fieldset>`;
  }

  function control(c, id) {
    const label = escaped(c.label), mark = `data-kind="${c.kind}" data-key="${c.key}"`;
    if (c.kind === "slider") {
      const [min, max, step] = places(c), text = escaped(written(c, c.value));
      return `<div class="pf-slider"><label for="${id}">${label}</label>` +
        `<input type="range" id="${id}" ${mark} min="${min}" max="${max}" step="${step}" ` +
        `value="${placed(c, c.value)}" aria-valuetext="${text}"><output for="${id}" aria-live="off">${text}</output></div>`;
    }
    if (c.kind === "choice") {
      const options = c.options.map((o) => (Array.isArray(o) ? o : [o, o])).map(([v, text]) =>
        `<option value="${escaped(v)}"${v === c.value ? " selected" : ""}>${escaped(text)}</option>`);
      return `<div><label for="${id}">${label}</label>` +
        `<select id="${id}" ${mark}>${options.join("")}</select></div>`;
    }
    if (c.kind === "toggle") {
      return `<div><input type="checkbox" id="${id}" ${mark}${c.value ? " checked" : ""}>` +
        `<label for="${id}">${label}</label></div>`;
    }
    return `<button type="button" ${mark} aria-pressed="false">${label}</button>`;
  }

  const written = (c, value) =>
    (c.whole ? String(value) : number(value, c.digits ?? 3)) + (c.unit ? ` ${c.unit}` : "");

  /* ---- Drawing: strings of SVG ------------------------------------------------
     Colours are classes: blue orange green vermilion pink sky ink quiet.  They are
     defined in live.css, for the light and the dark page. */

  // A number as it is read: three digits, a true minus, powers of ten when far from 1.
  function number(value, digits = 3) {
    if (!Number.isFinite(value)) return value > 0 ? "∞" : value < 0 ? "−∞" : "?";
    const size = Math.abs(Number(value.toPrecision(Math.max(digits, 1))));  // 0.9996 is 1.00
    if (size !== 0 && (size < 1e-3 || size >= 1e6)) {
      const [head, power] = value.toExponential(Math.max(digits - 2, 0)).split("e");
      const factor = head.replace(/\.?0+$/, "").replace("-", "−");
      return `${factor === "1" ? "" : `${factor}·`}10${raised(Number(power))}`;
    }
    const places = size === 0 ? 0 : Math.max(0, digits - 1 - Math.floor(Math.log10(size)));
    return value.toFixed(Math.min(places, 12)).replace("-", "−");
  }

  const raised = (power) => String(power).replace(/[-\d]/g, (c) =>
    (c === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[Number(c)]));

  const linspace = (a, b, n) => Array.from({ length: n }, (_, k) => a + ((b - a) * k) / (n - 1));

  // About `count` round numbers from lo to hi.
  function ticks(lo, hi, count = 5) {
    const raw = (hi - lo) / count, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.999);
    const from = Math.ceil(lo / step - 1e-9), to = Math.floor(hi / step + 1e-9);
    return Array.from({ length: Math.max(0, to - from + 1) }, (_, k) => +((from + k) * step).toPrecision(10));
  }

  const r = (v) => Math.round(v * 10) / 10;  // tenths of a unit are fine enough

  const text = (x, y, words, css = "", anchor = "start") => words === "" ? "" :
    `<text x="${r(x)}" y="${r(y)}" class="${css}" text-anchor="${anchor}">${escaped(words)}</text>`;

  /* A plane: data coordinates in a box of the picture.

     box     [left, top, width, height]
     x, y    [lo, hi]; xlog, ylog: logarithmic axes
     xlabel, ylabel, xticks, yticks  (ticks: numbers, or pairs [number, text]; [] none)

     All methods return SVG.  Lines, areas, dots and arrows are cut at the box. */
  function plane(given) {
    const p = { xticks: null, yticks: null, xlabel: "", ylabel: "", ...given };
    const [left, top, width, height] = p.box;
    const scaled = (v, [lo, hi], log) => (log
      ? (Math.log(Math.max(v, 1e-300)) - Math.log(lo)) / (Math.log(hi) - Math.log(lo))
      : (v - lo) / (hi - lo));
    const held = (v) => Math.max(-5e3, Math.min(5e3, Number.isFinite(v) ? v : 5e3));
    const X = (v) => held(left + width * scaled(v, p.x, p.xlog));
    const Y = (v) => held(top + height * (1 - scaled(v, p.y, p.ylog)));
    const cut = (inside) => `<svg x="${left}" y="${top}" width="${width}" height="${height}" ` +
      `viewBox="${left} ${top} ${width} ${height}">${inside}</svg>`;
    const points = (xs, ys) => Array.from(xs, (x, k) => `${r(X(x))} ${r(Y(ys[k]))}`);
    const marks = (t, range, log) => (t ?? (log ? decades(range) : ticks(range[0], range[1])))
      .map((v) => (Array.isArray(v) ? v : [v, plainly(v)]));

    function axes() {
      const bottom = top + height, grid = [], words = [];
      for (const [v, label] of marks(p.xticks, p.x, p.xlog)) {
        grid.push(`M${r(X(v))} ${bottom}v5`);
        words.push(text(X(v), bottom + 19, label, "tick", "middle"));
      }
      for (const [v, label] of marks(p.yticks, p.y, p.ylog)) {
        grid.push(`M${left} ${r(Y(v))}h-5`);
        words.push(text(left - 8, Y(v) + 5, label, "tick", "end"));
      }
      return `<path class="axis" d="M${left} ${top}v${height}h${width}${grid.join("")}"/>` +
        words.join("") +
        text(left + width / 2, bottom + 38, p.xlabel, "label", "middle") +
        text(Math.max(left - 30, 2), top - 8, p.ylabel, "label");
    }

    const line = (xs, ys, css = "blue") =>
      cut(`<path class="line ${css}" d="M${points(xs, ys).join("L")}"/>`);

    // Between ys and zero (or another base: a number, or an array).
    function area(xs, ys, css = "blue", base = 0) {
      const floor = Array.from(xs, (_, k) => (typeof base === "number" ? base : base[k]));
      const there = points(xs, ys), back = points(xs, floor).reverse();
      return cut(`<path class="area ${css}" d="M${[...there, ...back].join("L")}Z"/>`);
    }

    // All dots are one path: lines of no length with round ends.
    const dots = (xs, ys, css = "blue", radius = 3) => cut(
      `<path class="dots ${css}" stroke-width="${2 * radius}" d="M${points(xs, ys).join("h0M")}h0"/>`);

    // From (x, y) to (x + u, y + v), in data coordinates, each with a head.
    function arrows(xs, ys, us, vs, css = "ink", head = 5) {
      const path = Array.from(xs, (x, k) => {
        const [a, b, c, d] = [X(x), Y(ys[k]), X(x + us[k]), Y(ys[k] + vs[k])];
        const length = Math.hypot(c - a, d - b);
        if (length < 0.5) return "";
        const size = Math.min(head, length / 2) / length;
        const [e, f] = [(a - c) * size, (b - d) * size];
        return `M${r(a)} ${r(b)}L${r(c)} ${r(d)}M${r(c + e - f * 0.6)} ${r(d + f + e * 0.6)}` +
          `L${r(c)} ${r(d)}L${r(c + e + f * 0.6)} ${r(d + f - e * 0.6)}`;
      });
      return cut(`<path class="arrow ${css}" d="${path.join("")}"/>`);
    }

    /* Cells of values (rows of y × columns of x, row by row from y[0]), as opacity
       from 0 to `top`; each of 16 levels is one path.  edges: of the columns and of
       the rows, by default even. */
    function heat(values, rows, columns, { css = "blue", peak = Math.max(...values), xs, ys } = {}) {
      const across = xs ?? linspace(p.x[0], p.x[1], columns + 1);
      const up = ys ?? linspace(p.y[0], p.y[1], rows + 1);
      const levels = Array.from({ length: 17 }, () => "");
      for (let i = 0; i < rows; i++) {
        for (let j = 0, end; j < columns; j = end) {
          const level = shade(values[i * columns + j], peak);
          for (end = j + 1; end < columns && shade(values[i * columns + end], peak) === level;) end++;
          levels[level] += `M${r(X(across[j]))} ${r(Y(up[i]))}H${r(X(across[end]))}` +
            `V${r(Y(up[i + 1]))}H${r(X(across[j]))}Z`;
        }
      }
      return levels.map((d, k) => (k && d
        ? `<path class="cells ${css}" fill-opacity="${k / 16}" d="${d}"/>` : "")).join("");
    }

    const vline = (x, css = "quiet") => cut(`<path class="line ${css}" d="M${r(X(x))} ${top}v${height}"/>`);
    const hline = (y, css = "quiet") => cut(`<path class="line ${css}" d="M${left} ${r(Y(y))}h${width}"/>`);
    const note = (x, y, words, css = "ink", anchor = "start") => text(X(x), Y(y), words, css, anchor);

    return { ...p, X, Y, cut, axes, line, area, dots, arrows, heat, vline, hline, note };
  }

  const shade = (value, peak) => Math.max(0, Math.min(16, Math.round((16 * value) / peak)));

  // A round number, with the digits that it has.
  function plainly(v) {
    const size = Math.abs(v);
    if (size === 0 || (size >= 1e-3 && size < 1e5)) return String(+v.toPrecision(6)).replace("-", "−");
    const [head, power] = v.toExponential().split("e");
    return (head === "1" ? "" : `${head.replace("-", "−")}·`) + `10${raised(Number(power))}`;
  }

  function decades([lo, hi]) {
    const from = Math.ceil(Math.log10(lo) - 1e-9), to = Math.floor(Math.log10(hi) + 1e-9);
    const step = Math.max(1, Math.ceil((to - from) / 4));
    return Array.from({ length: Math.floor((to - from) / step) + 1 }, (_, k) => 10 ** (from + k * step));
  }

  /* ---- Mathematics that several figures share --------------------------------- */

  const sum = (values) => values.reduce((total, v) => total + v, 0);

  // Weights from 32-bit floats, of sum 1 in double precision.
  function weights({ data }) {
    const given = Array.from(data), total = sum(given);
    return given.map((w) => w / total);
  }

  // The monotone plan of two histograms on one line, row by row: it fills the ditch b
  // from the left with the earth a from the left.
  function monotone(a, b) {
    const plan = new Array(a.length * b.length).fill(0);
    let i = 0, j = 0, earth = a[0], ditch = b[0];
    while (i < a.length && j < b.length) {
      const mass = Math.min(earth, ditch);
      plan[i * b.length + j] += mass;
      earth -= mass;
      ditch -= mass;
      if (earth <= ditch) earth = a[++i] ?? 0; else ditch = b[++j] ?? 0;
    }
    return plan;
  }

  // log(1 + exp(t)) without overflow, and the logistic function.
  const softplus = (t) => Math.max(t, 0) + Math.log1p(Math.exp(-Math.abs(t)));
  const sigmoid = (t) => (t >= 0 ? 1 / (1 + Math.exp(-t)) : Math.exp(t) / (1 + Math.exp(t)));

  function logSumExp(values) {
    const top = values.reduce((a, b) => Math.max(a, b), -Infinity);
    return top === -Infinity ? top : top + Math.log(sum(values.map((v) => Math.exp(v - top))));
  }

  // log N(x; m, s²)
  const logNormal = (x, m, s) => -(((x - m) / s) ** 2) / 2 - Math.log(s) - Math.log(2 * Math.PI) / 2;

  /* ---- Networks, and what is computed once ------------------------------------------ */

  // x Wᵀ + b for rows x, with W (outputs, inputs): a linear layer, as torch's.
  function linear(x, W, b) {
    const outputs = b.length, inputs = W.length / outputs, rows = x.length / inputs;
    const y = new Float64Array(rows * outputs);
    for (let i = 0; i < rows; i++) {
      for (let o = 0; o < outputs; o += 2) {  // two at a time are nearly twice as fast
        const last = Math.min(o + 1, outputs - 1), first = o * inputs, second = last * inputs;
        let one = b[o], two = b[last];
        for (let j = 0, at = i * inputs; j < inputs; j++) {
          one += W[first + j] * x[at + j];
          two += W[second + j] * x[at + j];
        }
        y[i * outputs + o] = one;
        y[i * outputs + last] = two;
      }
    }
    return y;
  }

  // make(state, data), kept until the data or one of these entries of the state change.
  function remembered(keys, make) {
    let last = null;
    return (state, data) => {
      const same = last && last.data === data && keys.every((k) => last.state[k] === state[k]);
      if (!same) last = { data, state: { ...state }, value: make(state, data) };
      return last.value;
    };
  }

  /* ---- In the browser ---------------------------------------------------------- */

  const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

  function hydrate(name) {
    document.querySelectorAll(`figure.pf-live[data-live="${name}"]`).forEach((node) => tie(name, node));
  }

  function tie(name, node) {
    const figure = figures.get(name), state = start(name);
    let given = null;  // read when the reader first moves something: the page opens sooner
    const data = () => (given ??= unpacked(JSON.parse(node.querySelector("script").textContent)));
    const find = (kind, key) => node.querySelector(`[data-kind="${kind}"][data-key="${key}"]`);
    const says = speaker(node.querySelector(".pf-says"));
    let asked = 0;

    function show() {
      asked = 0;
      const numbers = figure.compute(state, data());
      const insides = node.querySelectorAll(".pf-inside");
      figure.draw(numbers, state, data()).forEach((inside, k) => { insides[k].innerHTML = inside; });
      says.write(figure.say(numbers, state, data()));
    }

    const settle = () => figure.controls.forEach((c) => put(c, find(c.kind, c.key), state[c.key]));

    function set(changes) {
      Object.assign(state, changes);
      settle();
      asked ||= requestAnimationFrame(show);
    }

    const { go, stop } = player(set, says);
    const slid = (key) => figure.controls.find((c) => c.kind === "slider" && c.key === key);
    const told = (c, input) => {
      stop();
      set({ [c.key]: taken(c, input) });
    };
    const pressed = {
      play: (c, button) => go(button, () => sweep(slid(c.key), state[c.key], calm()), 4),
      act: (c, button) => go(button, () => figure.acts[c.key](state, data()), 1.5),
    };
    figure.controls.forEach((c) => {
      const input = find(c.kind, c.key), handle = pressed[c.kind];
      input.addEventListener(handle ? "click" : "input", () => (handle ?? told)(c, input));
    });
    node.querySelector('[data-kind="reset"]').addEventListener("click", () => {
      stop();
      set(start(name));
    });
    settle();  // what a browser remembers of the inputs is overwritten; the picture stands
    node.querySelector("fieldset").disabled = false;
  }

  // The line that says: written when its words change; hushed, it is not read out, and
  // when it may speak again it is written, and so read out, once.
  function speaker(line) {
    let said = line.textContent;
    return {
      write(words) { if (words !== said) line.textContent = said = words; },
      hush() { line.setAttribute("aria-live", "off"); },
      speak() {
        line.setAttribute("aria-live", "polite");
        said = null;
      },
    };
  }

  /* What runs while a button is pressed: one button at a time, and the line that says
     is hushed.  go(button, states, seconds) goes through states(), evenly in time; with
     reduced motion, to the last; if that button runs already, it stops. */
  function player(set, says) {
    let button = null, frame = 0;

    function stop() {
      if (!button) return;
      cancelAnimationFrame(frame);
      button.setAttribute("aria-pressed", "false");
      button = null;
      says.speak();
      set({});
    }

    function go(pressed, states, seconds) {
      const again = pressed === button;
      stop();
      const through = again ? [] : states();
      if (!through.length) return;
      if (calm()) { set(through.at(-1)); return; }
      button = pressed;
      button.setAttribute("aria-pressed", "true");
      says.hush();
      const began = performance.now();
      frame = requestAnimationFrame(function step(now) {
        const part = Math.min(1, Math.max(0, now - began) / (1000 * seconds));
        set(through[Math.round(part * (through.length - 1))]);
        if (part < 1) frame = requestAnimationFrame(step); else stop();
      });
    }

    return { go, stop };
  }

  // The value of a control in the page, and back.
  function taken(c, input) {
    if (c.kind === "toggle") return input.checked;
    if (c.kind === "choice") {
      return c.options.map((o) => (Array.isArray(o) ? o[0] : o)).find((v) => String(v) === input.value);
    }
    return valued(c, Number(input.value));
  }

  // The places of a slider in the page: first, last and step.  Those of a logarithmic
  // one are counted, so that a browser reaches the last.
  const places = (c) => (c.log ? [0, c.steps, 1] : [c.min, c.max, c.step]);

  const placed = (c, value) =>
    (c.log ? (c.steps * Math.log(value / c.min)) / Math.log(c.max / c.min) : value);

  function valued(c, place) {
    const value = c.log ? c.min * (c.max / c.min) ** (place / c.steps) : place;
    return c.whole ? Math.round(value) : value;
  }

  function put(c, input, value) {
    if (c.kind === "toggle") input.checked = value;
    if (c.kind === "choice") input.value = value;
    if (c.kind !== "slider") return;
    // A place between two whole values stays: a key would else never leave the value.
    if (valued(c, Number(input.value)) !== value) input.value = placed(c, value);
    const words = written(c, value);
    input.setAttribute("aria-valuetext", words);
    input.nextElementSibling.textContent = words;
  }

  // The states of a slider from a value to its end, or from its beginning, if it is at
  // its end.  at once: the end alone, or the beginning.
  function sweep(c, value, atOnce = false) {
    const [first, last, step] = places(c), ended = placed(c, value) > last - step / 2;
    const from = ended ? first : placed(c, value);
    const count = Math.max(2, Math.round((last - from) / step) + 1);
    const way = atOnce ? [ended ? first : last] : linspace(from, last, count);
    return way.map((place) => ({ [c.key]: valued(c, place) }));
  }

  return { define, slider, choice, toggle, play, act, unpacked, start, first, compute, says, states,
           json, html, places, taken, put, sweep, number, linspace, ticks, text, plane, linear, remembered,
           sum, weights, monotone, softplus, sigmoid, logSumExp, logNormal };
})();
