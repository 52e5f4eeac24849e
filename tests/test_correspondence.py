"""The rules of the house: names, layers, effects, labels, sizes of rooms.

Page ↔ module ↔ tests ↔ experiment ↔ run are found from one another's names, and
imports go down the layers.  All of it is read from the syntax trees.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BOOK, TESTS = ROOT / "book", ROOT / "tests"
CODE, EXPERIMENTS = ROOT / "code" / "pushforward", ROOT / "code" / "experiments"

# Lower layers first: a module imports its own layer and those below it.
LAYERS = [
    {"model", "distributions", "nn", "ode", "files", "stream", "data"},
    {"objectives", "ot"},  # pure functions: know no network
    {"vae", "flows", "gans", "diffusion"},  # models: siblings may not see each other
    {"metrics", "train"},
    {"record", "runs", "plot", "live", "check", "cli"},
]
SHARED = LAYERS[0] | LAYERS[3] | LAYERS[4]
PURE, MODELS = LAYERS[1], LAYERS[2]
PARTS = PURE | MODELS
ONLY = {"matplotlib": {"plot"}, "argparse": {"cli"}, "urllib": {"files"}}
GLOBAL_STATE = {"manual_seed", "seed", "set_default_dtype", "set_num_threads",
                "filterwarnings", "simplefilter"}  # fmt: skip


def names(folder: Path, pattern: str) -> set[str]:
    """Paths under a folder, without extension: {'ot/sinkhorn', ...}."""
    found = (p.relative_to(folder).with_suffix("") for p in folder.rglob(pattern))
    return {p.as_posix() for p in found if not p.name.startswith(("_", "."))}


def modules() -> set[str]:
    return names(CODE, "*.py")


def chapters() -> set[str]:
    return {n for part in PARTS for n in names(BOOK, f"{part}/*.md")}


def text(module: str) -> str:
    return (CODE / f"{module}.py").read_text()


def imports(module: str) -> set[str]:
    """First names, inside the package, of what a module imports."""
    package = module.split("/")[:-1]
    found = set()
    for node in ast.walk(ast.parse(text(module))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            parts = [*base, *(node.module or "").split(".")]
            heads = [p for p in parts if p][:1] or [a.name for a in node.names]
            found.update(heads)
        elif isinstance(node, ast.ImportFrom) and node.module:
            head, *rest = node.module.split(".")
            found.update(rest[:1] if head == "pushforward" else [])
    return found


def outside(module: str) -> set[str]:
    """First names of the libraries that a module imports, wherever it does."""
    found = set()
    for node in ast.walk(ast.parse(text(module))):
        if isinstance(node, ast.Import):
            found.update(a.name.split(".")[0] for a in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found.add(node.module.split(".")[0])
    return found


def test_every_chapter_has_its_module_and_every_module_its_chapter() -> None:
    pages = {n for n in chapters() if not n.endswith("/index")}
    assert pages == {m for m in modules() if "/" in m}


def test_every_part_has_its_opening_page() -> None:
    assert {f"{part}/index" for part in PARTS} <= chapters()


def test_every_shared_module_belongs_to_a_layer() -> None:
    assert {m for m in modules() if "/" not in m} == SHARED


def test_every_module_has_its_tests() -> None:
    tested = {n.replace("test_", "") for n in names(TESTS, "test_*.py")}
    assert modules() <= tested


def test_every_experiment_is_that_of_a_module() -> None:
    assert names(EXPERIMENTS, "*.py") <= modules()


def test_code_is_a_source_folder_and_no_package() -> None:
    assert not (ROOT / "code" / "__init__.py").exists()


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_go_down(module: str) -> None:
    own = module.split("/")[0]
    rank = next(i for i, layer in enumerate(LAYERS) if own in layer)
    allowed = set().union(*LAYERS[: rank + 1])
    if own in MODELS:
        allowed -= MODELS - {own}
    assert imports(module) <= allowed


@pytest.mark.parametrize("module", sorted(modules()))
def test_the_package_never_imports_book_tests_or_experiments(module: str) -> None:
    assert not outside(module) & {"book", "tests", "experiments", "benchmarks"}


@pytest.mark.parametrize("library", ONLY)
def test_one_module_alone_knows(library: str) -> None:
    assert {m for m in modules() if library in outside(m)} <= ONLY[library]


@pytest.mark.parametrize("module", sorted(modules()))
def test_nothing_happens_at_import(module: str) -> None:
    """No call that seeds, filters, or sets a default stands at the top level."""
    top = [n for n in ast.parse(text(module)).body if isinstance(n, ast.Expr)]
    calls = [n.value.func for n in top if isinstance(n.value, ast.Call)]
    called = {f.attr for f in calls if isinstance(f, ast.Attribute)}
    assert not called & GLOBAL_STATE


@pytest.mark.parametrize("module", sorted(m for m in modules() if "/" in m))
def test_every_label_cited_in_a_module_is_on_its_page(module: str) -> None:
    page = (BOOK / f"{module}.md").read_text()
    cited = set(re.findall(r"\((eq:[\w-]+)\)", text(module)))
    labels = re.findall(r":label: (eq:[\w-]+)|\$\$ \((eq:[\w-]+)\)", page)
    assert cited <= {a or b for a, b in labels}


@pytest.mark.parametrize("chapter", sorted(c for c in chapters() if "index" not in c))
def test_every_numbered_equation_is_cited_by_code(chapter: str) -> None:
    """In the module, in its tests, or by a check of the page."""
    page = (BOOK / f"{chapter}.md").read_text()
    found = re.findall(r":label: (eq:[\w-]+)|\$\$ \((eq:[\w-]+)\)", page)
    part, name = chapter.split("/")
    code = text(chapter) + (TESTS / part / f"test_{name}.py").read_text()
    cited = set(re.findall(r"\((eq:[\w-]+)\)", code))
    cited |= set(re.findall(r'check\(\s*"(eq:[\w-]+)"', page))
    assert {a or b for a, b in found} <= cited


def module_of(statement: ast.ImportFrom | ast.Import) -> list[str]:
    """Names of the modules that an import statement of a page reaches."""
    if isinstance(statement, ast.ImportFrom):
        return [statement.module or ""]
    return [alias.name for alias in statement.names]


@pytest.mark.parametrize("page", sorted(names(BOOK, "*.md")))
def test_a_page_imports_no_drawing_and_defines_no_model(page: str) -> None:
    fence = re.compile(r"^```\{code-cell\}.*?\n(.*?)^```", re.S | re.M)
    options = re.compile(r"\A---\n.*?\n---\n|\A(:[\w-]+:[^\n]*\n)+", re.S)
    cells = fence.findall((BOOK / f"{page}.md").read_text())
    for cell in cells:
        for node in ast.walk(ast.parse(options.sub("", cell))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert not any(m.startswith("matplotlib") for m in module_of(node))
            if isinstance(node, ast.ClassDef):
                bases = {ast.unparse(b).split(".")[-1] for b in node.bases}
                assert not bases & {"Module", "Model", "Density"}
