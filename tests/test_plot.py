"""Figures say what they show, read in the dark, and leave the reader's settings."""

import base64
import re
from typing import Any

import matplotlib as mpl
import pytest
import torch
from matplotlib.figure import Figure
from torch import Generator

from pushforward import check, plot
from pushforward.distributions import StandardNormal, ring
from pushforward.plot import (
    BLUE,
    curve_label,
    density,
    figure,
    image_grid,
    scatter,
    show,
)

IMAGE = re.compile(
    r'<img class="pf-(light|dark)" src="data:image/svg\+xml;base64,(\S+?)"'
)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any], str]]:
    """Collect what the page would show."""
    seen: list[tuple[str, dict[str, Any], str]] = []

    def emit(text: str, record: dict[str, Any], *, markup: str = "") -> None:
        seen.append((text, record, markup))

    monkeypatch.setattr(plot, "emit", emit)
    return seen


def busy() -> Figure:
    """Return a figure with all that a page draws after ``figure`` returned."""
    fig, (left, right) = figure(1, 2)
    left.plot([0, 1], [0, 1], label="line")
    left.plot([0, 1], [1, 0], "ko")
    left.set_title("title")
    left.set(xlabel="$x$", ylabel="words")
    left.text(0.5, 0.5, "text")
    left.annotate("", (0, 0), xytext=(1, 1), arrowprops={"arrowstyle": "->"})
    left.axhline(0.5, color="black")
    left.fill_between([0, 1], [0, 1], color="k")
    left.set_xticks([0, 0.5, 1])
    left.legend()
    fig.colorbar(right.imshow(torch.eye(3).numpy(), cmap=plot.HEAT), ax=right)
    right.set_xlabel("$y$")
    fig.suptitle("all")
    return fig


def images(markup: str) -> dict[str, str]:
    return {k: base64.b64decode(v).decode() for k, v in IMAGE.findall(markup)}


def test_show_demands_words() -> None:
    fig, _ = figure()
    with pytest.raises(ValueError, match="alt must say in words"):
        show(fig, alt=" ")
    with pytest.raises(TypeError):
        show(fig)  # type: ignore[call-arg]


def test_show_emits_both_themes_with_their_words(
    shown: list[tuple[str, dict[str, Any], str]],
) -> None:
    show(busy(), alt='A "line" & more', caption="a < b")
    ((text, record, markup),) = shown
    assert record == {"kind": "figure", "alt": 'A "line" & more'}
    assert text == '[figure: A "line" & more]'
    assert markup.count('alt="A &quot;line&quot; &amp; more"') == 2
    assert "<figcaption>a &lt; b</figcaption>" in markup
    assert set(images(markup)) == {"light", "dark"}


def test_the_dark_figure_has_no_ink_of_the_light_one(
    shown: list[tuple[str, dict[str, Any], str]],
) -> None:
    """Nor matplotlib's black, nor a white box; colours of data are the same."""
    show(busy(), alt="busy")
    both = images(shown[0][2])
    for colour in (plot.INK, plot.PALE, "#000000", "#ffffff"):
        assert colour not in both["dark"]
    for colour in (plot.DARK_INK, plot.DARK_PALE, "#000000"):
        assert colour not in both["light"]
    count = {k: text.count(BLUE) for k, text in both.items()}
    assert count["dark"] == count["light"] > 0
    assert both["dark"].count(plot.DARK_INK) == both["light"].count(plot.INK) > 20


def test_text_is_inked_because_svg_omits_black() -> None:
    """Black is the default fill of SVG and is not written: it must not be left."""
    fig = busy()
    plot.svg(fig)
    words = [t for t in fig.findobj(mpl.text.Text) if t.get_text()]
    assert len(words) > 10
    assert {t.get_color() for t in words} == {plot.INK}


def test_a_figure_is_the_same_text_each_time() -> None:
    fig = busy()
    first = plot.svg(fig)
    assert plot.svg(fig) == first
    assert plot.svg(busy()) == first
    assert "<dc:date>" not in first


def test_the_readers_settings_are_left_alone(
    shown: list[tuple[str, dict[str, Any], str]],
) -> None:
    with mpl.rc_context({"font.size": 7.0, "axes.grid": False}):
        before = dict(mpl.rcParams)
        show(busy(), alt="busy")
        image_grid(torch.zeros(3, 1, 4, 4))
        assert dict(mpl.rcParams) == before


def test_pyplot_holds_no_figure() -> None:
    import matplotlib.pyplot as plt

    figure(2, 2)
    assert plt.get_fignums() == []


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (1, 3), (2, 2)])
def test_a_figure_fits_the_column(rows: int, cols: int) -> None:
    fig, _ = figure(rows, cols)
    assert fig.get_size_inches()[0] == 7.0
    assert len(fig.axes) == rows * cols
    assert figure(rows, cols, width=5.0, height=2.0)[0].get_size_inches()[1] == 2.0


def test_scatter_draws_the_points_it_is_given(rng: Generator) -> None:
    x = torch.randn(50, 2, generator=rng, requires_grad=True)
    _, ax = figure()
    scatter(ax, x, color=BLUE, label="points")
    drawn = torch.as_tensor(ax.collections[0].get_offsets().data)
    torch.testing.assert_close(drawn, x.detach())
    for bad in (torch.zeros(3), torch.zeros(3, 3)):
        with pytest.raises(ValueError, match="x must have shape"):
            scatter(ax, bad)


def test_density_puts_each_value_at_its_place() -> None:
    """A law that is not symmetric, so that a transposed picture shows."""
    law, box = ring(k=3), (-3.0, 5.0, -4.0, 4.0)
    _, ax = figure()
    density(ax, law, box=box, bins=41)
    picture = ax.images[0]
    assert tuple(picture.get_extent()) == box
    values = torch.as_tensor(picture.get_array().data)
    for i, j in ((3, 30), (20, 25), (35, 8)):
        x = torch.tensor([[-3 + 8 * j / 40, -4 + 8 * i / 40]])
        torch.testing.assert_close(values[i, j], law.log_prob(x).exp()[0])


def test_density_of_the_normal_peaks_in_the_middle() -> None:
    _, ax = figure()
    density(ax, StandardNormal(2), box=(-2, 2, -2, 2), bins=21)
    values = torch.as_tensor(ax.images[0].get_array().data)
    assert divmod(int(values.argmax()), 21) == (10, 10)


def test_curve_label_is_beside_its_curve() -> None:
    _, ax = figure()
    curve_label(ax, 0.2, 0.7, "name", BLUE)
    (note,) = ax.texts
    assert (note.xy, note.get_text(), note.get_color()) == ((0.2, 0.7), "name", BLUE)


@pytest.mark.parametrize("channels", [1, 3])
def test_image_grid_puts_each_image_at_its_place(channels: int, rng: Generator) -> None:
    """Row by row, on a grey ground, limits mapped to black and white."""
    x = torch.rand(7, channels, 4, 5, generator=rng)
    fig = image_grid(2 * x - 1, cols=3, limits=(-1, 1))
    sheet = torch.as_tensor(fig.axes[0].images[0].get_array().data)
    sheet = sheet.reshape(*sheet.shape[:2], channels)
    assert sheet.shape[:2] == (3 * 5, 3 * 6)
    for k in range(7):
        i, j = 5 * (k // 3), 6 * (k % 3)
        tile = sheet[i : i + 4, j : j + 5].permute(2, 0, 1).double()
        torch.testing.assert_close(tile, x[k], rtol=0, atol=1e-6)
    assert (sheet[10:, 6:] == 0.5).all()


@pytest.mark.parametrize("shape", [(3, 4, 4), (3, 2, 4, 4)])
def test_image_grid_wants_images(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="x must have shape"):
        image_grid(torch.zeros(shape))


def test_show_goes_through_the_same_door_as_a_check() -> None:
    assert plot.emit is check.emit
