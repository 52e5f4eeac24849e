"""The macros of the formulas, read from the tables of book/notation.md."""

import re

ROW = re.compile(r"^\|(.*)\|\s*$")
CODE = re.compile(r"^`(.+)`$")

Macro = str | list[str | int]


def macros(text: str) -> dict[str, Macro]:
    r"""Return TeX macros from every table with columns Macro and Expansion.

    Args:
        text: A Markdown page.  ``| $\E$ | `\E` | `\mathbb{E}` | …`` defines \E, and
            an expansion with #1, #2 makes a macro of as many arguments.

    Raises:
        ValueError: A macro is defined twice, or has no expansion.
    """
    found: dict[str, Macro] = {}
    columns: list[str] = []
    for line in text.splitlines():
        row = ROW.match(line)
        cells = [cell.strip() for cell in cells_of(row[1])] if row else []
        if not cells:
            columns = []
        elif not columns:
            columns = cells
        elif {"Macro", "Expansion"} <= set(columns):
            add(found, dict(zip(columns, cells, strict=False)))
    return found


def cells_of(row: str) -> list[str]:
    r"""Split a table row at its bars, but not at escaped ones (``\|``)."""
    return re.split(r"(?<!\\)\|", row)


def add(found: dict[str, Macro], row: dict[str, str]) -> None:
    """Add the macro of one row, if it has one."""
    name, expansion = CODE.match(row["Macro"]), CODE.match(row["Expansion"])
    if not name:
        return
    key = name[1].lstrip("\\")
    if key in found:
        raise ValueError(f"macro {name[1]} is defined twice")
    if not expansion:
        raise ValueError(f"macro {name[1]} has no expansion in backticks")
    count = max([int(k) for k in re.findall(r"#(\d)", expansion[1])], default=0)
    found[key] = [expansion[1], count] if count else expansion[1]
