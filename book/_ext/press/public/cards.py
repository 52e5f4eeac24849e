"""Social cards: a page's title above one of its figures, 1200 × 630, as PNG.

Whoever shares a page sees its card.  The words are set by resvg in the typefaces
that come with matplotlib, so that every machine draws the same card; a card is
named by what it shows, so that it is drawn once.
"""

import html
import io
import re
from pathlib import Path

import matplotlib
import resvg_py
from PIL import Image, ImageFont

from ..files import sha, written

WIDTH, HEIGHT, MARGIN = 1200, 630, 72
FIGURE = (WIDTH - 2 * MARGIN, 360)  # the room for the picture
COLOURS = (64, 32)  # of the palette: fewer where the card is heavy
HEAVIEST = 60_000  # bytes
LIGHT = re.compile(
    r'<img\b[^>]*\bclass="pf-light"[^>]*\bsrc="([^"]+\.(?:svg|png))"[^>]*'
    r'\bwidth="(\d+)" height="(\d+)"'
)
WIDE = 1.4  # width over height of a figure that suits a card
FONTS = Path(matplotlib.get_data_path()) / "fonts/ttf"
FACES = ["STIXGeneral.ttf", "STIXGeneralBol.ttf", "DejaVuSans.ttf"]

CARD = """<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}">
<rect width="100%" height="100%" fill="#ffffff"/>
<rect width="100%" height="12" fill="#0f7ec4"/>
<rect x="66.67%" width="33.33%" height="12" fill="#d88c00"/>
<g font-family="DejaVu Sans" font-size="25" fill="#59636e">
<text x="{left}" y="84">{part}</text>
<text x="{right}" y="84" text-anchor="end" fill="#0f6aa6">{book}</text>
</g>
<text x="70" y="{base}" font-family="STIXGeneral" font-weight="bold"
 font-size="{size}" fill="#1b1f24">{title}</text>
</svg>"""


def pictures(body: str, page: Path) -> list[Path]:
    """Return the figures in a page's HTML that are wide enough, in their order."""
    return [
        file
        for source, width, height in LIGHT.findall(body)
        if int(width) >= WIDE * int(height)
        and (file := (page.parent / source).resolve()).exists()
    ]


def card(
    folder: Path, name: str, words: tuple[str, str, str], figures: list[Path]
) -> Path:
    """Draw the card of a page, unless it lies there; return its file.

    Args:
        folder: Where the cards lie.
        name: Of the page.
        words: Title of the page, its part, title of the book.
        figures: SVG or PNG; the first that makes a light card is drawn, or the last.
    """
    told = repr((CARD, FIGURE, COLOURS, HEAVIEST, words)).encode()
    key = sha(told + b"".join(figure.read_bytes() for figure in figures))
    file = folder / f"{short(name)}-{key[:10]}.png"
    if not file.exists():
        for old in folder.glob(f"{short(name)}-{'?' * 10}.png"):
            old.unlink()
        written(file, light(words, figures))
    return file


def short(name: str) -> str:
    """Return how the file of a page's card begins."""
    return name.removeprefix("book/").replace("/", "-")


def light(words: tuple[str, str, str], figures: list[Path]) -> bytes:
    """Return the first card that is light enough, or the last, as PNG."""
    data = b""
    for figure in figures:
        for colours in COLOURS:
            out = io.BytesIO()
            flat = drawn(words, figure).quantize(colours, dither=Image.Dither.NONE)
            flat.save(out, "PNG", optimize=True)
            data = out.getvalue()
            if len(data) <= HEAVIEST:
                return data
    return data


def drawn(words: tuple[str, str, str], figure: Path) -> Image.Image:
    """Return a card: the words, and the figure below."""
    image = opened(rendered(lettering(*words)))
    below = fitted(figure)
    left = (WIDTH - below.width) // 2
    top = HEIGHT - 36 - FIGURE[1] + (FIGURE[1] - below.height) // 2
    image.paste(below, (left, top), below)
    return image.convert("RGB")


def lettering(title: str, part: str, book: str) -> str:
    """Return the card without its figure, as SVG; a long title is set smaller."""
    face = ImageFont.truetype(FONTS / FACES[1], 100)
    size = min(92.0, 100 * FIGURE[0] / face.getlength(title))
    told = {"title": title, "part": part, "book": book}
    escaped = {key: html.escape(value) for key, value in told.items()}
    room = {"width": WIDTH, "height": HEIGHT, "left": MARGIN, "right": WIDTH - MARGIN}
    lines = {"size": round(size, 1), "base": round(136 + size / 2)}
    return CARD.format(**escaped, **room, **lines)


def fitted(figure: Path) -> Image.Image:
    """Return a figure as large as its room allows, on a transparent ground."""
    if figure.suffix == ".png":
        image = opened(figure.read_bytes())
    else:
        image = opened(rendered(figure.read_text(encoding="utf-8"), FIGURE[0]))
    if image.height > FIGURE[1]:
        width = round(image.width * FIGURE[1] / image.height)
        image = image.resize((width, FIGURE[1]), Image.Resampling.LANCZOS)
    return image


def rendered(svg: str, width: int | None = None) -> bytes:
    """Return a picture as PNG, with the faces of this file and no others."""
    faces = [str(FONTS / face) for face in FACES]
    return resvg_py.svg_to_bytes(
        svg_string=svg, width=width, dpi=96, font_files=faces, skip_system_fonts=True
    )


def opened(data: bytes) -> Image.Image:
    """Return the picture in a PNG file's bytes."""
    return Image.open(io.BytesIO(data)).convert("RGBA")
