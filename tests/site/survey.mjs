/* Opens every page of the built site in one browser and writes down what it sees.

   node survey.mjs [--site FOLDER] [--out FILE] [--thorough] [PAGE …]

   PAGE is part of a path: "ot/sinkhorn". Each page is opened over a loopback server
   with gzip, in both themes, at 1280 and at 360 pixels, and from the disk. Contrast,
   two thirds of axe's time, is judged once for each look that text has on the page;
   --thorough: for each element. The network is cut. JSON to FILE, one line a page to
   stderr, what is wrong to stdout.
*/
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { resolve } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { parseArgs } from "node:util";
import { dress, each, launch, pages, watch, write } from "./browser.mjs";
import { serve } from "./serve.mjs";

const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"];
// The dark page is the light page in other colours: every rule that looks at colours.
const COLOURS = { type: "rule", values: ["color-contrast", "link-in-text-block"] };
const ALL = { type: "tag", values: TAGS };
// A server shows it in place of what is missing, at any depth: its links begin at the
// root of the host, which a disk does not have.
const SERVED = new Set(["404.html"]);
const WIDE = { width: 1280, height: 900 };
const PHONE = { width: 360, height: 740 };

/* What runs in the page. Each function stands alone: it is sent there as text. */

function listen() {
  window.__shift = 0;
  window.__moved = [];
  window.__policy = [];
  const told = ({ node, previousRect: a, currentRect: b }) => {
    const e = node?.nodeType === Node.TEXT_NODE ? node.parentElement : node;
    return `${e?.tagName.toLowerCase()}.${e?.className} y ${a.y}→${b.y}, height ${a.height}→${b.height}`;
  };
  new PerformanceObserver((list) => {
    for (const entry of list.getEntries().filter((one) => !one.hadRecentInput)) {
      window.__shift += entry.value;
      if (entry.value > 0.005) window.__moved.push(...entry.sources.slice(0, 3).map(told));
    }
  }).observe({ type: "layout-shift", buffered: true });
  document.addEventListener("securitypolicyviolation", (event) => {
    window.__policy.push(`${event.violatedDirective}: ${event.blockedURI} ${event.sourceFile ?? ""}:${event.lineNumber}`);
  });
}

// Pictures below the window load when they are near it: ask for all of them now.
async function load() {
  const images = [...document.images];
  for (const image of images) image.loading = "eager";
  const waits = images.map((image) => image.decode().catch(() => null));
  await Promise.race([Promise.all(waits), new Promise((done) => setTimeout(done, 8000))]);
}

// Folded proofs, solutions and cells are read too; then the page is read to its end:
// some things are done when what they concern comes near.
async function unfold() {
  for (const box of document.querySelectorAll("details")) box.open = true;
  // Sections that are not laid out yet lie over each other.
  const sheet = new CSSStyleSheet();
  sheet.replaceSync("* { content-visibility: visible !important; }");
  document.adoptedStyleSheets.push(sheet);
  for (const box of document.querySelectorAll(".toggle-hidden")) box.classList.remove("toggle-hidden");
  for (let y = 0; y < document.documentElement.scrollHeight; y += innerHeight) {
    scrollTo({ top: y, behavior: "instant" });
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  }
  scrollTo({ top: 0, behavior: "instant" });
  await new Promise((done) => setTimeout(done, 100));
}

function look() {
  const name = (e) => e.currentSrc || e.src;
  const images = [...document.images];
  const paint = performance.getEntriesByType("paint").find((e) => e.name === "first-contentful-paint");
  return {
    theme: document.documentElement.dataset.theme,
    nodes: document.querySelectorAll("*").length,
    shift: Number(window.__shift.toFixed(4)),
    moved: window.__moved.slice(0, 6),
    paint: paint && Math.round(paint.startTime),
    policy: window.__policy,
    noAlt: images.filter((e) => !e.alt.trim() && e.getAttribute("role") !== "presentation").map(name),
    noSize: images.filter((e) => !(e.getAttribute("width") && e.getAttribute("height"))).map(name),
    broken: images.filter((e) => !(e.complete && e.naturalWidth)).map(name),
  };
}

// What sticks out to the right and stands in no box that scrolls or clips.
function sideways() {
  const root = document.documentElement, width = root.clientWidth, needs = root.scrollWidth;
  if (needs <= width) return { width, needs, culprits: [] };
  const boxed = (e) => {
    for (let p = e.parentElement; p && p !== root && p !== document.body; p = p.parentElement) {
      if (getComputedStyle(p).overflowX !== "visible") return true;
    }
    return false;
  };
  const out = [...document.body.querySelectorAll("*")].filter((e) => {
    const box = e.getBoundingClientRect();
    return box.width && box.right > width + 1 && e.checkVisibility() && !boxed(e);
  });
  const inner = out.filter((e) => !out.some((other) => other !== e && e.contains(other)));
  const told = (e) => `${e.tagName.toLowerCase()}${e.id ? "#" + e.id : ""}${[...e.classList].map((c) => "." + c).join("")}`
    + ` to ${Math.round(e.getBoundingClientRect().right)}: ${e.textContent.trim().slice(0, 60)}`;
  return { width, needs, culprits: inner.slice(0, 5).map(told) };
}

// Has axe judge the colours of one element with text of its own for each look: its letters, those of the text
// that it stands in, and what the boxes around it lay behind them or over them.
function looks() {
  const outer = new Map(), seen = new Set();
  for (const e of document.documentElement.querySelectorAll("body, body *")) {
    const s = getComputedStyle(e), around = outer.get(e.parentElement) ?? { laid: "", letters: "" };
    const laid = [s.backgroundColor, s.backgroundImage, s.opacity, s.filter, s.position].join();
    const letters = [s.color, s.fontSize, s.fontWeight, s.textDecorationLine, s.textShadow].join();
    const mine = { letters, laid: around.laid.endsWith(`|${laid}`) ? around.laid : `${around.laid}|${laid}` };
    outer.set(e, mine);
    if (![...e.childNodes].some((n) => n.nodeType === Node.TEXT_NODE && n.data.trim())) continue;
    const look = [e.localName === "a", letters, around.letters, mine.laid].join("|");
    if (!seen.has(look) && e.checkVisibility()) {
      seen.add(look);
      e.dataset.look = "";
    }
  }
  window.axe.configure({ rules: [
    { id: "color-contrast", selector: "[data-look]" },
    { id: "link-in-text-block", selector: "a[href][data-look]" },
  ] });
}

async function axe(asked) {
  const found = await window.axe.run(document, { runOnly: asked, resultTypes: ["violations"] });
  return found.violations.map(({ id, impact, help, tags: of, nodes }) => ({
    id, impact, help, best: of.includes("best-practice"), count: nodes.length,
    nodes: nodes.slice(0, 3).map((n) => ({
      target: n.target.join(" "), html: n.html.slice(0, 200), why: (n.failureSummary ?? "").slice(0, 300),
    })),
  }));
}

/* What runs here. */

/** The bytes that came over the wire, by kind. */
async function weigh(page) {
  const kinds = new Map(), bytes = {};
  const wire = await page.createCDPSession();
  await wire.send("Network.enable");
  wire.on("Network.responseReceived", (e) => {
    if (e.response.url.startsWith("http")) kinds.set(e.requestId, e.type.toLowerCase());
  });
  wire.on("Network.loadingFinished", (e) => {
    const kind = kinds.get(e.requestId);
    if (!kind) return;  // what a sheet holds is in its own weight
    bytes[kind] = (bytes[kind] ?? 0) + e.encodedDataLength;
    bytes.requests = (bytes.requests ?? 0) + 1;
  });
  return bytes;
}

async function opened(browser, home, theme, viewport) {
  // A context of its own: nothing is in its cache, nothing is remembered.
  const context = await browser.createBrowserContext();
  const page = await context.newPage();
  const seen = watch(page, home);
  await page.setViewport(viewport);
  await dress(page, theme);
  await page.evaluateOnNewDocument(listen);
  return { context, page, seen };
}

async function settled(page, address) {
  await page.goto(address, { waitUntil: "load", timeout: 60_000 });
  await page.evaluate(load);
  await page.waitForNetworkIdle({ idleTime: 150, timeout: 15_000 }).catch(() => null);
}

/** What axe finds: every rule, and in the dark those that look at colours. */
async function judged(page, theme, thorough) {
  await page.evaluate(AXE);
  if (!thorough) await page.evaluate(looks);
  return page.evaluate(axe, theme === "dark" ? COLOURS : ALL);
}

/** One load over http: what was seen, axe, and at the phone's width the overflow. */
async function overHttp(browser, home, name, theme, thorough) {
  const { context, page, seen } = await opened(browser, `${home}/`, theme, WIDE);
  try {
    const bytes = await weigh(page);
    await settled(page, `${home}/${name}`);
    const first = await page.evaluate(look);
    await page.evaluate(unfold);
    const violations = await judged(page, theme, thorough);
    await page.setViewport(PHONE);
    const phone = await page.evaluate(sideways);
    seen.policy.push(...first.policy);
    return { ...first, ...seen, bytes, violations, phone };
  } finally {
    await context.close();
  }
}

/** One load from the disk: does it ask for anything, complain, or miss a picture. */
async function fromDisk(browser, root, name) {
  const home = pathToFileURL(root).href;
  const { context, page, seen } = await opened(browser, `${home}/`, "light", PHONE);
  try {
    await settled(page, `${home}/${name}`);
    const { policy, broken, shift, moved } = await page.evaluate(look);
    seen.policy.push(...policy);
    return { ...seen, broken, shift, moved };
  } finally {
    await context.close();
  }
}

/** What is wrong with a load, in words. */
export function faults(where, load) {
  const told = [];
  const tell = (what, list) => list.forEach((item) => told.push(`${where} ${what}: ${item}`));
  tell("asks outside", load.outside);
  tell("console", load.console);
  tell("error", load.errors);
  tell("not loaded", load.failed);
  tell("policy", load.policy);
  tell("broken picture", load.broken);
  tell("no alt", load.noAlt ?? []);
  tell("no size", load.noSize ?? []);
  if (load.shift > 0.02) told.push(`${where} layout shift: ${load.shift}: ${load.moved.join(" | ")}`);
  for (const v of load.violations ?? []) {
    const first = v.nodes[0];
    told.push(`${where} axe ${v.best ? "(practice) " : ""}${v.id} ×${v.count}: ${first.target} ${first.why.replaceAll("\n", " ")}`);
  }
  if (load.phone && load.phone.needs > load.phone.width) {
    told.push(`${where} 360 px needs ${load.phone.needs}: ${load.phone.culprits.join(" | ")}`);
  }
  return told;
}

async function surveyed(browser, home, root, name, thorough) {
  const start = Date.now();
  const loads = {
    light: await overHttp(browser, home, name, "light", thorough),
    dark: await overHttp(browser, home, name, "dark", thorough),
    ...(SERVED.has(name) ? {} : { disk: await fromDisk(browser, root, name) }),
  };
  const wrong = Object.entries(loads).flatMap(([where, load]) => faults(where, load));
  const seconds = ((Date.now() - start) / 1000).toFixed(1);
  process.stderr.write(`${name}  ${seconds} s, ${wrong.length} faults\n`);
  return { name, ...loads, faults: wrong };
}

export async function survey({ site, chosen = [], thorough = false }) {
  const root = resolve(site);
  const all = pages(root).filter((n) => !chosen.length || chosen.some((c) => n.includes(c)));
  const [{ address, stop }, browser] = await Promise.all([serve(root), launch()]);
  try {
    const version = await browser.version();
    const found = await each(all, 2, (name) => surveyed(browser, address, root, name, thorough));
    return { browser: version, pages: Object.fromEntries(found.map((p) => [p.name, p])) };
  } finally {
    await browser.close();
    await stop();
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      site: { type: "string", default: "_build/html" },
      out: { type: "string", default: "_build/survey.json" },
      thorough: { type: "boolean", default: false },
    },
  });
  const found = await survey({ site: values.site, chosen: positionals, thorough: values.thorough });
  write(values.out, JSON.stringify(found, null, 1));
  for (const page of Object.values(found.pages)) {
    for (const fault of page.faults) console.log(`${page.name}: ${fault}`);
  }
}
