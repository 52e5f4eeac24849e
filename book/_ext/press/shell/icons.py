"""The few icons that the pages use, as masks in the style sheet.

The theme draws its icons by a script of 1.5 MB. Their outlines are taken from that
script, which is installed with the theme, and the colour of the text shows through.
Font Awesome Free's icons are under CC BY 4.0; the sheet names them.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

CREDIT = (
    "/*! Icons: Font Awesome Free by @fontawesome, https://fontawesome.com, "
    "licence CC BY 4.0 (https://fontawesome.com/license/free) */"
)
# Words that say how an icon is drawn, not which.
MANNERS = {"fa-solid", "fa-regular", "fa-brands", "fa-lg", "fa-fw", "fa-sm", "fa-xs"}
DRAWN = ":is(.fa-solid,.fas,.fa-regular,.far,.fa-brands,.fab)"
BASE = (
    f"{DRAWN}{{display:inline-block;width:1em;height:1em;flex:none;"
    "vertical-align:-.125em;background:currentColor;"
    "-webkit-mask:var(--pf-icon) center/contain no-repeat;"
    "mask:var(--pf-icon) center/contain no-repeat}"
    f"@media (forced-colors:active){{{DRAWN}{{forced-color-adjust:none;"
    "background:ButtonText}}"
)


class Icon(NamedTuple):
    """An outline on a ground of so many units."""

    width: int
    height: int
    path: str

    def rule(self, name: str) -> str:
        """Return the icon as a rule of a style sheet."""
        picture = (
            "<svg xmlns='http://www.w3.org/2000/svg'"
            f" viewBox='0 0 {self.width} {self.height}'><path d='{self.path}'/></svg>"
        )
        data = quote(picture, safe=" ='/:,.-")
        return f'.{name}{{--pf-icon:url("data:image/svg+xml,{data}")}}'


def found(script: str, name: str) -> Icon | None:
    """Return an icon of Font Awesome's script: its solid form, the last of its name."""
    word = re.escape(name)
    pattern = rf'[{{,]"?{word}"?:\[(\d+),(\d+),\[[^\]]*\],"[0-9a-f]+","([^"]+)"\]'
    matches = re.findall(pattern, script)
    if not matches:
        return None
    width, height, path = matches[-1]
    return Icon(int(width), int(height), path)


def sheet(names: Iterable[str], script: Path) -> str:
    """Return the rules of the icons of these classes (``fa-sun``).

    Raises:
        ValueError: The theme has no such icon.
    """
    text = script.read_text(encoding="utf-8")
    rules = [CREDIT, BASE]
    for name in sorted({*names} - MANNERS):
        icon = found(text, name.removeprefix("fa-"))
        if icon is None:
            raise ValueError(f"Font Awesome has no icon {name!r}")
        rules.append(icon.rule(name))
    return "\n".join(rules)
