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
  const top = await target.evaluate((e) => e.getBoundingClientRect().top);
  assert.ok(top > -200 && top < 900, `the target is at ${top}`);
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
  assert.ok(await page.$eval("#pf-preview", (e) => e.querySelector("math") !== null));
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
  assert.ok((await page.$eval("#pf-preview", (e) => e.textContent.trim())).length > 20);
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

/** With reduced motion a playing button shows the end at once, without frames between. */
async function calm({ open, home, root }) {
  const { page, seen } = await open(`${home}/${having(root, PLAYED, "a play button")}`, async (fresh) => {
    await fresh.emulateMediaFeatures([{ name: "prefers-reduced-motion", value: "reduce" }]);
  });
  const button = 'figure.pf-live fieldset:not([disabled]) [data-kind="play"]';
  await page.waitForSelector(button);
  const key = await page.$eval(button, (e) => e.dataset.key);
  await page.focus(button);
  await page.keyboard.press("Enter");
  await frames(page);
  const [value, max] = await page.$eval(`${SLIDER}[data-key="${key}"]`, (e) => [e.value, e.max]);
  assert.equal(Number(value), Number(max));
  quiet(seen);
}

/** Where motion is welcome the figure moves: the end is not reached in three frames. */
async function moves({ open, home, root }) {
  const { page, seen } = await open(`${home}/${having(root, PLAYED, "a play button")}`);
  const button = 'figure.pf-live fieldset:not([disabled]) [data-kind="play"]';
  await page.waitForSelector(button);
  const key = await page.$eval(button, (e) => e.dataset.key);
  await page.focus(button);
  await page.keyboard.press("Enter");
  await frames(page);
  const [value, max] = await page.$eval(`${SLIDER}[data-key="${key}"]`, (e) => [e.value, e.max]);
  assert.ok(Number(value) < Number(max), `${value} is the end already`);
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
      scripted: [...document.querySelectorAll(".pst-js-only")].filter(visible).length,
    };
  });
  assert.ok(shown.words > 2000 && shown.formulas > 10, JSON.stringify(shown));
  assert.ok(shown.pictures > 0 && shown.drawn > 0 && shown.width > 100, JSON.stringify(shown));
  assert.equal(shown.controls, 0, "controls that do nothing are shown");
  assert.equal(shown.scripted, 0, "buttons that do nothing are shown");
  const box = await page.$("details:is(.pf-proof, .pf-solution):not([open]) > summary");
  if (box) {
    await box.press("Enter");
    assert.ok(await box.evaluate((e) => e.parentElement.open));
  }
  quiet(seen);
}

/** On paper every box is open, and the colours are those of the light page. */
async function print({ open, home, root }) {
  const { page, seen } = await open(`${home}/${having(root, FOLDED, "a folded box")}`, async (fresh) => {
    await fresh.emulateMediaFeatures([{ name: "prefers-color-scheme", value: "dark" }]);
  });
  await page.evaluate(() => {
    addEventListener("beforeprint", () => {
      window.__shut = document.querySelectorAll("article details:not([open])").length;
    });
  });
  await page.pdf({ format: "a4", timeout: 120_000 });
  assert.equal(await page.evaluate(() => window.__shut), 0, "boxes stay folded on paper");
  await page.emulateMediaType("print");
  const paper = await page.evaluate(() => {
    const of = (selector, key) => getComputedStyle(document.querySelector(selector))[key];
    return { ground: of("body", "backgroundColor"), ink: of("article p", "color"),
             sidebar: document.querySelector("#pst-primary-sidebar").checkVisibility() };
  });
  const bright = (colour) => colour.match(/[\d.]+/g).slice(0, 3).reduce((a, b) => a + Number(b), 0) / 3;
  assert.ok(bright(paper.ink) < 110, `ink ${paper.ink}`);
  assert.ok(bright(paper.ground) > 200 || /, 0\)$/.test(paper.ground), `paper ${paper.ground}`);
  assert.equal(paper.sidebar, false, "the sidebar is printed");
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
