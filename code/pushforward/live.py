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

Value = Tensor | float | int | str | bool | Sequence[Any] | Mapping[str, Any]


def live(name: str, data: Mapping[str, Value], *, alt: str, caption: str = "") -> None:
    """Show the live figure ``name`` in the page, fed with ``data``.

    Args:
        name: Of a file of ``book/_static/live``.
        data: Tensors travel as 32-bit floats, everything else as JSON.
        alt: What one should see in its first state; not empty.
        caption: A line below the picture.

    Raises:
        ValueError: ``name`` is no name of a file, ``alt`` is empty, or a number is
            not finite.
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
        ValueError: A number is not finite.
    """
    if isinstance(value, Tensor):
        x = value.detach().to("cpu", torch.float32).contiguous()
        if not bool(x.isfinite().all()):
            raise ValueError("data must be finite, got a tensor that is not")
        data = base64.b64encode(x.numpy().tobytes()).decode("ascii")
        return {"shape": list(x.shape), "f32": data}
    if isinstance(value, Mapping):
        return {key: packed(entry) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [packed(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"data must be finite, got {value}")
    return json.loads(json.dumps(value))
