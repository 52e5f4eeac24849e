"""Every link of the built site: inside it, and out of it.

faults(site)        what leads nowhere inside: files, anchors, labels; double names
outside(site)       the addresses of other sites, and the pages that name them
check(addresses)    asks those sites, a few at a time, each host politely

``python -m press.proofreading.links _build/html`` (``make links``) asks other sites.
"""

import re
import sys
import time
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from html import unescape
from http.client import HTTPException
from itertools import chain
from pathlib import Path
from typing import NamedTuple
from urllib.error import HTTPError
from urllib.parse import unquote, urldefrag, urlsplit
from urllib.request import Request, urlopen

CODE = re.compile(r"(<(script|style)\b[^>]*>).*?</\2>", re.S | re.I)
COMMENT = re.compile(r"<!--.*?-->", re.S)
TAG = re.compile(r"<([a-zA-Z][\w:-]*+)((?:[^\"'>]++|\"[^\"]*+\"|'[^']*+')*+)>")
PAIR = re.compile(r"([\w:-]+)\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s\"'>]+))")
LOCAL = re.compile(r"url\(\s*[\"']?#([^)\"']+)")
URL = re.compile(r"url\(\s*[\"']?(?!data:|#)([^)\"']+)")
REFRESH = re.compile(r"^\s*\d+\s*;\s*url=(.+)$", re.I)
SCHEME = re.compile(r"^(?:[a-zA-Z][a-zA-Z+.-]*:|//)")

WANTED = re.compile(r"\b(?:id|href|src|srcset|name|action|poster|data|style|content|for"
                    r"|list|headers|aria-[a-z]+)\s*=", re.I)  # fmt: skip

ADDRESS = ("href", "src", "xlink:href", "action", "poster", "data")
NAMES = ("for", "list", "aria-labelledby", "aria-describedby", "aria-controls",
         "aria-owns", "aria-details", "aria-flowto", "headers")  # fmt: skip

AGENT = "Mozilla/5.0 (compatible; Push-forward link check; +make links)"
PATIENCE = 20.0  # seconds for an answer
PAUSE = 1.0  # seconds between two questions to one host
TRIES = 3
CROWD = 8  # hosts at a time


class Document:
    """A page or picture of the site: its names, and what it refers to."""

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def tags(self) -> list[tuple[str, dict[str, str]]]:
        """The tags with attributes that matter here, but for those in scripts."""
        text = COMMENT.sub("", CODE.sub(r"\1</\2>", self.text))
        return [
            (tag.lower(), {k.lower(): plain(a or b or c) for k, a, b, c in pairs})
            for tag, inner in TAG.findall(text)
            if WANTED.search(inner) and (pairs := PAIR.findall(inner))
        ]

    @cached_property
    def ids(self) -> Counter[str]:
        """How often each name is given."""
        return Counter(found["id"] for _, found in self.tags if "id" in found)

    @cached_property
    def anchors(self) -> set[str]:
        """The names that a link may lead to."""
        return set(self.ids) | {
            f["name"] for t, f in self.tags if t == "a" and "name" in f
        }

    @cached_property
    def addresses(self) -> list[str]:
        """All addresses that the document leads to or loads."""
        return [address for tag, found in self.tags for address in named(tag, found)]

    @cached_property
    def mentioned(self) -> set[str]:
        """The names of the document's own parts that labels and pictures mention."""
        told = " ".join(f[key] for _, f in self.tags for key in NAMES if key in f)
        return set(told.split()) | set(LOCAL.findall(self.text))


def plain(value: str) -> str:
    """Return an attribute's value."""
    return unescape(value) if "&" in value else value


def named(tag: str, found: dict[str, str]) -> Iterator[str]:
    """Yield the addresses in a tag's attributes."""
    for key in ADDRESS:
        if found.get(key) and not (key == "data" and tag != "object"):
            yield found[key].strip()
    for part in found.get("srcset", "").split(","):
        if part.strip():
            yield part.split()[0]
    if tag == "meta" and (match := REFRESH.match(found.get("content", ""))):
        yield match[1]
    yield from URL.findall(found.get("style", ""))


class Site:
    """The files of a built site; each is read and parsed once."""

    def __init__(self, root: Path, prefix: str = "/") -> None:
        self.root = root.resolve()
        self.prefix = prefix
        self.documents: dict[Path, Document] = {}

    def document(self, path: Path) -> Document:
        """Return a page or picture."""
        if path not in self.documents:
            self.documents[path] = Document(path.read_text(encoding="utf-8"))
        return self.documents[path]

    def files(self, *suffixes: str) -> list[Path]:
        """Return the files with these suffixes, in order."""
        return sorted(p for p in self.root.rglob("*") if p.suffix in suffixes)

    def target(self, here: Path, address: str) -> tuple[Path, str]:
        """Return the file and the anchor that an address leads to."""
        path, anchor = urldefrag(address)
        path = unquote(path.partition("?")[0])
        inner = path.removeprefix(self.prefix)
        start = here.parent if inner == path else self.root
        file = (start / inner).resolve() if path else here
        return (file / "index.html" if file.is_dir() else file), unquote(anchor)

    def fault(self, here: Path, address: str) -> str:
        """Return what is wrong with an address inside the site; "" if nothing is."""
        if not address or SCHEME.match(address):
            return ""
        file, anchor = self.target(here, address)
        if not file.is_relative_to(self.root):
            return f"{address} leads out of the site"
        if not file.is_file():
            return f"{address} leads to no file"
        known = file.suffix not in (".html", ".svg") or not anchor or anchor == "top"
        if known or anchor in self.document(file).anchors:
            return ""
        return f"{address} leads to no anchor"


def faults(root: Path, prefix: str = "/") -> list[str]:
    """Return every fault of a site's inner links, as "page: what is wrong".

    Args:
        root: The folder of the site.
        prefix: Path under which the site is served: where links from "/" begin.
    """
    site = Site(root, prefix)
    found = [
        f"{file.relative_to(site.root)}: {fault}"
        for file in site.files(".html", ".svg")
        for fault in wrong(site, file)
    ]
    for file in site.files(".css"):
        text = re.sub(r"/\*.*?\*/", "", file.read_text(encoding="utf-8"), flags=re.S)
        told = (site.fault(file, address.strip()) for address in URL.findall(text))
        found += [f"{file.relative_to(site.root)}: {fault}" for fault in told if fault]
    return found


def wrong(site: Site, file: Path) -> Iterator[str]:
    """Yield the faults of one page or picture."""
    document = site.document(file)
    for address in dict.fromkeys(document.addresses):
        if fault := site.fault(file, address):
            yield fault
    for name, count in document.ids.items():
        if count > 1 and file.suffix == ".html":
            yield f"the id {name} is given {count} times"
    for name in sorted(document.mentioned - set(document.ids)):
        yield f"nothing has the id {name}, which is mentioned"


def outside(root: Path) -> dict[str, list[str]]:
    """Return the addresses of other sites, each with the pages that name it."""
    site, found = Site(root), defaultdict(set)
    for file in site.files(".html"):
        for tag, attributes in site.document(file).tags:
            address = attributes.get("href", "")
            if tag == "a" and re.match(r"https?://", address):
                found[urldefrag(address)[0]].add(file.relative_to(site.root).as_posix())
    return {address: sorted(pages) for address, pages in sorted(found.items())}


class Answer(NamedTuple):
    """What a site said: "good", "moved", "refused", "broken" or "unreached"."""

    verdict: str
    told: str


def ask(address: str) -> Answer:
    """Ask for an address, by HEAD and then by GET."""
    answer = Answer("unreached", "")
    for method in ("HEAD", "GET"):
        request = Request(address, method=method, headers={"User-Agent": AGENT})
        try:
            with urlopen(request, timeout=PATIENCE) as reply:
                lost = bare(reply.url) and not bare(address)
                return Answer("moved", reply.url) if lost else Answer("good", "")
        except HTTPError as error:
            refused = error.code in (401, 403, 405, 406, 418, 429) or error.code >= 500
            answer = Answer("refused" if refused else "broken", f"status {error.code}")
        except (OSError, HTTPException, ValueError) as error:
            answer = Answer("unreached", str(getattr(error, "reason", error)))
    return answer


def bare(address: str) -> bool:
    """Return whether an address is a site's front page: where lost links end."""
    return urlsplit(address).path in ("", "/")


def persistent(address: str, pause: float = PAUSE) -> Answer:
    """Ask again, after a pause that doubles, while a site refuses or is silent."""
    answer = ask(address)
    for k in range(TRIES - 1):
        if answer.verdict not in ("refused", "unreached"):
            break
        time.sleep(pause * 2**k)
        answer = ask(address)
    return answer


def check(addresses: list[str], pause: float = PAUSE) -> dict[str, Answer]:
    """Ask for all addresses: many hosts at a time, one question to a host."""
    hosts = defaultdict(list)
    for address in addresses:
        hosts[urlsplit(address).netloc].append(address)

    def visit(wanted: list[str]) -> list[tuple[str, Answer]]:
        answer, found = Answer("good", ""), []
        for address in wanted:
            if answer.verdict != "unreached":  # a silent host stays silent
                answer = persistent(address, pause)
                time.sleep(pause)
            found.append((address, answer))
        return found

    with ThreadPoolExecutor(CROWD) as crowd:
        return dict(chain.from_iterable(crowd.map(visit, hosts.values())))


def excused(path: Path) -> dict[str, str]:
    """Return the beginnings of addresses that are not asked for, and why."""
    if not path.exists():
        return {}
    rows = tomllib.loads(path.read_text(encoding="utf-8")).get("excused", [])
    return {row["begins"]: row["why"] for row in rows}


def report(root: Path, excuses: dict[str, str], pause: float = PAUSE) -> int:
    """Ask for every address outside, print what is wrong, return the exit status."""
    named_by = outside(root)
    asked = [a for a in named_by if not a.startswith(tuple(excuses))]
    print(f"{len(asked)} addresses, {len(named_by) - len(asked)} excused.")  # noqa: T201
    answers = check(asked, pause)
    count = Counter(answer.verdict for answer in answers.values())
    if asked and count["unreached"] == len(asked):
        print("No site could be reached: this machine seems to be offline.")  # noqa: T201
        return 2
    for verdict in ("broken", "unreached", "refused", "moved"):
        for address, answer in answers.items():
            if answer.verdict == verdict:
                pages = ", ".join(named_by[address][:3])
                print(f"{verdict}: {address} ({answer.told}) in {pages}")  # noqa: T201
    print(", ".join(f"{n} {verdict}" for verdict, n in count.most_common()))  # noqa: T201
    return int(bool(count["broken"] or count["unreached"]))


if __name__ == "__main__":
    where = Path(sys.argv[1] if len(sys.argv) > 1 else "_build/html")
    if not where.is_dir():
        sys.exit(f"{where} is no folder: build the book first")
    sys.exit(report(where, excused(Path("book/links.toml"))))
