/* Lighthouse (mobile, its own throttling) on pages of the built site, medians.

   node lighthouse.mjs [--site FOLDER] [--out FILE] [--runs 3] [PAGE …]

   PAGE is part of a path; a page named whole ("book/index.html") is that one alone.
   One browser, one page after the other, a loopback server with gzip. Accessibility,
   best practices and search engines do not vary from run to run: they are judged in
   the first; the speed in each.
*/
import { cpus, loadavg } from "node:os";
import { resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import lighthouse from "lighthouse";
import defaults from "lighthouse/core/config/default-config.js";
import { launch, pages, write } from "./browser.mjs";
import { serve } from "./serve.mjs";

const SPEED = ["performance"];
const ALL = ["performance", "accessibility", "best-practices", "seo"];
const METRICS = {
  fcp: "first-contentful-paint",
  lcp: "largest-contentful-paint",
  tbt: "total-blocking-time",
  cls: "cumulative-layout-shift",
  si: "speed-index",
};

// Advice that counts in no score takes half of a run's time.
const UNSCORED = ALL.flatMap((category) =>
  defaults.categories[category].auditRefs.filter((ref) => !ref.weight).map((ref) => ref.id));

function config(categories) {
  const used = (id) => ALL.some((category) =>
    defaults.categories[category].auditRefs.some((ref) => ref.id === id && ref.weight));
  return {
    extends: "lighthouse:default",
    settings: {
      onlyCategories: categories,
      skipAudits: [...new Set(UNSCORED)].filter((id) => !used(id)),
      disableFullPageScreenshot: true,
    },
  };
}

async function run(address, port, categories) {
  const start = Date.now();
  const options = { port, output: "json", logLevel: "error" };
  const { lhr } = await lighthouse(address, options, config(categories));
  if (lhr.runtimeError) throw new Error(`${address}: ${lhr.runtimeError.message}`);
  const scores = categories.map((c) => [c, Math.round(100 * (lhr.categories[c].score ?? 0))]);
  const metrics = Object.entries(METRICS).map(([key, id]) => [key, lhr.audits[id].numericValue]);
  return {
    ...Object.fromEntries([...scores, ...metrics]),
    benchmark: lhr.environment.benchmarkIndex,
    failed: failed(lhr, categories),
    seconds: (Date.now() - start) / 1000,
  };
}

/** The scored audits that are not wholly passed, speed aside. */
function failed(lhr, categories) {
  const judged = categories.filter((category) => category !== "performance");
  const refs = judged.flatMap((category) => lhr.categories[category].auditRefs);
  const short = refs.filter((ref) => ref.weight && (lhr.audits[ref.id].score ?? 1) < 1);
  return short.map(({ id }) => {
    const item = lhr.audits[id].details?.items?.[0];
    const where = item?.node?.selector ?? item?.description ?? item?.source ?? "";
    return `${id}: ${lhr.audits[id].title} ${where}`.trim();
  });
}

function median(values) {
  const sorted = [...values].sort((a, b) => a - b), half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

async function measured(address, port, runs) {
  const all = [await run(address, port, ALL)];
  while (all.length < runs) all.push(await run(address, port, SPEED));
  const varies = [...SPEED, ...Object.keys(METRICS), "benchmark"];
  return {
    ...all[0],
    ...Object.fromEntries(varies.map((key) => [key, median(all.map((one) => one[key]))])),
    runs: all.map((one) => one.performance),
    seconds: all.reduce((sum, one) => sum + one.seconds, 0),
  };
}

/** What measured it; the load tells whether the machine was idle. */
export function machine(browser) {
  return { cpu: cpus()[0].model, cores: cpus().length, load: loadavg()[0], browser };
}

export async function measure({ site, chosen = [], runs = 3 }) {
  const root = resolve(site), every = pages(root);
  const names = chosen.length
    ? every.filter((n) => chosen.some((c) => (every.includes(c) ? n === c : n.includes(c))))
    : every;
  const [{ address, stop }, browser] = await Promise.all([serve(root), launch()]);
  await new Promise((done) => setTimeout(done, 4000));  // the browser's own pages load first
  const about = machine(await browser.version());
  process.stderr.write(`load of the machine at the start: ${about.load.toFixed(2)} on ${about.cores} cores\n`);
  const found = {};
  try {
    const port = Number(new URL(browser.wsEndpoint()).port);
    for (const name of names) {
      const one = await measured(`${address}/${name}`, port, runs);
      process.stderr.write(`${name}  ${ALL.map((c) => one[c]).join(" ")}  ${one.seconds.toFixed(1)} s\n`);
      found[name] = one;
    }
  } finally {
    await browser.close();
    await stop();
  }
  const benchmark = median(Object.values(found).map((one) => one.benchmark));
  return { ...about, benchmark, pages: found };
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      site: { type: "string", default: "_build/html" },
      out: { type: "string", default: "_build/lighthouse.json" },
      runs: { type: "string", default: "3" },
    },
  });
  const found = await measure({ site: values.site, chosen: positionals, runs: Number(values.runs) });
  write(values.out, JSON.stringify(found, null, 1));
  for (const [name, page] of Object.entries(found.pages)) {
    for (const fault of page.failed) console.log(`${name}: ${fault}`);
  }
}
