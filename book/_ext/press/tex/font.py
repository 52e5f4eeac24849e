"""The font of the formulas, cut to what the book uses.

    python -m press.tex.font stix-two-math-latin-400-normal.woff2

writes book/_static/math.woff2 with the characters of the built pages and all
letters.  The whole font is in the npm package @fontsource/stix-two-math.
"""

import sys
import xml.etree.ElementTree as ET
from pathlib import Path

from fontTools import subset  # type: ignore[import-untyped]
from fontTools.misc.transform import Transform  # type: ignore[import-untyped]
from fontTools.pens.transformPen import TransformPen  # type: ignore[import-untyped]
from fontTools.pens.ttGlyphPen import TTGlyphPen  # type: ignore[import-untyped]
from fontTools.ttLib import TTFont  # type: ignore[import-untyped]

from .formulas import FONT, MATH
from .mathml import ITALICS, characters

ALWAYS = (
    {chr(code) for code in range(0x21, 0x7F)} | set(ITALICS) | set(ITALICS.values())
)
PRIME = Transform(1.5, 0, 0, 1.5, -30, -560)  # it is set as a superscript


def cut(source: Path, wanted: set[str]) -> TTFont:
    """Return a font with the wanted characters, and their larger forms."""
    font = TTFont(source)
    options = subset.Options(notdef_outline=True, hinting=False, name_IDs=[0, 5, 13])
    cutter = subset.Subsetter(options)
    cutter.populate(text="".join(wanted))
    cutter.subset(font)
    return font


def redraw(font: TTFont, glyph: str, by: Transform) -> None:
    """Redraw a glyph, moved and scaled."""
    glyphs = font.getGlyphSet()
    pen = TTGlyphPen(glyphs)
    glyphs[glyph].draw(TransformPen(pen, by))
    width, _ = font["hmtx"][glyph]
    font["glyf"][glyph] = drawn = pen.glyph()
    drawn.recalcBounds(font["glyf"])
    font["hmtx"][glyph] = (round(width * by.xx), drawn.xMin)


def even(font: TTFont, glyph: str) -> None:
    """Give all sizes of a glyph one width, since Chromium makes room for the widest."""
    variants = font["MATH"].table.MathVariants
    built = variants.VertGlyphConstruction[
        variants.VertGlyphCoverage.glyphs.index(glyph)
    ]
    sizes = {record.VariantGlyph for record in built.MathGlyphVariantRecord}
    parts = {part.glyph for part in built.GlyphAssembly.PartRecords}
    width = font["hmtx"][glyph][0]
    for other in sorted((sizes | parts) - {glyph}):
        redraw(font, other, Transform(width / font["hmtx"][other][0], 0, 0, 1, 0, 0))


def main(source: Path) -> None:
    """Cut the font for the pages that are built."""
    site = FONT.parents[2] / "_build/html"
    pages = [p.read_text(encoding="utf-8") for p in sorted(site.rglob("*.html"))]
    formulas = {formula for page in pages for formula in MATH.findall(page)}
    used = {c for f in formulas for c in characters(ET.fromstring(f))}
    font = cut(source, used | ALWAYS)
    redraw(font, font.getBestCmap()[0x2032], PRIME)
    even(font, font.getBestCmap()[ord("√")])
    font.flavor = "woff2"
    font.save(FONT)
    told = f"{len(font.getBestCmap())} characters, {FONT.stat().st_size} bytes"
    sys.stdout.write(told + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
