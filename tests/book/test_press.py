"""The small pieces of the book's extension, without a build."""

import ast
from pathlib import Path

import pytest
from press import api, numbers, records
from press.execution import stamped
from press.fingerprint import Sources, fingerprint, run_names
from press.page import Page, python

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
