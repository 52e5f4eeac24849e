"""The whole book, built once, and a throw-away book to see the machinery at work."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "book/_ext"))

HEADER = """---
jupytext:
  text_representation: {extension: .md, format_name: myst}
kernelspec: {display_name: Python 3, language: python, name: python3}
---
"""

CHECK = '''"""Emits records as the real module does, without torch."""
import html
from IPython.display import display


def emit(text, record, css="pf-check"):
    markup = f'<p class="{css}">{html.escape(text)}</p>'
    display({"text/plain": text, "text/html": markup}, raw=True,
            metadata={"pushforward": record})


def check(label, left, right, what=""):
    error = abs(left - right)
    emit(f"{label}: {error}", {"kind": "check", "label": label, "relation": "==",
         "what": what, "left": left, "right": right, "error": error,
         "tolerance": 0.1, "se": False, "n": 3, "passed": error <= 0.1})
    if error > 0.1:
        raise AssertionError(f"{label}: {left} == {right} fails")


def measure(claim, value, sd=None, n=None):
    emit(f"{claim}: {value}", {"kind": "measure", "claim": claim, "value": value,
         "sd": sd, "n": n})
'''

FILES = {
    "requirements.txt": "a==1\n",
    "code/pushforward/__init__.py": "",
    "code/pushforward/check.py": CHECK,
    "code/pushforward/ot/__init__.py": (
        "from .one import double\nfrom .two import triple\n"
        '__all__ = ["double", "triple"]\n'
    ),
    "code/pushforward/ot/one.py": (
        '"""Doubles (eq:double)."""\n\n\ndef double(x: float, *, y=0) -> float:\n'
        '    """Return 2x (eq:double)."""\n    return 2 * x\n'
    ),
    "code/pushforward/ot/two.py": "def triple(x):\n    return 3 * x\n",
    "book/notation.md": (
        "# Notation\n\nSymbols of the book.\n\n"
        "| Symbol | Macro | Expansion |\n|---|---|---|\n"
        "| $\\E$ | `\\E` | `\\mathbb{E}` |\n"
    ),
    "book/references.bib": (
        "@book{author2000, author={Author, A.}, title={Title}, year={2000},"
        " publisher={P}}\n"
    ),
    "book/claims.toml": (
        '[[claim]]\nid = "c1"\npaper = "author2000"\nclaim = "Twice one is two."\n'
        'kind = "value"\npublished = 2.0\nmeasured = "page:ot/one"\nband = [1.9, 2.1]\n'
    ),
    "book/ot/one.md": HEADER
    + """# One

The first page {cite:p}`author2000`.

```{prf:theorem} Doubling
:label: thm:double
It doubles.
```

```{math}
:label: eq:double
y = 2x
```

```{code-cell} ipython3
from pushforward.check import check, measure
from pushforward.ot import double
print("ran one")
check("thm:double", double(1), 2.0, what="twice")
measure("c1", double(1.0))
```
""",
    "book/ot/two.md": HEADER
    + """# Two

The second page.

```{code-cell} ipython3
from pushforward.ot import triple
triple(1)
```
""",
    "book/back/boards.md": """# Boards

All there is. See {eq}`eq:double`.

```{checks}
```

```{ledger}
```

```{page-times}
```

```{runs}
```

## Reference

```{api}
```

```{bibliography}
```
""",
    "_toc.yml": """format: jb-book
root: book/notation
parts:
  - numbered: 2
    chapters:
      - file: book/ot/one
      - file: book/ot/two
  - caption: End
    chapters:
      - file: book/back/boards
""",
}


class Build(NamedTuple):
    """The exit status of a build, and all that it said."""

    status: int
    said: str

    @property
    def ran(self) -> list[str]:
        """The pages that it executed."""
        return sorted(re.findall(r"^executed book/(\S+) in", self.said, re.M))

    @property
    def written(self) -> list[str]:
        """The pages that it wrote."""
        found = re.findall(r"writing output\.\.\. \[.*?\] book/(\S+)", self.said)
        return sorted(found)


class Tiny:
    """A book in a folder: write files, build, look."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name, text in FILES.items():
            self.write(name, text)
        config = (ROOT / "_config.yml").read_text()
        config = config.replace("press: book/_ext", f"press: {ROOT / 'book/_ext'}")
        config = config.replace("[book/_static]", f"[{ROOT / 'book/_static'}]")
        self.write("_config.yml", config)

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    @contextmanager
    def edited(self, name: str, old: str, new: str) -> Iterator[None]:
        """Replace words in a file for a while."""
        text = (self.root / name).read_text()
        assert old in text
        self.write(name, text.replace(old, new))
        yield
        self.write(name, text)

    def build(self) -> Build:
        """Build the book as a reader would."""
        command = Path(sys.executable).with_name("jupyter-book")
        done = subprocess.run(
            [command, "build", ".", "-W", "--keep-going"],
            cwd=self.root,
            env={**os.environ, "PYTHONPATH": str(self.root / "code"), "NO_COLOR": "1"},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        return Build(done.returncode, re.sub(r"\x1b\[[0-9;]*m", "", done.stdout))

    def html(self, name: str) -> str:
        return (self.root / f"_build/html/{name}.html").read_text()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A throw-away book, built once."""
    book = Tiny(tmp_path_factory.mktemp("tiny"))
    first = book.build()
    assert first.status == 0, first.said
    assert first.ran == ["ot/one", "ot/two"]
    return book
