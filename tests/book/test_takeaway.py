"""Notebooks that run away from the book, their wheel, and the launch buttons."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import nbformat
import pytest
from docutils import nodes
from press.notebooks.launch import Repository
from press.notebooks.notebook import Numbers, Writer
from press.notebooks.wheel import Wheel
from press.tex.expand import argument, expanded
from press.tex.formulas import Typesetter
from press.tex.macros import macros
from press.text.page import Page
from sphinx.errors import ConfigError

if TYPE_CHECKING:
    from conftest import Tiny

ROOT = Path(__file__).parents[2]
SITE = ROOT / "_build/html"
NOTEBOOKS = SITE / "_notebooks"
TABLE = macros((ROOT / "book/notation.md").read_text(encoding="utf-8"))

PROJECT = """[project]
name = "pushforward"
version = "1.2.3"
dependencies = []
[tool.setuptools.packages.find]
include = ["pushforward*", "runs*"]
[tool.setuptools.package-data]
pushforward = ["*.gz"]
"*" = ["*.json"]
"""

THREE = """---
jupytext:
  text_representation: {extension: .md, format_name: myst}
kernelspec: {display_name: Python 3, language: python, name: python3}
---

# Three *new*

A price of \\$5 and $\\E X$, see {doc}`one`, {eq}`eq:double` and {cite:t}`author2000`.

```{prf:theorem} Tripling
:label: thm:triple
It triples:

$$
y = 3 \\E x
$$ (eq:triple)
```

```{prf:proof}
:class: dropdown
By {prf:ref}`thm:double`.
```

```{code-cell} ipython3
from pushforward.check import check
from pushforward.ot import triple
check("thm:triple", triple(1), 3.0)
```

```{exercise-start} Fold
:label: ex:fold
```
Fold it.
```{exercise-end}
```

```{solution-start} ex:fold
:class: dropdown
```
Take $|x|$.

```{code-cell} ipython3
triple(2)
```

It is six.
```{solution-end}
```

| a | b |
|---|---|
| $\\|x\\|$ | `c` |

```{literalinclude} ../../code/pushforward/ot/one.py
:pyobject: double
```
"""


@pytest.fixture(scope="module")
def small(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A throw-away book with a package that can be taken away."""
    book = type(tiny)(tmp_path_factory.mktemp("small"))
    book.write("pyproject.toml", PROJECT)
    book.write("code/runs/ot/three/config.json", "{}")
    book.write("code/runs/ot/three/.part", "hidden")
    book.write("code/runs/ot/three/.hidden.json", "{}")
    book.write("code/runs/ot/three/log.txt", "what nobody declared")
    book.write("code/runs/ot/three/images.gz", "data of another package")
    book.write("code/pushforward/images.gz", "data")
    book.write("code/pushforward.egg-info/PKG-INFO", "no package")
    book.write("book/ot/three.md", THREE)
    two = "      - file: book/ot/two\n"
    toc = (book.root / "_toc.yml").read_text()
    book.write("_toc.yml", toc.replace(two, two + two.replace("two", "three")))
    made = book.build()
    assert made.status == 0, made.said
    return book


def notebook(root: Path, name: str) -> nbformat.NotebookNode:
    """Return a notebook of a book; it is valid, and valid as it is written."""
    text = (root / f"_build/html/_notebooks/{name}.ipynb").read_text(encoding="utf-8")
    nbformat.validate(json.loads(text))
    return nbformat.reads(text, 4)


def words(book: nbformat.NotebookNode) -> str:
    return "\n\n".join(c.source for c in book.cells if c.cell_type == "markdown")


# Formulas without macros.


def test_macros_are_expanded_with_their_arguments() -> None:
    table = {"E": r"\mathbb{E}", "two": [r"\{#1 \mid #2\}", 2], "up": r"\E^\pi"}
    assert expanded(r"\E X + \Exp x", table) == r"\mathbb{E}X + \Exp x"
    assert expanded(r"\two{a_{1}} {\E}", table) == r"\{a_{1} \mid \mathbb{E}\}"
    assert expanded(r"\two x\alpha", table) == r"\{x \mid \alpha\}"
    assert expanded(r"\up x", table) == r"\mathbb{E}^\pi x"
    assert argument(r" {\{a\}} b") == (r"\{a\}", " b")
    with pytest.raises(ValueError, match="closing brace"):
        expanded(r"\two{a", table)


def test_expanded_formulas_are_set_as_the_macros_were() -> None:
    """Every formula of three chapters and of the notation, in the site's typesetter."""
    known, bare = Typesetter(TABLE), Typesetter({})
    found = 0
    for name in ("notation", "ot/sinkhorn", "diffusion/sde", "flows/coupling"):
        text = Page.read(ROOT, ROOT / f"book/{name}.md").prose
        for tex in re.findall(r"(?<!\$)\$([^$\n]+)\$(?!\$)", text):
            left, right = known.formula(tex), bare.formula(expanded(tex, TABLE))
            without = [re.sub(r"<annotation.*?</annotation>", "", str(made), flags=re.S)
                       for made in (left, right)]  # fmt: skip
            assert without[0] == without[1], tex
            found += expanded(tex, TABLE) != tex
    assert found > 100


# The notebook of a page.


def test_the_first_cell_installs_the_package(small: Tiny) -> None:
    first = notebook(small.root, "ot/three").cells[0]
    assert first.cell_type == "code"
    assert 'WHEEL = "pushforward-1.2.3-py3-none-any.whl"' in first.source
    assert 'ADDRESS = ""' in first.source
    compile(first.source, "cell", "exec")


def test_directives_become_markdown(small: Tiny) -> None:
    text = words(notebook(small.root, "ot/three"))
    assert "# 3. Three *new*" in text
    assert (
        r"A price of \$5 and $\mathbb{E}X$, see One, (1.1) and Author (2000)." in text
    )
    assert "> **Theorem 3.1 (Tripling).** It triples:\n>\n" in text
    assert r"> $$ y = 3 \mathbb{E}x \tag{3.1} $$" in text
    assert "<summary>Proof</summary>\n\nBy Theorem 1.1.\n\n</details>" in text
    assert "> **Exercise 3.1 (Fold).** Fold it." in text
    assert "<summary>Solution</summary>\n\nTake $|x|$.\n\n</details>" in text
    assert "<summary>Solution, continued</summary>\n\nIt is six." in text
    assert r"| $\vert x\vert $ | `c` |" in text
    assert "From `pushforward/ot/one.py`:\n\n```python\ndef double(" in text
    assert text.endswith("## References\n\n- A. Author. Title. P, 2000.")


def test_cells_are_those_of_the_page_and_solutions_fold(small: Tiny) -> None:
    cells = [c for c in notebook(small.root, "ot/three").cells if c.cell_type == "code"]
    assert [c.source.splitlines()[-1] for c in cells[1:]] == [
        'check("thm:triple", triple(1), 3.0)',
        "triple(2)",
    ]
    assert [c.metadata.get("jupyter", {}) for c in cells[1:]] == [
        {},
        {"source_hidden": True},
    ]
    assert not any(c.outputs or c.execution_count for c in cells)


def test_the_page_offers_its_notebook(small: Tiny) -> None:
    assert 'href="../../_notebooks/ot/three.ipynb"' in small.html("book/ot/three")
    assert "_notebooks/" not in small.html("book/back/boards")
    assert "push-forward.pdf" not in small.html("book/ot/three")


def test_what_is_no_page_any_more_is_no_notebook(small: Tiny) -> None:
    gone = small.root / "_build/html/_notebooks/ot/gone.ipynb"
    gone.write_text("{}")
    old = gone.parents[1] / "pushforward-1.0-py3-none-any.whl"
    old.write_bytes(b"")
    assert small.build().status == 0
    assert not gone.exists()
    assert not old.exists()


def test_a_page_that_computes_no_more_is_no_notebook(small: Tiny) -> None:
    path = small.root / "_build/html/_notebooks/ot/two.ipynb"
    assert path.exists()
    cell = "```{code-cell} ipython3\nfrom pushforward.ot import triple\ntriple(1)\n```"
    with small.edited("book/ot/two.md", cell, "No more."):
        assert small.build().status == 0
        assert not path.exists()
        with zipfile.ZipFile(path.parents[1] / "notebooks.zip") as file:
            assert "push-forward/ot/two.ipynb" not in file.namelist()
    assert small.build().status == 0
    assert path.exists()


# Formulas of several lines.


@pytest.mark.parametrize(
    ("tex", "nowrap", "made"),
    [
        (r"a \\ b", False, r"\begin{split}a \\ b\end{split}"),
        (r"\begin{align} a \\ b \end{align}", True,
         r"\begin{align} a \\ b \end{align}"),
        (r"\begin{matrix} 1 \end{matrix} \\ y", False,
         r"\begin{split}\begin{matrix} 1 \end{matrix} \\ y\end{split}"),
        (r"f = \begin{cases} 0 \\ 1 \end{cases}", False,
         r"f = \begin{cases} 0 \\ 1 \end{cases}"),
    ],
)  # fmt: skip
def test_lines_are_parted_as_on_the_site(tex: str, nowrap: bool, made: str) -> None:
    node = nodes.math_block("", tex, nowrap=nowrap, ids=[])
    assert Writer("", {}, Numbers({}, {})).display(node) == made


# The wheel.


def test_a_wheel_is_the_same_bytes_twice_and_keeps_its_record(
    small: Tiny, tmp_path: Path
) -> None:
    wheels = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        wheels.append(Wheel(small.root).write(tmp_path / name))
    assert wheels[0].read_bytes() == wheels[1].read_bytes()
    before = wheels[0].stat().st_ino
    Wheel(small.root).write(tmp_path / "a")
    assert wheels[0].stat().st_ino == before  # the same: not written again
    with zipfile.ZipFile(wheels[0]) as wheel:
        record = wheel.read("pushforward-1.2.3.dist-info/RECORD").decode()
        rows = [row for row in csv.reader(io.StringIO(record)) if row[1]]
        assert {row[0] for row in rows} | {"pushforward-1.2.3.dist-info/RECORD"} == set(
            wheel.namelist()
        )
        for path, digest, size in rows:
            made = hashlib.sha256(wheel.read(path)).digest()
            found = base64.urlsafe_b64encode(made).decode().rstrip("=")
            assert (digest, int(size)) == (f"sha256={found}", len(wheel.read(path)))
    names = {row[0] for row in rows}
    assert {n for n in names if n.startswith("runs/")} == {"runs/ot/three/config.json"}
    assert {"pushforward/ot/one.py", "pushforward/images.gz"} <= names
    assert not any("egg-info" in n or "/." in n or "__pycache__" in n for n in names)


def test_the_wheel_has_what_the_package_needs() -> None:
    wheel = Wheel(ROOT)
    files = wheel.files()
    for path in (ROOT / "code/pushforward").rglob("*.py"):
        assert path.relative_to(ROOT / "code").as_posix() in files
    assert "pushforward/digits-images-idx3-ubyte.gz" in files
    made = sorted((ROOT / "code/runs").rglob("*.safetensors"))
    assert made
    assert all(p.relative_to(ROOT / "code").as_posix() in files for p in made)
    text = wheel.metadata()
    for need in wheel.project["dependencies"]:
        assert f"Requires-Dist: {need}\n" in text


# Away from the book.


@contextmanager
def elsewhere(folder: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """Make a fresh environment: all that is installed here, but not the package."""
    links = folder / "links"
    links.mkdir()
    for path in Path(nbformat.__file__).parents[1].iterdir():
        if not re.match(r"pushforward|__editable__", path.name):
            (links / path.name).symlink_to(path)
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", folder / "v"], check=True
    )
    python = folder / "v/bin/python"
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    yield python, env | {"PYTHONPATH": str(links), "PIP_NO_INDEX": "1"}


RUN = """
import nbformat, pathlib, sys
from nbclient import NotebookClient
path = pathlib.Path(sys.argv[1])
book = nbformat.read(path, 4)
last = "import pushforward; print(pushforward.__file__)"
book.cells.append(nbformat.v4.new_code_cell(last))
quiet = ["--log-level=ERROR"]
NotebookClient(book, timeout=600, resources={"metadata": {"path": str(path.parent)}},
               extra_arguments=quiet).execute()
print(book.cells[-1].outputs[0].text.strip())
"""


def ran(folder: Path, name: str) -> subprocess.CompletedProcess[str]:
    """Unpack notebooks.zip of a site and run one there, as its reader would."""
    with elsewhere(folder) as (python, env):
        return subprocess.run(
            [python, "-c", RUN, folder / f"push-forward/{name}.ipynb"],
            env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip


def unpacked(site: Path, folder: Path) -> None:
    with zipfile.ZipFile(site / "_notebooks/notebooks.zip") as file:
        file.extractall(folder)


def test_a_notebook_installs_the_wheel_beside_it_and_runs(
    small: Tiny, tmp_path: Path
) -> None:
    unpacked(small.root / "_build/html", tmp_path)
    done = ran(tmp_path, "ot/three")
    assert done.returncode == 0, done.stdout[-3000:]
    place = Path(done.stdout.strip().splitlines()[-1])
    assert place.is_relative_to(tmp_path / "v")


def test_without_a_wheel_the_first_cell_says_where_to_get_it(
    small: Tiny, tmp_path: Path
) -> None:
    unpacked(small.root / "_build/html", tmp_path)
    (tmp_path / "push-forward/pushforward-1.2.3-py3-none-any.whl").unlink()
    done = ran(tmp_path, "ot/three")
    assert done.returncode != 0
    assert "Put pushforward-1.2.3-py3-none-any.whl into" in done.stdout
    assert "the book's site" in done.stdout


@pytest.mark.slow
def test_a_notebook_of_the_book_runs_away_from_it(built: str, tmp_path: Path) -> None:
    """With the whole package, from its wheel, and nothing of this folder."""
    unpacked(SITE, tmp_path)
    done = ran(tmp_path, "index")
    assert done.returncode == 0, done.stdout[-3000:]
    assert Path(done.stdout.strip().splitlines()[-1]).is_relative_to(tmp_path / "v")


@pytest.mark.slow
def test_every_page_with_code_is_a_valid_notebook(built: str) -> None:
    pages = [Page.read(ROOT, path) for path in sorted((ROOT / "book").rglob("*.md"))]
    kept = [p for p in pages if p.executed and p.cells
            and (SITE / f"{p.name}.html").exists()]  # fmt: skip
    assert len(kept) > 30
    inside = zipfile.ZipFile(NOTEBOOKS / "notebooks.zip").namelist()
    for page in kept:
        name = page.name.removeprefix("book/")
        made = notebook(ROOT, name)
        cells = [c.source for c in made.cells if c.cell_type == "code"]
        assert [s.split() for s in cells[1:]] == [
            "\n".join(cell.body).split() for cell in page.cells
        ], name
        assert f"push-forward/{name}.ipynb" in inside
        text = re.sub(r"```.*?```|`[^`]*`", "", words(made), flags=re.S)
        assert not re.search(r"\{(prf:)?(ref|eq|doc|cite:?[tp]?)\}", text), name
        left = [m for m in TABLE if re.search(rf"\\{m}(?![A-Za-z])", text)]
        assert not left, (name, left)
        assert "??" not in text
    assert len([n for n in inside if n.endswith(".ipynb")]) == len(kept)


# Launch buttons.


def config(url: str) -> SimpleNamespace:
    return SimpleNamespace(press_repository=url)


def test_a_repository_is_read_from_its_address() -> None:
    assert Repository.of(config("")) is None
    found = Repository.of(config("https://github.com/some-one/book.git/"))
    assert found == (
        "https://github.com/some-one/book",
        "github.com",
        "some-one",
        "book",
    )
    assert found.provider == "github"
    assert Repository.of(config("https://codeberg.org/a/b")).provider == ""
    assert Repository.of(config("https://gitlab.com/group/sub/b")).owner == "group/sub"
    for wrong in ("github.com/a/b", "https://github.com/a", "git@github.com:a/b"):
        with pytest.raises(
            ConfigError, match=r"repository\.url in _config\.yml must be"
        ):
            Repository.of(config(wrong))


@contextmanager
def published(book: Tiny, url: str) -> Iterator[str]:
    """Build a book with a repository; yields what one of its pages says."""
    before = (book.root / "_config.yml").read_text()
    book.write("_config.yml", before.replace('  url: ""', f'  url: "{url}"'))
    made = book.build()
    book.write("_config.yml", before)
    assert made.status == 0, made.said
    yield book.html("book/ot/three")


BUTTONS = ("colab", "binder", "source-repository", "source-edit", "source-issues")


def test_no_repository_no_buttons(small: Tiny) -> None:
    assert small.build().status == 0
    page = small.html("book/ot/three")
    assert not [name for name in BUTTONS if name in page]


def test_a_repository_on_github_brings_every_button(small: Tiny) -> None:
    with published(small, "https://github.com/me/book") as page:
        place = "me/book/blob/notebooks/ot/three.ipynb"
        assert f"https://colab.research.google.com/github/{place}" in page
        binder = "https://mybinder.org/v2/gh/me/book/notebooks?urlpath=lab/tree"
        assert f"{binder}/ot/three.ipynb" in page
        assert "https://github.com/me/book/edit/main/book/ot/three.md" in page
        assert "https://github.com/me/book/issues/new" in page
        assert "colab" not in small.html("book/back/boards")
        first = notebook(small.root, "ot/three").cells[0].source
        assert 'ADDRESS = "git+https://github.com/me/book@v1.2.3"' in first


def test_a_repository_on_another_host_is_linked_and_no_more(small: Tiny) -> None:
    with published(small, "https://code.example.org/me/book") as page:
        assert 'href="https://code.example.org/me/book"' in page
        assert not [name for name in BUTTONS if name in page]


def test_with_an_address_of_the_site_notebooks_link_to_it(small: Tiny) -> None:
    with small.edited("_config.yml", 'baseurl: ""', 'baseurl: "https://a.example/b/"'):
        assert small.build().status == 0
        made = notebook(small.root, "ot/three")
        address = "https://a.example/b/_notebooks/pushforward-1.2.3-py3-none-any.whl"
        assert f'ADDRESS = "{address}"' in made.cells[0].source
        assert "[One](https://a.example/b/book/ot/one.html)" in words(made)
