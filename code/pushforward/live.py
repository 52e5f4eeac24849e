"""Live figures: what a page gives to the figures that its reader moves.

    live("coupling", {"x": x, "y": y}, alt="…", caption="…")

The numbers come from the cell: laws, samples, weights of the network that the page
trained.  They travel in the output, and the book's extension puts the figure in its
place: its first state as a picture, which stands where scripts are off and in print.
In the browser ``book/_static/live/<name>.js`` computes and draws every other state
from the same numbers.
"""

import base64
import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .check import emit

__all__ = ["live", "packed"]

WHOLE = 2**24  # up to here every integer is a 32-bit float

Value = Tensor | float | int | str | bool | Sequence[Any] | Mapping[str, Any]


def live(name: str, data: Mapping[str, Value], *, alt: str, caption: str = "") -> None:
    """Show the live figure ``name`` in the page, fed with ``data``.

    Args:
        name: Of a file of ``book/_static/live``.
        data: Tensors travel as 32-bit floats, numbers, words, lists and mappings as
            JSON; an array of NumPy is to be made a tensor first.
        alt: What one should see in its first state; not empty.
        caption: A line below the picture.

    Raises:
        ValueError: ``name`` is no name of a file, ``alt`` is empty, or ``data`` is
            not as above, not finite, or too large for 32-bit floats.
    """
    if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
        raise ValueError(f"name must be that of a live figure, got {name!r}")
    if not alt.strip():
        raise ValueError("alt must say in words what the figure shows, got ''")
    shown = {"name": name, "alt": alt, "caption": caption}
    text = f"[live figure on the site: {alt}]"
    inner = json.dumps({**shown, "data": packed(data)}).replace("<", "\\u003c")
    script = f'<script type="application/json" data-live>{inner}</script>'
    markup = f"<p>{html.escape(text)}</p>{script}"
    emit(text, {"kind": "live", **shown}, markup=markup)


def packed(value: Value) -> Any:
    """Return a value as JSON takes it; a tensor as its shape and its bytes.

    Raises:
        ValueError: It cannot travel: see :func:`live`.
    """
    if isinstance(value, Tensor):
        data = base64.b64encode(floats(value)).decode("ascii")
        return {"shape": list(value.shape), "f32": data}
    if isinstance(value, Mapping):
        return {key: packed(entry) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [packed(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"data must be finite, got {value}")
    if isinstance(value, str | float | int):
        return value
    raise ValueError(
        "data must be tensors, numbers, words, lists or mappings, got "
        f"{type(value).__name__}"
    )


def floats(x: Tensor) -> bytes:
    """Return the entries of a tensor, in their order, as 32-bit floats.

    Raises:
        ValueError: An entry is not finite, or is not kept by a 32-bit float.
    """
    x = x.detach().cpu()
    if x.is_complex():
        raise ValueError(f"data must be real, got a tensor of {x.dtype}")
    if not bool(x.isfinite().all()):
        raise ValueError("data must be finite, got a tensor that is not")
    limit = torch.finfo(torch.float32).max if x.is_floating_point() else WHOLE
    largest = float(x.double().abs().max()) if x.numel() else 0.0
    if largest > limit:
        raise ValueError(f"data must fit into 32-bit floats, got {largest:g}")
    return x.float().numpy().astype("<f4").tobytes()
