"""Executed checks: two truths compared, with a line in the page and a record.

    check("thm:tweedie", left, right, atol=1e-10)         numbers that must agree
    check("thm:kr", mean, exact, se=standard_error)       within 4 standard errors
    check("prop:bound", left, "<=", right)                an inequality
    measure("kw13-nll", value, sd=sd, n=3)                a row of the ledger

A check that fails raises :class:`CheckError`, so that the page fails, so that
the book does not build.  The record travels in the output's metadata, under the
key ``pushforward``; the book's extension collects it.
"""

import html
import math
import sys
from typing import Any

import torch
from torch import Tensor

__all__ = ["CheckError", "check", "measure"]

Number = float | int | Tensor | Any  # whatever torch.as_tensor takes
RELATIONS = ("==", "<=", ">=", "<", ">")


class CheckError(AssertionError):
    """Two truths disagree beyond the stated tolerance."""


def check(
    label: str,
    left: Number,
    relation: Number,
    right: Number | None = None,
    *,
    atol: float = 0.0,
    rtol: float = 0.0,
    se: Number | None = None,
    n: int | None = None,
    what: str = "",
) -> None:
    """Compare two truths about the statement ``label`` and say so in the page.

    ``check(label, left, right)`` asks for equality, ``check(label, left, "<=",
    right)`` for an inequality.  The tolerance is atol + rtol·|right| + 4·se,
    entry by entry, and the worst entry is shown.

    Args:
        label: Label of the theorem, proposition, lemma, corollary, equation or
            exercise that is tested.
        left: A number or an array.
        relation: One of ==, <=, >=, <, >; or the right side of an equality.
        right: A number or an array that broadcasts against ``left``.
        atol: Absolute tolerance, ≥ 0.
        rtol: Tolerance relative to ``right``, ≥ 0.
        se: Standard error of the difference (Monte Carlo); 4 are allowed.
        n: How many samples, points or cases stand behind the comparison.
        what: A few words: what is compared with what.

    Raises:
        CheckError: The two sides disagree, or one of them is not finite.
        ValueError: An unknown relation, or arrays that are empty or do not
            broadcast.
    """
    if right is None:
        relation, right = "==", relation
    if relation not in RELATIONS:
        raise ValueError(f"relation must be one of {RELATIONS}, got {relation!r}")
    a, b, s = array(left), array(right), array(0.0 if se is None else se)
    try:
        a, b, s = torch.broadcast_tensors(a, b, s)
    except RuntimeError as cause:
        shapes = ", ".join(str(tuple(t.shape)) for t in (a, b, s))
        raise ValueError(f"left, right and se do not broadcast: {shapes}") from cause
    if a.numel() == 0:
        raise ValueError(f"left must hold something to compare, got {tuple(a.shape)}")
    tolerance = atol + rtol * b.abs() + 4 * s
    error = excess(a, b, str(relation))
    slack = error - tolerance
    finite = a.isfinite() & b.isfinite() & tolerance.isfinite()
    worst = int(torch.where(finite, slack, math.inf).argmax())
    shown = [float(t.flatten()[worst]) for t in (a, b, error, tolerance)]
    strict_miss = relation in ("<", ">") and bool((slack == 0).any())
    passed = bool((finite & (slack <= 0)).all()) and not strict_miss
    record = {
        "kind": "check", "label": label, "relation": relation, "what": what,
        "left": shown[0], "right": shown[1], "error": shown[2],
        "tolerance": shown[3], "se": se is not None, "n": n, "passed": passed,
    }  # fmt: skip
    emit(check_line(record), record)
    if not passed:
        raise CheckError(
            f"{label}: {shown[0]:.10g} {relation} {shown[1]:.10g} fails, "
            f"error {shown[2]:.3g} beyond tolerance {shown[3]:.3g}"
        )


def measure(
    claim: str, value: float, *, sd: float | None = None, n: int | None = None
) -> None:
    """Report what this cell measured for a row of the ledger (claims.toml).

    Args:
        claim: Id of the row.
        value: The measured number, finite.
        sd: Standard deviation over repetitions, or the standard error of a mean.
        n: How many repetitions or samples.

    Raises:
        ValueError: The value is not finite.
    """
    value, sd = float(value), None if sd is None else float(sd)
    if not math.isfinite(value):
        raise ValueError(f"value of {claim} must be finite, got {value}")
    spread = "" if sd is None else f" ± {sd:.2g}"
    count = "" if n is None else f" (n = {n:,})"
    text = f"◆ {claim}: measured {value:.6g}{spread}{count}"
    record = {"kind": "measure", "claim": claim, "value": value, "sd": sd, "n": n}
    emit(text, record)


def array(x: Number) -> Tensor:
    """Return x as a float64 tensor on the CPU, without its gradient."""
    return torch.as_tensor(x).detach().to("cpu", torch.float64)


def excess(a: Tensor, b: Tensor, relation: str) -> Tensor:
    """Return by how much a relation is missed: |a − b|, or the signed part."""
    if relation == "==":
        return (a - b).abs()
    return a - b if relation[0] == "<" else b - a


def check_line(r: dict[str, Any]) -> str:
    """Return the line that the page shows for a record."""
    mark = "✓" if r["passed"] else "✗"
    unit = " = 4 s.e." if r["se"] else ""
    count = "" if r["n"] is None else f", n = {r['n']:,}"
    what = f" ({r['what']})" if r["what"] else ""
    sides = f"{r['left']:.6g} {r['relation']} {r['right']:.6g}"
    gap = "error" if r["relation"] == "==" else "excess"
    return (
        f"{mark} {r['label']}{what}: {sides}, "
        f"{gap} {r['error']:.1e}, tolerance {r['tolerance']:.1e}{unit}{count}"
    )


def emit(text: str, record: dict[str, Any], *, markup: str = "") -> None:
    """Show a line, or its markup, with a record as the output's metadata.

    Without a notebook around it (a script, a test) the plain text is printed.
    """
    from IPython.core.getipython import get_ipython
    from IPython.display import display

    if get_ipython() is None:
        sys.stdout.write(text + "\n")
        return
    css = "pf-check" if record.get("passed", True) else "pf-check pf-failed"
    markup = markup or f'<p class="{css}">{html.escape(text)}</p>'
    bundle = {"text/plain": text, "text/html": markup}
    display(bundle, raw=True, metadata={"pushforward": record})
