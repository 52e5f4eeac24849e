"""Pages executed before they are read: in parallel, once, never wrongly kept.

myst-nb looks an executed page up in a cache by its cells and its kernelspec.
``stamped`` writes the page's fingerprint into the kernelspec, so that the key
also depends on the package, the runs and the pins.  ``execute`` fills the cache
for all stale pages at once, one page a core and one thread a kernel, so that
myst-nb finds every page executed.  A page that fails is never cached.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import nbformat
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from myst_nb.core.read import read_myst_markdown_notebook
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from sphinx.util import logging

from ..numbers import plural
from ..text.page import FRONT, Page

LOGGER = logging.getLogger(__name__)
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
END = b"\n}"  # of a notebook's file; within, no brace begins a line
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
ERROR_LINES = 12  # of an error's message, from its end
RUNS = "PUSHFORWARD_RUNS"  # moves the runs, of which fingerprints would not know


class PagesFailed(SystemExit):
    """Pages could not run as they stand; the message names page, cell and error.

    It ends the program, so that the message is the last thing said, without the
    traces of Sphinx and Jupyter Book, and the exit status is 1.
    """


class Job(NamedTuple):
    """A page to execute: its name, file, notebook and the cache's key for it."""

    name: str
    path: Path
    notebook: nbformat.NotebookNode
    key: str


def stamped(text: str, mark: str) -> str:
    """Write a fingerprint into a page's kernelspec; lines keep their numbers."""
    match = FRONT.match(text)
    front = Page("", text).front
    if not match or "kernelspec" not in front:
        return text
    front["kernelspec"]["fingerprint"] = mark
    head = json.dumps(front, default=str) + "\n" * match[1].count("\n")
    return f"---\n{head}---\n{text[match.end() :]}"


class Cache:
    """The executed pages, in the folder where myst-nb looks them up."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.base = get_cache(str(folder))

    def job(self, name: str, path: Path, text: str, config: Any = None) -> Job:
        """Return the job of a stamped page."""
        notebook = read_myst_markdown_notebook(
            text, config=config, add_source_map=True, path=path
        )
        return Job(name, path, notebook, self.base.create_hashed_notebook(notebook)[1])

    def file(self, key: str) -> Path:
        """Return where the executed notebook of a key lies, or would lie."""
        return self.folder / "executed" / key / "base.ipynb"

    def has(self, key: str) -> bool:
        """Return whether the notebook of a key is there, and whole.

        jupyter-cache writes it in place: a build that is stopped leaves a piece.
        """
        file = self.file(key)
        if not file.is_file():
            return False
        with file.open("rb") as data:
            data.seek(max(0, file.stat().st_size - len(END)))
            return data.read() == END

    def seconds(self) -> dict[str, float]:
        """Return how long each page took when it last ran, by its file."""
        records = sorted(self.base.list_cache_records(), key=lambda r: r.created)
        return {r.uri: r.data.get("execution_seconds", 0.0) for r in records}

    def keep(self, job: Job, seconds: float) -> None:
        """Store an executed page."""
        bundle = CacheBundleIn(
            job.notebook, str(job.path), data={"execution_seconds": seconds}
        )
        shutil.rmtree(self.file(job.key).parent, ignore_errors=True)  # a piece of one
        self.base.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)


def execute(
    jobs: Iterable[Job], cache: Cache, *, timeout: int, current: Callable[[Job], bool]
) -> None:
    """Execute the jobs that the cache does not hold, the longest first.

    Args:
        jobs: The pages.
        cache: Where executed pages are kept.
        timeout: Of a cell, in seconds.
        current: Tells, when a page has run, whether its sources are still the same.

    Raises:
        PagesFailed: A cell failed, on any page; the others are cached.
    """
    known = cache.seconds()
    stale = {job.key: job for job in jobs if not cache.has(job.key)}
    order = sorted(stale.values(), key=lambda job: -known.get(str(job.path), 1e9))
    failures: dict[str, str] = {}
    with ThreadPoolExecutor(cores()) as pool:
        todo = {pool.submit(run, job.notebook, job.path, timeout): job for job in order}
        try:
            for done in as_completed(todo):
                job = todo[done]
                failures |= settle(job, done, cache, current=current)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if failures:
        told = "\n\n".join(failures[name] for name in sorted(failures))
        raise PagesFailed(f"\n{plural(len(failures), 'page')} failed.\n\n{told}\n")


def settle(
    job: Job, done: "Future[float]", cache: Cache, *, current: Callable[[Job], bool]
) -> dict[str, str]:
    """Cache a page that succeeded; return what is to be said of one that failed."""
    error = done.exception()
    if error is None and not current(job):
        return {job.name: f"{job.name}: its code changed while it ran; build again"}
    if error is None:
        cache.keep(job, done.result())
        LOGGER.info("executed %s in %.1f s", job.name, done.result())
        return {}
    if not isinstance(error, Exception):
        raise error
    return {job.name: report(job, error)}


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run(notebook: nbformat.NotebookNode, path: Path, timeout: int) -> float:
    """Execute a notebook in place, in the folder of its page; return the seconds.

    A page without cells needs no kernel.
    """
    start = perf_counter()
    if any(cell.cell_type == "code" for cell in notebook.cells):
        client = NotebookClient(
            notebook,
            timeout=timeout,
            record_timing=False,  # it would change the key
            resources={"metadata": {"path": str(path.parent)}},
            extra_arguments=["--log-level=ERROR"],
        )
        here = {key: value for key, value in os.environ.items() if key != RUNS}
        client.execute(env={**here, **ONE_THREAD})
    return perf_counter() - start


def report(job: Job, error: Exception) -> str:
    """Return page, cell, its first line, and the last lines of the error."""
    cells = [c for c in job.notebook.cells if c.cell_type == "code"]
    at = [k for k, c in enumerate(cells) if c.get("execution_count") or c.outputs]
    number = max(at, default=0)
    for k, cell in enumerate(cells):
        if any(o.output_type == "error" for o in cell.outputs):
            number = k
    where = f"{job.name}, cell {number + 1} of {len(cells)}"
    if isinstance(error, CellExecutionError):
        said = plain(str(error.traceback)).strip().splitlines()
    else:
        said = [f"{type(error).__name__}: {line}" for line in str(error).splitlines()]
    tail = "\n".join(f"    {line}" for line in said[-ERROR_LINES:])
    return f"{where}: {first_line(cells[number].source)}\n{tail}"


def first_line(source: str) -> str:
    """Return the first line of a cell that is not blank."""
    return next((line for line in source.splitlines() if line.strip()), "(empty)")


def plain(text: str) -> str:
    """Return text without the terminal's colour codes."""
    return COLOUR.sub("", text)


def outputs(file: Path) -> list[dict[str, Any]]:
    """Return all outputs of an executed notebook, in order, with their cell."""
    notebook = json.loads(file.read_text(encoding="utf-8"))
    cells = [c for c in notebook["cells"] if c["cell_type"] == "code"]
    return [
        {**output, "cell": k + 1}
        for k, cell in enumerate(cells)
        for output in cell["outputs"]
    ]
