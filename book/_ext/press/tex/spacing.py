"""Space and size in MathML as TeX has them, where Temml or MathML Core differ."""

import xml.etree.ElementTree as ET

BINARY = set("=<>≤≥≪≫≲≳≈≃≅≡≠∼∝≔≕→←↦⇒⇐⇔⟹⟸⟺⟶∈∉⊂⊆⪯⪰+−±∓×⋅∘∗∣∖/,;:")
SCRIPTS = ("msub", "msup", "msubsup", "munder", "mover", "munderover")
ORDINARY = ("mi", "mn", "mfrac", "mstyle", "msqrt", "mtext", *SCRIPTS)
TALL = ("mfrac", "mtable", "msqrt", "mroot", "munder", "munderover", "menclose")
LARGE = set("∑∏∫∬⋃⋂⨁")
DOTS = ("…", "⋯")
THIN, MEDIUM = "0.1667em", "0.2222em"
APPLIED = "\u2061"  # the invisible mark after the name of a function


def spaced(root: ET.Element) -> None:
    """Mend a formula in place."""
    for parent in root.iter():
        mend_accent(parent)
        tighten_scripts(parent)
        keep_small(parent)
        space_dots(parent)
        space_names(parent)


def mend_accent(parent: ET.Element) -> None:
    """Give a mover its two children; let a hat grow by the font's own glyphs."""
    if parent.tag == "mover" and len(parent) > 2:
        row = ET.Element("mrow")
        row.extend(c for c in parent[:-1] if c.tag != "mspace" and c.text != APPLIED)
        parent[:] = [row, parent[-1]]
    if parent.get("class", "").startswith("tml-hat"):
        parent.text = "\u0302"
        del parent.attrib["class"]


def tighten_scripts(parent: ET.Element) -> None:
    """Drop the space around relations and operators in indices and exponents."""
    if parent.tag not in SCRIPTS:
        return
    for script in parent[1:]:
        for child in script.iter("mo"):
            if child is not script and child.text in BINARY | set(DOTS):
                child.set("lspace", "0")
                child.set("rspace", "0")


def keep_small(parent: ET.Element) -> None:
    """Do not stretch the fences of a content that TeX finds low enough."""
    for child in parent:
        if child.get("minsize") and child.text in ("|", "‖", "/"):
            child.set("lspace", "0")
            child.set("rspace", "0")
    fences = [c for c in parent if c.tag == "mo" and c.get("stretchy") == "true"]
    if len(fences) < 2 or fences[0] is not parent[0] or fences[-1] is not parent[-1]:
        return
    inside = [e for child in parent if child not in fences for e in child.iter()]
    if not any(e.tag in TALL or e.text in LARGE for e in inside):
        for fence in fences:
            fence.set("stretchy", "false")


def space_dots(parent: ET.Element) -> None:
    """Set dots close to commas and operators, with a thin space beside letters."""
    for before, child, after in neighbours(parent):
        if child.tag != "mo" or "lspace" in child.attrib:
            continue
        if child.text == "∘":
            child.set("lspace", MEDIUM)
            child.set("rspace", MEDIUM)
        if child.text in DOTS:
            for side, other in (("lspace", before), ("rspace", after)):
                plain = other is None or other.tag in ("mo", "mspace")
                child.set(side, "0" if plain else THIN)


def space_names(parent: ET.Element) -> None:
    """Part the name of a function from a letter before it, not from a relation."""
    if parent.tag not in ("mrow", "math", "semantics", "mtd", "mstyle"):
        return
    made: list[ET.Element] = []
    for before, child, after in neighbours(parent):
        if is_name(child, after) and before is not None and is_ordinary(before):
            made.append(ET.Element("mspace", width=THIN))
        useless = child.tag == "mspace" and child.get("width") == THIN
        applied = before is not None and before.text == APPLIED
        if not (useless and applied and ends(after)):
            made.append(child)
        if names(child) and after is not None and after.text in ("|", "‖"):
            made.append(ET.Element("mspace", width=THIN))
    parent[:] = made


def neighbours(
    parent: ET.Element,
) -> list[tuple[ET.Element | None, ET.Element, ET.Element | None]]:
    """Return each child with the one before it and the one after it."""
    children: list[ET.Element | None] = [None, *parent, None]
    return [(children[k], child, children[k + 2]) for k, child in enumerate(parent)]


def is_name(child: ET.Element, after: ET.Element | None) -> bool:
    """Return whether an element is, or begins with, the name of a function."""
    if child.tag == "mrow" and len(child) > 1:
        return is_name(child[0], child[1])
    return after is not None and after.text == APPLIED and child.tag != "mrow"


def names(child: ET.Element) -> bool:
    """Return whether an element is the name of a function without a space after."""
    return child.tag == "mrow" and len(child) > 1 and child[-1].text == APPLIED


def is_ordinary(child: ET.Element) -> bool:
    """Return whether TeX takes an element for a letter or a closing fence."""
    if child.tag == "mo":
        return child.get("form") == "postfix"
    if child.tag == "mrow":
        return len(child) > 0 and child[-1].tag != "mspace" and is_ordinary(child[-1])
    return child.tag in ORDINARY and child.text not in ("|", "‖")


def ends(after: ET.Element | None) -> bool:
    """Return whether what follows the name of a function is no argument."""
    if after is None:
        return False
    closes = after.tag == "mo" and after.get("form") == "postfix"
    return closes or (after.tag == "mo" and after.text in BINARY)
