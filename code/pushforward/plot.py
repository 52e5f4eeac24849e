"""Pictures in one style, light and dark, never without alternative text.

    fig, axes = figure(1, 2)
    scatter(axes[0], x, color=BLUE)
    show(fig, alt="What one should see.")

A figure is drawn once.  ``show`` writes it as SVG on a transparent ground and
emits it twice: as drawn, and with ink and grid exchanged for their dark
counterparts.  The colours are those of Okabe and Ito, which colour-blind
readers tell apart; each reads on white and on black.
"""

import base64
import html
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from cycler import cycler
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import Collection
from matplotlib.colors import LinearSegmentedColormap, to_hex, to_rgba_array
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Annotation, Text
from torch import Tensor

from .check import emit
from .distributions import Law

__all__ = [
    "BLUE",
    "GREEN",
    "ORANGE",
    "PINK",
    "SHADES",
    "SKY",
    "VERMILION",
    "curve_label",
    "density",
    "figure",
    "image_grid",
    "scatter",
    "show",
]

BLUE, ORANGE, GREEN = "#0f7ec4", "#d88c00", "#009e73"
VERMILION, PINK, SKY = "#d55e00", "#c26a9d", "#3f9fd0"
INK, PALE = "#1b1f24", "#d3d7dc"  # on white
DARK_INK, DARK_PALE = "#e8eaed", "#3d444d"  # on black

# What of a drawing can be black.
INKED: dict[type[Artist], tuple[str, ...]] = {
    Text: ("color",),
    Line2D: ("color", "markeredgecolor", "markerfacecolor"),
    Patch: ("edgecolor", "facecolor"),
    Collection: ("edgecolor", "facecolor"),
}

# From transparent to blue: zero density shows the page, in either theme.
HEAT = LinearSegmentedColormap.from_list("heat", ["#0f7ec400", "#0f7ec4", "#d88c00"])
# From one colour to another through a third, none of them pale.
SHADES = LinearSegmentedColormap.from_list("shades", [BLUE, PINK, ORANGE])

STYLE: dict[Any, Any] = {
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 11,
    "axes.prop_cycle": cycler(
        color=[BLUE, ORANGE, GREEN, VERMILION, PINK, SKY], linewidth=[1.8] * 6
    ),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlesize": 11,
    "figure.facecolor": "none",
    "figure.constrained_layout.use": True,
    "font.size": 10.5,
    "grid.color": PALE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "mathtext.fontset": "cm",
    "savefig.facecolor": "none",
    "svg.fonttype": "path",
    "svg.hashsalt": "pushforward",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


@contextmanager
def style() -> Iterator[None]:
    """Draw in the book's style; the reader's own settings are left alone."""
    with mpl.rc_context(STYLE):
        yield


def figure(
    rows: int = 1, cols: int = 1, *, width: float = 7.0, height: float | None = None
) -> tuple[Figure, Any]:
    """Return an empty figure and its axes (one Axes, or an array of them).

    Args:
        rows: Rows of axes.
        cols: Columns of axes.
        width: In inches; the text column holds about 7.
        height: In inches; by default each row is 0.72 of a column, at most 3.4.
    """
    if height is None:
        height = rows * min(3.4, 0.72 * width / cols)
    with style():
        fig = Figure(figsize=(width, height))
        return fig, fig.subplots(rows, cols)


def show(fig: Figure, *, alt: str, caption: str = "") -> None:
    """Show a figure in the page, in light and in dark.

    Args:
        fig: From :func:`figure`.
        alt: What one should see, for those who do not see it; not empty.
        caption: A line below the picture.

    Raises:
        ValueError: ``alt`` is empty.
    """
    if not alt.strip():
        raise ValueError("alt must say in words what the figure shows, got ''")
    light = svg(fig)
    dark = light.replace(INK, DARK_INK).replace(PALE, DARK_PALE)
    width, height = (round(96 * inches) for inches in fig.get_size_inches())
    images = "".join(
        f'<img class="{css}" src="data:image/svg+xml;base64,{encoded(text)}" '
        f'alt="{html.escape(alt)}" width="{width}" height="{height}" '
        f'loading="lazy"{hide}>'
        for css, text, hide in (
            ("pf-light", light, ""),
            ("pf-dark", dark, ' style="display:none"'),
        )
    )
    legend = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    emit(
        f"[figure: {alt}]",
        {"kind": "figure", "alt": alt},
        markup=f'<figure class="pf-figure">{images}{legend}</figure>',
    )


def svg(fig: Figure) -> str:
    """Return the figure as SVG, the same text each time."""
    buffer = io.StringIO()
    with style():
        ink(fig)
        fig.savefig(buffer, format="svg", dpi=150, metadata={"Date": None})
    fig.set_layout_engine("none")  # a second layout would start from the first
    return buffer.getvalue()


def ink(fig: Figure) -> None:
    """Draw in the book's ink, on no ground, what is in matplotlib's own colours.

    Text, legends and colour bars are made after :func:`figure` returned, so they
    come in the reader's settings: black on white, illegible on the dark page.
    """
    for legend in fig.findobj(Legend):
        legend.set_frame_on(False)
    for ax in fig.axes:
        if to_hex(ax.get_facecolor()) == "#ffffff":
            ax.set_facecolor("none")
    for artist in [*fig.findobj(), *arrows(fig)]:
        for kind, parts in INKED.items():
            for part in parts if isinstance(artist, kind) else ():
                if black(getattr(artist, f"get_{part}")()):
                    getattr(artist, f"set_{part}")(INK)


def arrows(fig: Figure) -> list[Artist]:
    """Return the arrows of the annotations, which ``findobj`` does not see."""
    notes = fig.findobj(Annotation)
    return [a.arrow_patch for a in notes if a.arrow_patch is not None]


def black(color: Any) -> bool:
    """Tell whether a colour, or each of several, is black and not transparent."""
    rgba = to_rgba_array(color)
    return len(rgba) > 0 and bool((rgba[:, :3] == 0).all() and (rgba[:, 3] > 0).all())


def encoded(text: str) -> str:
    """Return text in base 64, as data addresses want it."""
    return base64.b64encode(text.encode()).decode()


def numbers(x: Tensor | Any) -> np.ndarray:
    """Return x as a NumPy array, whatever device or graph it comes from."""
    return x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)


def scatter(
    ax: Axes, x: Tensor, *, color: str = BLUE, size: float = 4.0, label: str = ""
) -> None:
    """Draw points x (n, 2), with transparency that suits their number."""
    if x.ndim != 2 or x.shape[1] != 2:
        raise ValueError(f"x must have shape (n, 2), got {tuple(x.shape)}")
    alpha = float(np.clip(40 / max(len(x), 1) ** 0.5, 0.15, 0.9))
    xy = numbers(x)
    ax.scatter(xy[:, 0], xy[:, 1], s=size, c=color, alpha=alpha, lw=0, label=label,
               rasterized=len(x) > 300)  # fmt: skip


def density(
    ax: Axes, law: Law, *, box: tuple[float, float, float, float], bins: int = 160
) -> None:
    """Draw the density of a law on R² as a heat map over box = (x₀, x₁, y₀, y₁)."""
    x0, x1, y0, y1 = box
    dtype = torch.get_default_dtype()
    xs = torch.linspace(x0, x1, bins, dtype=dtype)
    ys = torch.linspace(y0, y1, bins, dtype=dtype)
    grid = torch.cartesian_prod(ys, xs).flip(-1)
    with torch.no_grad():
        p = law.log_prob(grid).exp().reshape(bins, bins)
    ax.imshow(numbers(p), origin="lower", extent=box, cmap=HEAT, aspect="equal")
    ax.grid(False)


def curve_label(ax: Axes, x: float, y: float, text: str, color: str) -> None:
    """Write a label beside its curve, in its colour, in place of a legend."""
    ax.annotate(text, (x, y), xytext=(4, 3), textcoords="offset points", color=color)


def image_grid(
    x: Tensor,
    *,
    cols: int = 10,
    width: float = 7.0,
    limits: tuple[float, float] = (0, 1),
) -> Figure:
    """Return a figure of the images x (n, 1, h, w) or (n, 3, h, w), row by row.

    Args:
        x: The images.
        cols: Images in a row.
        width: Of the figure, in inches.
        limits: The values shown as black and as white.
    """
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise ValueError(f"x must have shape (n, 1 or 3, h, w), got {tuple(x.shape)}")
    n, c, h, w = x.shape
    rows = -(-n // cols)
    lo, hi = limits
    x = ((x.detach().cpu().float() - lo) / (hi - lo)).clamp(0, 1)
    sheet = torch.ones(rows * cols, c, h + 1, w + 1) * 0.5  # a grey seam
    sheet[:n, :, :h, :w] = x
    sheet = sheet.reshape(rows, cols, c, h + 1, w + 1).permute(0, 3, 1, 4, 2)
    sheet = sheet.reshape(rows * (h + 1), cols * (w + 1), c)
    with style():
        fig = Figure(figsize=(width, width * rows * (h + 1) / (cols * (w + 1))))
        ax = fig.subplots()
        ax.imshow(numbers(sheet if c == 3 else sheet[..., 0]), cmap="gray", vmin=0,
                  vmax=1, interpolation="nearest", aspect="auto")  # fmt: skip
        ax.axis("off")
    return fig
