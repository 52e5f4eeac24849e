"""Formulas without the book's own macros, for readers that do not know them."""

import re

from .macros import Macro

NAME = re.compile(r"\\(?:\\|([A-Za-z]+)\s*)")  # \\ ends a row: no name
WORD = re.compile(r"(?<!\\)(?:\\\\)*\\[A-Za-z]+$")
BRACE = re.compile(r"\\.|[{}]", re.S)
LIMIT = 10_000  # expansions in one formula


def expanded(tex: str, table: dict[str, Macro]) -> str:
    """Return a formula with every macro of the table expanded, to the last one.

    Raises:
        ValueError: A macro whose expansion names itself; an argument without end.
    """
    done, rest, left = "", tex, LIMIT
    while match := NAME.search(rest):
        name, after = match[1], rest[match.end() :]
        done += rest[: match.start()]
        if name not in table:
            done, rest = done + match[0], after
            continue
        left -= 1
        if not left:
            raise ValueError(f"the macro \\{name} expands without end")
        macro = table[name]
        text, count = (macro, 0) if isinstance(macro, str) else macro
        for k in range(int(count)):
            given, after = argument(after)
            text = str(text).replace(f"#{k + 1}", given)
        worded = WORD.search(str(text)) and after[:1].isalpha()
        rest = str(text) + (" " if worded else "") + after
    return done + rest


def argument(tex: str) -> tuple[str, str]:
    """Return the argument at the head of tex, and the rest.

    It is a group, a command or a sign.

    Raises:
        ValueError: A group that no brace closes.
    """
    tex = tex.lstrip()
    if not tex.startswith("{"):
        match = NAME.match(tex)
        end = match.end() if match else 1
        return tex[:end], tex[end:]
    depth = 0
    for sign in BRACE.finditer(tex):
        depth += {"{": 1, "}": -1}.get(sign[0], 0)
        if depth == 0:
            return tex[1 : sign.start()], tex[sign.end() :]
    raise ValueError(f"argument has no closing brace: {tex}")
