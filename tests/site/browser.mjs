/* The browser of these tests: where it is, how it starts, what it watches. */
import { accessSync, constants, readdirSync, readFileSync, writeFileSync, renameSync } from "node:fs";
import { delimiter, join, relative, sep } from "node:path";
import puppeteer from "puppeteer-core";

const NAMES = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];

/** The path of a Chromium: CHROME_PATH, or the first of its names on the PATH. */
export function chromium() {
  if (process.env.CHROME_PATH) return process.env.CHROME_PATH;
  const folders = (process.env.PATH ?? "").split(delimiter);
  const places = NAMES.flatMap((name) => folders.map((folder) => join(folder, name)));
  const path = places.find(runs);
  if (!path) throw new Error("no Chromium: apt-get install chromium, or set CHROME_PATH");
  return path;
}

function runs(path) {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

// No name is resolved: what a page asks of another host fails, and is seen.
export const FLAGS = [
  "--disable-gpu",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--no-first-run",
  "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
  // Chromium refuses its sandbox to root, as whom containers run.
  ...(process.getuid?.() === 0 ? ["--no-sandbox"] : []),
];

export function launch(more = {}) {
  return puppeteer.launch({ executablePath: chromium(), args: FLAGS, protocolTimeout: 180_000, ...more });
}

/** The pages of a site, by their path in it; those that only lead on are left out. */
export function pages(root, folder = root) {
  const entries = readdirSync(folder, { withFileTypes: true });
  const below = entries.filter((e) => e.isDirectory() && !e.name.startsWith("_"));
  const files = entries.filter((e) => e.isFile() && e.name.endsWith(".html"));
  const here = files.map((e) => join(folder, e.name)).filter((path) => !leadsOn(path));
  return [
    ...here.map((path) => relative(root, path).split(sep).join("/")),
    ...below.flatMap((e) => pages(root, join(folder, e.name))),
  ].sort();
}

function leadsOn(path) {
  return /<meta[^>]+http-equiv=["']?refresh/i.test(readFileSync(path, "utf8").slice(0, 4000));
}

/** Watch a page: requests that leave the site, complaints, errors, failed loads. */
export function watch(page, home) {
  const seen = { outside: [], console: [], errors: [], failed: [], policy: [] };
  page.on("request", (request) => {
    const address = request.url();
    if (!address.startsWith(home) && !/^(data|blob|about):/.test(address)) seen.outside.push(address);
  });
  page.on("requestfailed", (request) => {
    // A page that is left stops its loads: no fault of the page.
    const why = request.failure()?.errorText;
    if (why !== "net::ERR_ABORTED") seen.failed.push(`${request.url()}: ${why}`);
  });
  page.on("console", (message) => {
    if (!["error", "warn", "warning", "assert"].includes(message.type())) return;
    const at = message.location().url ?? "";
    seen.console.push(`${message.type()}: ${message.text()} ${at.replace(home, "")}`.trim());
  });
  page.on("pageerror", (error) => seen.errors.push(String(error?.stack ?? error)));
  return seen;
}

/** Set the theme as a reader who chose it has it: remembered, and in the system. */
export async function dress(page, theme) {
  await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: theme }]);
  await page.evaluateOnNewDocument((chosen) => {
    localStorage.setItem("mode", chosen);
    localStorage.setItem("theme", chosen);
  }, theme);
}

/** Do something for each item, so many at once; the results in the items' order. */
export async function each(items, many, work) {
  const results = new Array(items.length);
  let next = 0;
  const worker = async () => {
    while (next < items.length) {
      const k = next++;
      results[k] = await work(items[k], k);
    }
  };
  await Promise.all(Array.from({ length: Math.min(many, items.length) }, worker));
  return results;
}

/** Write a file at once: whoever reads it never sees half of it. */
export function write(path, text) {
  writeFileSync(`${path}.part`, text);
  renameSync(`${path}.part`, path);
}
