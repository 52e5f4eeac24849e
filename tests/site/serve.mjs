/* A plain static server on the loopback: gzip, types, dates. Nothing else.

   node serve.mjs [FOLDER] [PORT]     serves a folder until it is interrupted
*/
import { createServer } from "node:http";
import { readFile, stat } from "node:fs/promises";
import { extname, join, normalize, resolve, sep } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { gzip } from "node:zlib";

const zipped = promisify(gzip);

const TYPES = {
  ".html": "text/html; charset=utf-8",
  ".css": "text/css; charset=utf-8",
  ".js": "text/javascript; charset=utf-8",
  ".json": "application/json; charset=utf-8",
  ".ipynb": "application/json; charset=utf-8",
  ".txt": "text/plain; charset=utf-8",
  ".md": "text/plain; charset=utf-8",
  ".xml": "application/xml; charset=utf-8",
  ".svg": "image/svg+xml",
  ".png": "image/png",
  ".jpg": "image/jpeg",
  ".webp": "image/webp",
  ".ico": "image/x-icon",
  ".woff": "font/woff",
  ".woff2": "font/woff2",
  ".pdf": "application/pdf",
  ".zip": "application/zip",
};
const PACKED = /^(text\/|application\/(json|xml)|image\/svg)/;

// Compressed once, as a server with a cache does: else the time to compress
// would be measured with the page.
const kept = new Map();

async function body({ file, changed }, packed) {
  const key = `${file}?${packed}?${changed.getTime()}`;
  if (!kept.has(key)) {
    const bytes = await readFile(file);
    kept.set(key, packed ? await zipped(bytes) : bytes);
  }
  return kept.get(key);
}

/** The file that an address names, or null where there is none. */
async function found(root, address) {
  const path = decodeURIComponent(new URL(address, "http://localhost").pathname);
  const file = resolve(join(root, normalize(path)));
  if (file !== root && !file.startsWith(root + sep)) return null;
  const about = await stat(file).catch(() => null);
  if (about?.isDirectory()) return found(root, `${path.replace(/\/?$/, "/")}index.html`);
  return about && { file, changed: about.mtime };
}

async function answer(root, request, response) {
  const hit = await found(root, request.url);
  const shown = hit ?? await found(root, "/404.html");
  if (!shown) {
    response.writeHead(404, { "Content-Type": "text/plain" }).end("Not found");
    return;
  }
  const type = TYPES[extname(shown.file)] ?? "application/octet-stream";
  const accepts = /\bgzip\b/.test(request.headers["accept-encoding"] ?? "");
  const packed = accepts && PACKED.test(type);
  const bytes = await body(shown, packed);
  const headers = { "Content-Type": type, "Content-Length": bytes.length };
  if (packed) Object.assign(headers, { "Content-Encoding": "gzip", Vary: "Accept-Encoding" });
  if (hit) headers["Last-Modified"] = hit.changed.toUTCString();
  response.writeHead(hit ? 200 : 404, headers);
  response.end(request.method === "HEAD" ? undefined : bytes);
}

/** Serve a folder; returns its address and what stops it. */
export async function serve(folder, port = 0) {
  const root = resolve(folder);
  const server = createServer((request, response) => {
    answer(root, request, response).catch((error) => {
      response.writeHead(500).end(String(error));
    });
  });
  await new Promise((ready) => server.listen(port, "127.0.0.1", ready));
  const stop = () => {
    server.closeAllConnections();
    return new Promise((closed) => server.close(closed));
  };
  return { address: `http://127.0.0.1:${server.address().port}`, stop };
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [folder = "_build/html", port = "8000"] = process.argv.slice(2);
  const { address } = await serve(folder, Number(port));
  console.log(`${resolve(folder)} at ${address}`);
}
