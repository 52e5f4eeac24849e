/* What a reader does, done by a browser: search, fold, drag, print, read offline.

   node behaviour.mjs [--site FOLDER] [--out FILE] [NAME …]

   Each behaviour opens its own pages in a fresh context, over the loopback or from
   the disk, with the network cut. JSON: for each name, null or why it failed.
*/
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { parseArgs } from "node:util";
import { launch, pages, watch, write } from "./browser.mjs";
import { serve } from "./serve.mjs";

/* ---- Finding a page that has what a behaviour needs ------------------------------ */

function having(root, pattern, what) {
  const name = pages(root).find((n) => pattern.test(readFileSync(join(root, n), "utf8")));
  assert.ok(name, `no page has ${what}`);
  return name;
}

const FOLDED = /<details class="[^"]*\bpf-(?:proof|solution)\b[^"]*"(?! open)/;
const LIVE = /<figure class="pf-live"/;
const PLAYED = /data-kind="play"/;
const SLIDER = 'figure.pf-live input[type="range"]';

const quiet = (seen) =>
  assert.deepEqual([...seen.outside, ...seen.console, ...seen.errors, ...seen.failed], []);

const theme = (page) => page.evaluate(() => document.documentElement.dataset.theme);
const picture = (page) => page.$$eval("figure.pf-live:first-of-type .pf-inside",
  (insides) => insides.map((inside) => inside.innerHTML).join(""));
const says = (page) => page.$eval("figure.pf-live .pf-says", (line) => line.textContent);
const frames = (page, count = 3) => page.evaluate(async (n) => {
  for (let k = 0; k < n; k++) await new Promise(requestAnimationFrame);
}, count);

/* ---- The behaviours -------------------------------------------------------------- */

async function search({ open, home }) {
  const { page, seen } = await open(`${home}/book/index.html`);
  await page.click(".search-button__button");
  await page.waitForSelector("#pst-search-dialog[open] input[name=q]");
  await page.type("#pst-search-dialog input[name=q]", "Wasserstein");
  await Promise.all([page.waitForNavigation(), page.keyboard.press("Enter")]);
  await page.waitForSelector("#search-results li a", { timeout: 20_000 });
  await Promise.all([page.waitForNavigation(), page.click("#search-results li a")]);
  assert.match(page.url(), /\/book\/.*\.html/);
  assert.match(await page.$eval("article", (e) => e.innerText), /Wasserstein/i);
  quiet(seen);
}

async function remembered({ open, home }) {
  const { page, seen } = await open(`${home}/book/index.html`);
  const visible = await page.evaluateHandle(() =>
    [...document.querySelectorAll(".theme-switch-button")].find((b) => b.checkVisibility()));
  for (let k = 0; k < 3 && (await theme(page)) !== "dark"; k++) {
    await visible.asElement().press("Enter");
  }
  assert.equal(await theme(page), "dark");
  await page.reload();
  assert.equal(await theme(page), "dark");
  await page.goto(`${home}/book/notation.html`);
  assert.equal(await theme(page), "dark");
  const ground = await page.$eval("body", (e) => getComputedStyle(e).backgroundColor);
  assert.ok(ground.match(/\d+/g).slice(0, 3).every((part) => part < 90), ground);
  quiet(seen);
}

async function foldedByKeyboard({ open, home, root }) {
  const { page, seen } = await open(`${home}/${having(root, FOLDED, "a folded box")}`);
  const box = "details:is(.pf-proof, .pf-solution):not([open])";
  const inside = await page.$(box);
  await page.focus(`${box} > summary`);
  await page.keyboard.press("Enter");
  assert.ok(await inside.evaluate((e) => e.open));
  await page.keyboard.press("Enter");
  assert.ok(await inside.evaluate((e) => !e.open));
  quiet(seen);
}

/** A link to something inside a folded box opens the box and goes there. */
async function foldedByLink({ open, home, root }) {
  const inner = /<details class="[^"]*\bpf-solution\b[^"]*"(?! open)(?:(?!<\/details>)[^])*? id="/;
  const name = having(root, inner, "an anchor in a folded box");
  const { page, seen } = await open(`${home}/${name}`);
  const anchor = await page.evaluate(() => document.querySelector(
    "details.pf-solution:not([open]) > :not(summary)[id], details.pf-solution:not([open]) :not(summary) [id]").id);
  await page.goto(`${home}/${name}?again#${encodeURIComponent(anchor)}`);
  const target = await page.evaluateHandle((id) => document.getElementById(id), anchor);
  await page.waitForFunction((e) => e.closest("details").open && e.checkVisibility(), {}, target);
  await frames(page, 30);
  const [top, rest] = await target.evaluate((e) => [e.getBoundingClientRect().top,
    document.documentElement.scrollHeight - innerHeight - scrollY]);
  assert.ok(top >= 0 && (top < 200 || (rest < 2 && top < 900)), `the target is at ${top}`);
  quiet(seen);
}

/** Hovering over a reference to an equation shows it; Escape takes it away. */
async function preview({ open, home, root }) {
  const name = having(root, /<a class="reference internal" href="#equation-/, "a reference to an equation");
  const { page, seen } = await open(`${home}/${name}`);
  const link = await page.evaluateHandle(() =>
    [...document.querySelectorAll('article a.reference.internal[href^="#equation-"]')]
      .find((a) => a.checkVisibility()));
  await link.asElement().scrollIntoView();
  await link.asElement().hover();
  await page.waitForSelector("#pf-preview:not([hidden])", { visible: true });
  const [told, meant] = await link.evaluate((a) => {
    const tex = (box) => box.querySelector("annotation").textContent;
    return [tex(document.getElementById("pf-preview")), tex(document.getElementById(a.hash.slice(1)))];
  });
  assert.equal(told, meant);
  await page.keyboard.press("Escape");
  await page.waitForSelector("#pf-preview", { hidden: true });
  quiet(seen);
}

/** A preview of another page's statement or source, by keyboard focus. */
async function previewAcross({ open, home, root }) {
  const { page, seen } = await open(`${home}/${having(root, FOLDED, "a proof")}`);
  const link = await page.evaluateHandle(() =>
    [...document.querySelectorAll('article a.reference.internal[href*="references.html#"]')]
      .find((a) => a.checkVisibility()));
  assert.ok(link.asElement(), "no visible citation");
  await page.keyboard.press("Tab");  // from now on focus is shown
  await link.asElement().focus();
  await page.waitForSelector("#pf-preview:not([hidden])", { visible: true });
  const words = await page.$eval("#pf-preview", (e) => e.textContent.trim());
  const [address, anchor] = (await link.evaluate((a) => a.href)).split("#");
  await page.goto(address);
  const source = await page.evaluate((id) => document.getElementById(decodeURIComponent(id)).textContent, anchor);
  const plainly = (text) => text.replace(/\s+/g, " ");
  assert.ok(words.length > 20 && plainly(source).includes(plainly(words).slice(-40)), words);
  quiet(seen);
}

/** A slider moved by keyboard redraws the picture and the line that says; Reset undoes. */
async function slider({ open, home, root }) {
  const { page, seen } = await open(`${home}/${having(root, LIVE, "a live figure")}`);
  await page.waitForSelector("figure.pf-live fieldset:not([disabled])");
  await frames(page);
  const [before, said] = [await picture(page), await says(page)];
  await page.focus(SLIDER);
  const value = () => page.$eval(SLIDER, (e) => Number(e.value));
  const [from, middle] = [await value(), await page.$eval(SLIDER, (e) => (Number(e.min) + Number(e.max)) / 2)];
  for (let k = 0; k < 10; k++) await page.keyboard.press(from > middle ? "ArrowLeft" : "ArrowRight");
  await frames(page);
  assert.notEqual(await value(), from);
  assert.notEqual(await picture(page), before);
  assert.notEqual(await says(page), said);
  const told = await page.$eval(SLIDER, (e) => [e.getAttribute("aria-valuetext"), e.nextElementSibling.textContent]);
  assert.equal(told[0], told[1]);
  await page.click('figure.pf-live [data-kind="reset"]');
  await frames(page);
  assert.equal(await says(page), said);
  quiet(seen);
}

/** A page with a play button, its motion welcome or not; what its slider reads. */
async function played({ open, home, root }, motion) {
  const { page, seen } = await open(`${home}/${having(root, PLAYED, "a play button")}`, async (fresh) => {
    await fresh.emulateMediaFeatures([{ name: "prefers-reduced-motion", value: motion }]);
  });
  const button = 'figure.pf-live fieldset:not([disabled]) [data-kind="play"]';
  await page.waitForSelector(button);
  const key = await page.$eval(button, (e) => e.dataset.key), slider = `${SLIDER}[data-key="${key}"]`;
  await page.focus(slider);
  await page.keyboard.press("Home");
  async function play() {
    await page.focus(button);
    await page.keyboard.press("Enter");
    await frames(page);
    return page.$eval(slider,
      (e) => ({ value: Number(e.value), min: Number(e.min), max: Number(e.max) }));
  }
  return { play, seen };
}

/** With reduced motion a playing button shows the end at once; at the end, the beginning. */
async function calm(site) {
  const { play, seen } = await played(site, "reduce");
  const end = await play();
  assert.equal(end.value, end.max);
  const beginning = await play();
  assert.equal(beginning.value, beginning.min);
  quiet(seen);
}

/** Where motion is welcome the figure moves: the end is not reached in three frames. */
async function moves(site) {
  const { play, seen } = await played(site, "no-preference");
  const { value, max } = await play();
  assert.ok(value < max, `${value} is the end already`);
  quiet(seen);
}

/** The first Tab shows the buttons that copy, the far ones too; an odd address is borne. */
async function tabbed({ open, home, root }) {
  const { page, seen } = await open(`${home}/${having(root, FOLDED, "a proof")}#100%`);
  const hidden = () => page.$$eval(".copybtn[hidden]", (buttons) => buttons.length);
  assert.ok(await hidden() > 0);
  await page.keyboard.press("Tab");
  assert.equal(await hidden(), 0);
  quiet(seen);
}

/** On a phone the keyboard reaches a formula wider than the window, and scrolls it. */
async function wide({ open, home, root }) {
  const { page, seen } = await open(`${home}/${having(root, LIVE, "a live figure")}`, async (fresh) => {
    await fresh.setViewport({ width: 360, height: 740 });
  });
  const box = await page.evaluateHandle(() => [...document.querySelectorAll("article .pf-formula")]
    .find((e) => e.checkVisibility() && e.scrollWidth > e.clientWidth + 100));
  assert.ok(box.asElement(), "no formula is wider than a phone");
  await box.evaluate((e) => e.scrollIntoView({ block: "center", behavior: "instant" }));
  await page.waitForFunction((e) => e.tabIndex === 0, {}, box);
  assert.equal(await box.evaluate((e) => `${e.role}: ${e.ariaLabel}`), "group: Formula");
  await box.asElement().focus();
  await page.keyboard.press("ArrowRight");
  await page.waitForFunction((e) => e.scrollLeft > 0, {}, box);
  quiet(seen);
}

/** Without scripts: text, formulas, the live figures' pictures; no dead controls. */
async function plain({ open, home, root }) {
  const { page, seen } = await open(`${home}/${having(root, LIVE, "a live figure")}`, async (fresh) => {
    await fresh.setJavaScriptEnabled(false);
  });
  const shown = await page.evaluate(() => {
    const box = (selector) => document.querySelector(selector)?.getBoundingClientRect() ?? { width: 0, height: 0 };
    const visible = (e) => e.checkVisibility({ visibilityProperty: true });
    return {
      words: document.querySelector("article").innerText.length,
      formulas: [...document.querySelectorAll("article math")].filter(visible).length,
      pictures: [...document.querySelectorAll(".pf-live svg")].filter(visible).length,
      drawn: document.querySelectorAll(".pf-live .pf-inside path").length,
      width: box(".pf-live svg").width,
      controls: [...document.querySelectorAll(".pf-controls")].filter(visible).length,
      dead: [...document.querySelectorAll("button:not(.dropdown-toggle)")].filter(visible).length,
    };
  });
  assert.ok(shown.words > 2000 && shown.formulas > 10, JSON.stringify(shown));
  assert.ok(shown.pictures > 0 && shown.drawn > 0 && shown.width > 100, JSON.stringify(shown));
  assert.equal(shown.controls, 0, "controls that do nothing are shown");
  assert.equal(shown.dead, 0, "buttons that do nothing are shown");
  await page.focus("button.dropdown-toggle");
  assert.ok(await page.$eval(".dropdown-menu a[href]", (a) => a.checkVisibility()), "no way to the downloads");
  const box = await page.$("details:is(.pf-proof, .pf-solution):not([open]) > summary");
  if (box) {
    await box.press("Enter");
    assert.ok(await box.evaluate((e) => e.parentElement.open));
  }
  quiet(seen);
}

/** On paper every box is open, and the colours are those of the light page. */
async function print({ open, home, root }) {
  const { page, seen } = await open(`${home}/${having(root, LIVE, "a live figure")}`, async (fresh) => {
    await fresh.emulateMediaFeatures([{ name: "prefers-color-scheme", value: "dark" }]);
  });
  assert.equal(await theme(page), "dark");
  await page.evaluate(() => {
    addEventListener("beforeprint", () => {
      const of = (selector, key) => getComputedStyle(document.querySelector(selector))[key];
      window.__paper = {
        shut: document.querySelectorAll("article details:not([open])").length,
        ground: of("body", "backgroundColor"),
        ink: ["article p", ".pf-live svg text", ".highlight pre", "figcaption"].map((s) =>
          of(s, s.includes("svg") ? "fill" : "color")),
      };
    });
  });
  await page.pdf({ format: "a4", timeout: 120_000 });
  const paper = await page.evaluate(() => window.__paper);
  assert.equal(paper.shut, 0, "boxes stay folded on paper");
  const bright = (colour) => colour.match(/[\d.]+/g).slice(0, 3).reduce((a, b) => a + Number(b), 0) / 3;
  for (const ink of paper.ink) assert.ok(bright(ink) < 120, `ink ${paper.ink.join("; ")}`);
  assert.ok(bright(paper.ground) > 200 || /, 0\)$/.test(paper.ground), `paper ${paper.ground}`);
  assert.equal(await theme(page), "dark", "the colours do not come back");
  await page.emulateMediaType("print");
  assert.equal(await page.$eval("#pst-primary-sidebar", (e) => e.checkVisibility()), false, "the sidebar is printed");
  quiet(seen);
}

const BEHAVIOURS = {
  "search finds a word": [search, "http"],
  "search finds a word, from the disk": [search, "disk"],
  "the chosen colours are remembered": [remembered, "http"],
  "the chosen colours are remembered, from the disk": [remembered, "disk"],
  "a folded box opens by keyboard": [foldedByKeyboard, "http"],
  "a link opens the box that it leads into": [foldedByLink, "http"],
  "a link opens the box that it leads into, from the disk": [foldedByLink, "disk"],
  "hovering shows an equation and Escape hides it": [preview, "http"],
  "focus shows a source of another page": [previewAcross, "http"],
  "focus shows a source of another page, from the disk": [previewAcross, "disk"],
  "a slider moved by keyboard redraws": [slider, "http"],
  "a slider moved by keyboard redraws, from the disk": [slider, "disk"],
  "a playing figure moves": [moves, "http"],
  "reduced motion shows the end at once": [calm, "http"],
  "the first Tab shows every copy button": [tabbed, "http"],
  "a wide formula scrolls by keyboard": [wide, "http"],
  "without scripts the page reads": [plain, "http"],
  "on paper every box is open": [print, "http"],
};

/* ---- Running them ---------------------------------------------------------------- */

async function opener(browser, home) {
  const context = await browser.createBrowserContext();
  const open = async (address, prepare = () => null) => {
    const page = await context.newPage();
    const seen = watch(page, `${home}/`);
    await page.setViewport({ width: 1280, height: 900 });
    await prepare(page);
    await page.goto(address, { waitUntil: "load", timeout: 60_000 });
    return { page, seen };
  };
  return { open, close: () => context.close() };
}

async function tried([behave, from], browser, root, homes) {
  const home = homes[from];
  const { open, close } = await opener(browser, home);
  try {
    await behave({ open, home, root });
    return null;
  } catch (error) {
    return String(error.stack ?? error).slice(0, 2000);
  } finally {
    await close();
  }
}

export async function behave({ site, chosen = [] }) {
  const root = resolve(site);
  const [{ address, stop }, browser] = await Promise.all([serve(root), launch()]);
  const homes = { http: address, disk: pathToFileURL(root).href };
  const found = {};
  try {
    for (const [name, behaviour] of Object.entries(BEHAVIOURS)) {
      if (chosen.length && !chosen.some((part) => name.includes(part))) continue;
      const start = Date.now();
      found[name] = await tried(behaviour, browser, root, homes);
      const seconds = ((Date.now() - start) / 1000).toFixed(1);
      process.stderr.write(`${found[name] ? "FAILS" : "works"}  ${name}  ${seconds} s\n`);
    }
  } finally {
    await browser.close();
    await stop();
  }
  return found;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      site: { type: "string", default: "_build/html" },
      out: { type: "string", default: "_build/behaviour.json" },
    },
  });
  const found = await behave({ site: values.site, chosen: positionals });
  write(values.out, JSON.stringify(found, null, 1));
  for (const [name, why] of Object.entries(found)) if (why) console.log(`${name}: ${why}\n`);
}
