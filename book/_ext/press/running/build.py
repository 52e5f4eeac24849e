"""The order of a build: what is stale, execute it, collect, and judge at the end."""

import json
from pathlib import Path

from jupyter_cache.cache.db import NbCacheRecord
from sphinx.application import ENV_PICKLE_FILENAME, Sphinx
from sphinx.environment import BuildEnvironment

from ..files import sha
from ..numbers import plural
from ..text import consistency, records
from ..text.fingerprint import Known, Sources, fingerprint
from ..text.page import Page
from ..text.records import PageState, claims, states
from .execution import Cache, Job, PagesFailed, execute, outputs, stamped


class Inconsistent(SystemExit):
    """The book breaks a promise; the message names page and label of each."""


class Press:
    """The state of one build, and the handlers of Sphinx's events in their order.

    Attributes:
        root: The folder of the book.
        cache: The executed pages.
        known: What earlier builds found in modules and pages.
        sources: The package, as it is at the start.
        unwritten: A file that is there from when pages are read until all is written.
        interrupted: Whether an earlier build left that file.
        pages: The pages as they are when first looked at.
        marks: Their fingerprints.
    """

    root: Path
    cache: Cache
    known: Known
    sources: Sources
    unwritten: Path
    interrupted: bool

    def __init__(self) -> None:
        self.pages: dict[str, Page] = {}
        self.marks: dict[str, str] = {}

    def start(self, app: Sphinx) -> None:
        """Look at the folders (builder-inited)."""
        self.root = Path(app.srcdir)
        self.cache = Cache(Path(app.outdir).resolve().parent / ".jupyter_cache")
        self.unwritten = Path(app.doctreedir) / "unwritten"
        self.interrupted = self.unwritten.exists()
        if not hasattr(app.env, "press_pages"):
            setattr(app.env, "press_pages", {})  # noqa: B010
            setattr(app.env, "press_known", Known({}, {}))  # noqa: B010
        self.known = getattr(app.env, "press_known")  # noqa: B009
        self.sources = Sources(self.root / "code", self.known)

    def page(self, env: BuildEnvironment, name: str) -> Page:
        """Return a page by its name, read once a build."""
        if name not in self.pages:
            text = Path(env.doc2path(name)).read_text(encoding="utf-8")
            self.pages[name] = Page(name, text)
        return self.pages[name]

    def mark(self, page: Page) -> str:
        """Return a page's fingerprint, computed once a build."""
        if page.name not in self.marks:
            self.marks[page.name] = self.measure(page, self.sources)
        return self.marks[page.name]

    def measure(self, page: Page, sources: Sources) -> str:
        """Return a page's fingerprint with these sources."""
        runs, pins = self.root / "code/runs", self.root / "requirements.txt"
        return fingerprint(page, sources, runs, pins)

    def current(self, job: Job) -> bool:
        """Return whether what a page depends on is still what it was at the start."""
        page = Page(job.name, job.path.read_text(encoding="utf-8"))
        fresh = Sources(self.root / "code", self.known)
        return self.measure(page, fresh) == self.marks[job.name]

    def outdated(
        self,
        app: Sphinx,
        env: BuildEnvironment,
        added: set[str],
        changed: set[str],
        removed: set[str],
    ) -> list[str]:
        """Return the pages whose code, runs or pins changed (env-get-outdated)."""
        known = {n: s for n, s in states(env).items() if n in env.found_docs}
        return [
            name
            for name, state in known.items()
            if not self.cache.has(state.key)
            or self.mark(self.page(env, name)) != state.mark
        ]

    def prepare(self, app: Sphinx, env: BuildEnvironment, names: list[str]) -> None:
        """Execute what is to be read, collect its records (env-before-read-docs)."""
        known = states(env)
        for name in set(known) - env.found_docs:
            del known[name]
        if app.config.nb_execution_mode == "cache":
            jobs = [self.job(env, page) for name in names
                    if (page := self.page(env, name)).executed]  # fmt: skip
            timeout = app.config.nb_execution_timeout
            execute(jobs, self.cache, timeout=timeout, current=self.current)
            known |= {job.name: self.state(job) for job in jobs}
        digest = self.digest(env)
        setattr(env, "press_digest", digest)  # noqa: B010
        boards = {
            n for n, m in env.metadata.items() if m.get("press_board", digest) != digest
        }
        names += sorted((boards & env.found_docs) - set(names))
        if names:
            self.unwritten.touch()

    def job(self, env: BuildEnvironment, page: Page) -> Job:
        """Return the job of a page, with the text that myst-nb will see."""
        config = getattr(env, "myst_config", None)
        path = Path(env.doc2path(page.name))
        return self.cache.job(
            page.name, path, stamped(page.text, self.mark(page)), config
        )

    def state(self, job: Job) -> PageState:
        """Return what the executed page of a job left."""
        record = NbCacheRecord.record_from_hashkey(job.key, self.cache.base.db)
        found, unread = records.of_outputs(outputs(self.cache.file(job.key)))
        seconds = record.data.get("execution_seconds", 0.0)
        return PageState(self.marks[job.name], job.key, seconds, found, unread)

    def digest(self, env: BuildEnvironment) -> str:
        """Return a hash of everything that the boards of the end matter show."""
        made = sorted((self.root / "code/runs").glob("**/*.json"))
        owed = sorted((self.root / "code/experiments").glob("**/*.py"))
        files = [self.root / "book/claims.toml", *made, *owed]
        texts = [p.read_text(encoding="utf-8") for p in files if p.exists()]
        states_ = {name: list(s) for name, s in sorted(states(env).items())}
        pages = [self.page(env, name) for name in states_]
        named = [(block.options.get("label"), block.argument) for page in pages
                 for block in page.blocks if block.name.startswith("prf:")]  # fmt: skip
        modules = list(self.sources.modules)
        return sha(json.dumps([texts, states_, named, modules]).encode())

    def stamp(self, app: Sphinx, name: str, source: list[str]) -> None:
        """Write the fingerprint into an executed page's front matter (source-read).

        Raises:
            PagesFailed: The page is not the one that ran.
        """
        page = Page(name, source[0])
        if page.executed and app.config.nb_execution_mode == "cache":
            ran = self.page(app.env, name)
            if page.text.splitlines() != ran.text.splitlines():
                raise PagesFailed(f"{name}: edited while pages ran; build again")
            source[0] = stamped(source[0], self.mark(page))

    def renumbered(self, app: Sphinx, env: BuildEnvironment) -> list[str]:
        """Have all pages written when numbers or titles changed (env-get-updated).

        Other pages show them: references, the contents at the side.  So it is where
        an earlier build read pages, and was stopped before it had written them.
        """
        titles = {name: node.astext() for name, node in env.titles.items()}
        seen = [titles, env.toc_secnumbers, env.toc_fignumbers]
        digest = sha(json.dumps(seen, sort_keys=True, default=str).encode())
        before = getattr(env, "press_numbers", digest)
        setattr(env, "press_numbers", digest)  # noqa: B010
        if before == digest and not self.interrupted:
            return []
        self.unwritten.touch()
        return sorted(env.found_docs)

    def judge(self, app: Sphinx, error: Exception | None) -> None:
        """Fail the build, each time it is run, on faults and warnings (build-finished).

        Raises:
            Inconsistent: With every fault, or the count of warnings under ``-W``.
        """
        if error is not None:
            return
        self.unwritten.unlink(missing_ok=True)
        warnings = getattr(app, "_warncount", 0) if app.keep_going else 0
        if warnings:
            # Forget what was read, so that the next build warns again.
            (Path(app.doctreedir) / ENV_PICKLE_FILENAME).unlink(missing_ok=True)
        if faults := self.faults(app.env):
            told = "\n".join(f"  {fault}" for fault in faults)
            raise Inconsistent(f"\nThe book is inconsistent:\n\n{told}\n")
        if warnings:
            raise Inconsistent(f"\n{plural(warnings, 'warning')}, see above.\n")

    def faults(self, env: BuildEnvironment) -> list[str]:
        """Return every fault of the book."""
        pages = [self.page(env, name) for name in sorted(env.found_docs)]
        rows = records.rows(self.root / "book/claims.toml")
        known = consistency.static(consistency.book(self.root, pages, rows))
        return known + consistency.executed(states(env), claims(env, rows))
