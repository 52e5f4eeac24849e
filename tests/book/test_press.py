"""The small pieces of the book's extension, without a build."""

import ast
import os
from pathlib import Path
from types import SimpleNamespace

import nbformat
import press
import pytest
from docutils.parsers.rst import DirectiveError
from press import numbers
from press.running import execution
from press.running.build import Press
from press.running.execution import Cache, PagesFailed, stamped
from press.tables import api
from press.tex.expand import expanded
from press.text import records
from press.text.fingerprint import Known, Module, Sources, fingerprint, run_names
from press.text.page import Page, python

HEADER = """---
jupytext:
  text_representation: {extension: .md, format_name: myst}
kernelspec:
  display_name: Python 3
  name: python3
---
"""
PACKAGE = {
    "__init__.py": "",
    "files.py": 'SHIPPED = ("digits.gz",)\n',
    "data.py": "from .files import SHIPPED\n",
    "runs.py": "from . import data\n",
    "ot/__init__.py": "from .a import f as f, helper\nfrom .b import g\nconstant = 1\n",
    "ot/a.py": "from ..nn import net\ndef f(): ...\ndef helper(): ...\n",
    "ot/b.py": "def g(): ...\n",
    "nn.py": "net = 1\n",
}


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """The folder code/ of a small package."""
    for name, text in PACKAGE.items():
        path = tmp_path / "code/pushforward" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for name in ("digits.gz", "letters.gz"):
        (tmp_path / "code/pushforward" / name).write_bytes(b"1")
    return tmp_path / "code"


REACHED = [
    ("from pushforward.ot import f", "ot.a nn"),
    ("from pushforward.ot import g", "ot.b"),
    ("from pushforward.ot.b import g", "ot.b"),
    ("from pushforward.ot import b", "ot.b"),
    ("from pushforward.ot import constant", "ot nn ot.a ot.b"),
    ("import pushforward.ot", "ot ot.a ot.b nn"),
    ("from pushforward import ot", "ot ot.a ot.b nn"),
    ("from pushforward.ot import *", "ot ot.a ot.b nn"),
    ("from pushforward import runs", "runs data files"),
    ("import torch", ""),
]


@pytest.mark.parametrize(("line", "modules"), REACHED)
def test_imports_reach(line: str, modules: str, code: Path) -> None:
    page = Page("p", f"{HEADER}# T\n\n```{{code-cell}} ipython3\n{line}\n```\n")
    before = mark(page, code)
    for module in ("ot", "ot.a", "ot.b", "nn", "runs", "data", "files"):
        path = code / "pushforward" / (module.replace(".", "/") + ".py")
        path = path if path.exists() else path.with_suffix("") / "__init__.py"
        text = path.read_text()
        path.write_text(text + "\nx = 2\n")
        assert (mark(page, code) != before) == (module in modules.split()), module
        path.write_text(text)
    assert mark(page, code) == before


def mark(page: Page, code: Path) -> str:
    return fingerprint(page, Sources(code), code / "runs", code / "requirements.txt")


def page_of(cell: str) -> Page:
    return Page("p", f"{HEADER}# T\n\n```{{code-cell}} ipython3\n{cell}\n```\n")


def test_comments_and_docstrings_do_not_count(code: Path) -> None:
    page = page_of("from pushforward.ot import f")
    before = mark(page, code)
    path = code / "pushforward/nn.py"
    path.write_text('"""About."""\n# a comment\nnet   =   1\n')
    assert mark(page, code) == before


def test_runs_data_and_pins_count(code: Path) -> None:
    page = page_of('from pushforward import runs\nrun = runs.load("ot/a/long")')
    marks = [mark(page, code)]

    def change(name: str, text: str) -> str:
        path = code / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return mark(page, code)

    marks.append(change("runs/ot/a/long/metrics.json", '{"nll": [1]}'))
    marks.append(change("runs/ot/a/long/metrics.json", '{"nll": [2]}'))
    marks.append(change("requirements.txt", "torch==2.13.0"))
    marks.append(change("pushforward/digits.gz", "2"))
    assert len(set(marks)) == len(marks)
    assert change("pushforward/letters.gz", "2") == marks[-1], "nobody names it"
    assert change("runs/ot/a/longer/metrics.json", "{}") == marks[-1]
    assert change("runs/ot/b/metrics.json", "{}") == marks[-1]
    several = page_of('from pushforward import runs\nruns.load(f"ot/{k}")')
    before = mark(several, code)
    change("runs/ot/b/metrics.json", '{"nll": [1]}')
    assert mark(several, code) != before


@pytest.mark.parametrize("name", ["'ot/a/long'", "f'ot/a/{k}'", "f'ot/{k}/long'"])
def test_the_experiment_of_a_run_counts(name: str, code: Path) -> None:
    """``runs.build`` imports it by a name that no import shows."""
    pages = [page_of(f"from pushforward import runs\nruns.build({name})"),
             page_of(f"from pushforward import nn\nbuild({name})"),
             page_of("from pushforward import runs\nruns.build('ot/b')")]  # fmt: skip
    file = code / "experiments/ot/a.py"
    file.parent.mkdir(parents=True)
    file.write_text("from pushforward.nn import net\nbuild = 1\n")
    before = [mark(page, code) for page in pages]
    file.write_text("from pushforward.nn import net\nbuild = 2\n")
    after = [mark(page, code) for page in pages]
    assert [a != b for a, b in zip(after, before, strict=True)] == [True, False, False]
    (code / "pushforward/nn.py").write_text("net = 2\n")
    assert mark(pages[0], code) != after[0], "nor what the experiment imports"


def test_a_module_that_does_not_parse_still_counts(code: Path) -> None:
    page = page_of("from pushforward.ot import f")
    path = code / "pushforward/ot/__init__.py"
    path.write_text("def f(:\n")
    before = mark(page, code)
    path.write_text("def g(:\n")
    assert mark(page, code) != before
    with pytest.raises(SyntaxError) as error:
        _ = Sources(code).modules["pushforward.ot"].tree
    assert error.value.filename == str(path)


def test_only_a_changed_module_is_parsed_again(
    code: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known: Known = Known({}, {})
    page = page_of("from pushforward.ot import f")
    read: list[str] = []
    plain = Module.read
    monkeypatch.setattr(
        Module, "read", lambda m, text: read.append(m.name) or plain(m, text)
    )

    def marked() -> str:
        found = (Sources(code, known), code / "runs", code / "requirements.txt")
        return fingerprint(page, *found)

    first = marked()
    assert marked() == first == mark(page, code)
    read.clear()
    (code / "pushforward/nn.py").write_text("net = 2\n")
    assert marked() == mark(page, code) != first
    assert read.count("pushforward.nn") == 2, "once by each"
    assert read.count("pushforward.ot.a") == 1, "by the one without memory"


def test_a_file_counts_for_those_who_reach_its_name(code: Path) -> None:
    pages = [page_of(f"import pushforward.{name}") for name in ("data", "nn")]
    before = [mark(page, code) for page in pages]
    (code / "pushforward/digits.gz").write_bytes(b"2")
    after = [mark(page, code) for page in pages]
    assert [a != b for a, b in zip(after, before, strict=True)] == [True, False]


def test_run_names_are_found_in_any_string() -> None:
    source = 'runs.table(["a/b/c", f"a/b/d-{k}"], "x"); open("/tmp/x"); "a sentence"'
    assert sorted(run_names(python(source))) == ["a/b/c", "a/b/d-*"]


def test_the_stamp_keeps_the_lines_and_the_rest() -> None:
    text = HEADER + "# Title\n"
    marked = stamped(text, "abc")
    assert marked.count("\n") == text.count("\n")
    assert marked.splitlines()[-1] == "# Title"
    assert Page("p", marked).front["kernelspec"] == {
        "display_name": "Python 3", "name": "python3", "fingerprint": "abc"
    }  # fmt: skip
    assert Page("p", marked).executed


def test_the_stamp_bears_a_date() -> None:
    text = HEADER.replace("---\njup", "---\ndate: 2026-01-02\njup")
    assert Page("p", stamped(text, "abc")).front["date"] == "2026-01-02"


def test_a_line_that_begins_with_a_remainder_is_no_magic() -> None:
    (call,) = page_of('check("thm:a", (7\n% 2), 1)').calls
    assert call.label == "thm:a"
    (call,) = page_of('%matplotlib inline\ncheck("thm:a", 1, 1)').calls
    assert call.label == "thm:a"


def test_a_call_stands_on_its_line_below_the_options() -> None:
    page = page_of(':tags: [a]\n:name: b\n\ncheck("thm:a", 1, 1)')
    assert page.text.splitlines()[page.calls[0].line - 1].startswith("check(")


def test_a_cell_with_options_hides_its_own_lines_only() -> None:
    page = page_of(":tags: [a]\nx = 1\n(inside)=\n```\n\n(outside)=\n\n```{note}")
    assert page.labels == ["outside"]


def test_a_piece_of_a_notebook_is_not_the_notebook(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    job = cache.job("p", tmp_path / "p.md", HEADER + "# T\n")
    for _ in range(2):  # over a folder without file, over a piece of the file
        cache.file(job.key).parent.mkdir(parents=True, exist_ok=True)
        assert not cache.has(job.key)
        cache.keep(job, 1.0)
        assert cache.has(job.key)
        data = cache.file(job.key).read_bytes()
        nbformat.reads(data.decode(), nbformat.NO_CONVERT)
        cache.file(job.key).write_bytes(data[: data.rindex(b"}")])


def test_a_page_edited_while_pages_ran_is_refused(tmp_path: Path) -> None:
    build, app = Press(), SimpleNamespace()
    app.config = SimpleNamespace(nb_execution_mode="cache")
    app.env = SimpleNamespace(doc2path=lambda name: tmp_path / f"{name}.md")
    build.marks["p"] = "abc"
    (tmp_path / "p.md").write_text(HEADER + "# T\n")
    source = [build.page(app.env, "p").text]
    build.stamp(app, "p", source)  # type: ignore[arg-type]
    assert "abc" in source[0]
    with pytest.raises(PagesFailed, match="p: edited while pages ran"):
        build.stamp(app, "p", [HEADER + "# U\n"])  # type: ignore[arg-type]


def test_kernels_know_the_runs_that_fingerprints_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, str]] = []
    client = SimpleNamespace(execute=lambda env: given.append(env))
    monkeypatch.setattr(execution, "NotebookClient", lambda *a, **k: client)
    monkeypatch.setenv("PUSHFORWARD_RUNS", str(tmp_path))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")])
    execution.run(notebook, tmp_path / "p.md", 1)
    assert given[0]["PATH"] == os.environ["PATH"]
    assert "PUSHFORWARD_RUNS" not in given[0]


def test_every_core_is_used_where_none_is_forbidden(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert execution.cores() == 3


def test_the_build_depends_on_what_makes_pages_and_not_on_tools() -> None:
    names = {file.name for file in press.parts()}
    assert {"build.py", "takeaway.py", "temml.min.js"} <= names
    assert not {"spelling.py", "pdf.py"} & names
    assert all((Path(press.__file__).parent / name).is_dir() for name in press.TOOLS)


def test_macros_expand_to_their_end_and_no_further() -> None:
    table = {"E": "\\mathbb{E}", "two": ["#1\\E", 1], "loop": "a\\loop"}
    assert expanded(r"a \\E b", table) == r"a \\E b", "the end of a row, and E"
    assert expanded(r"a \\\E b", table) == r"a \\\mathbb{E}b"
    assert expanded(r"\two{a \\} b", table) == r"a \\\mathbb{E}b"
    assert expanded(r"\two{\}} b", table) == r"\}\mathbb{E}b"
    with pytest.raises(ValueError, match=r"macro \\loop expands without end"):
        expanded(r"\loop", table)


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (2.0, "2"),
        (-0.5, "−0.5"),
        (1.25e-16, "1.25 · 10⁻¹⁶".replace(" ", numbers.NARROW)),
        (123456.0, "123456"),
        (float("inf"), "∞"),
        (None, ""),
    ],
)
def test_numbers_are_for_people(x: float | None, text: str) -> None:
    assert numbers.number(x) == text


@pytest.mark.parametrize(
    ("t", "text"), [(0.82, "0.8 s"), (43.2, "43 s"), (420, "7 min"), (9000, "2.5 h")]
)
def test_durations_are_for_people(t: float, text: str) -> None:
    assert numbers.seconds(t) == text.replace(" ", numbers.NARROW)


def test_run_names_come_from_the_dictionary() -> None:
    source = 'A = {"no": 1}\nRUNS: dict = {"ot/a": 1, "ot/b/x": 2}\n'
    assert records.run_keys(source) == ["ot/a", "ot/b/x"]
    source = 'RUNS = {f"ot/a/{k}": k for k in (1, 2)} | {"ot/b": 3}\n'
    assert records.run_keys(source) == ["ot/a/…", "ot/b"]
    source = (
        'RUNS = {"a": Config(n={"no": 1}), "b": {"no": 1}, **{f"c{k}": 1 for k in x}}'
    )
    assert records.run_keys(source) == ["a", "b", "c…"]
    with pytest.raises(SyntaxError, match=r"ot\.py"):
        records.run_keys("RUNS = {", "ot.py")


@pytest.mark.parametrize("lost", records.WANTED)
def test_a_row_of_the_ledger_without_a_part_is_named(lost: str, tmp_path: Path) -> None:
    row = {"id": '"c1"', "paper": '"p"', "measured": '"run:a:b"', "band": "[1, 2]"}
    told = "\n".join(f"{key} = {row[key]}" for key in row if key != lost)
    path = tmp_path / "claims.toml"
    path.write_text(f"[[claim]]\n{told}\n")
    name = "row 1" if lost == "id" else "c1"
    with pytest.raises(ValueError, match=f"claims.toml, {name}: no {lost}"):
        records.rows(path)


def test_a_row_says_what_measures_it() -> None:
    assert records.origin({"measured": "page:ot/one"}) == ("page", "book/ot/one")
    assert records.origin({"measured": "run:ot/a:nll"}) == ("run", "ot/a:nll")


def test_a_run_for_a_gpu_made_on_a_cpu_is_pending() -> None:
    made = {"device": "a machine", "accelerator": "cpu"}
    assert records.Run("a/b", {"hardware": "gpu"}, made, {}).pending
    assert not records.Run("a/b", {"hardware": "cpu"}, made, {}).pending
    assert records.Run("a/b", {}, {}, {}).pending


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("def f(x: int, *, y=(1, 2)) -> int: ...",) * 2,
        ("class A(B):\n def __init__(self, x): ...", "class A(B)\nA(x)"),
        ("class A(NamedTuple):\n x: int\n y: str = ''",
         "class A(NamedTuple):\n    x: int\n    y: str = ''"),
    ],
)  # fmt: skip
def test_the_reference_shows_signatures(source: str, text: str) -> None:
    (node,) = ast.parse(source).body
    assert isinstance(node, ast.FunctionDef | ast.ClassDef)
    assert api.head(node) == text.removesuffix(": ...")


def test_long_signatures_are_broken_between_arguments() -> None:
    names = [f"argument_{k}: dict[str, int]" for k in range(4)]
    (node,) = ast.parse(f"def f({', '.join(names)}) -> int: ...").body
    assert isinstance(node, ast.FunctionDef)
    lines = "".join(f"    {name},\n" for name in names)
    assert api.head(node) == f"def f(\n{lines}) -> int"


def test_the_reference_of_no_module_is_an_error_of_its_page(tmp_path: Path) -> None:
    asked = object.__new__(api.Api)
    settings = SimpleNamespace(env=SimpleNamespace(srcdir=tmp_path))
    asked.state = SimpleNamespace(document=SimpleNamespace(settings=settings))
    asked.arguments = ["typo"]
    with pytest.raises(DirectiveError) as error:
        asked.show()
    assert "names no module: pushforward.typo" in error.value.msg
