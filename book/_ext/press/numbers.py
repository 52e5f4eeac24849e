"""Numbers for people: 6 digits, a true minus, powers of ten as powers."""

import math

NARROW = "\u202f"  # a thin space at which no line breaks
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(x: float | None, digits: int = 6) -> str:
    """Return x with so many significant digits, without trailing zeros."""
    if x is None:
        return ""
    if math.isinf(x):
        return "∞" if x > 0 else "−∞"
    if math.isnan(x):
        return "undefined"
    text = f"{x:.{digits}g}"
    mantissa, _, exponent = text.partition("e")
    if exponent:
        power = str(int(exponent)).translate(RAISED)
        mantissa = f"{mantissa}{NARROW}·{NARROW}10{power}"
    return mantissa.replace("-", "−")


def small(x: float | None) -> str:
    """Return an error or a tolerance: two digits, and 0 for an exact zero."""
    return number(x, 2)


def count(n: int | None) -> str:
    """Return a count with thin spaces between thousands."""
    return "" if n is None else f"{n:,}".replace(",", NARROW)


def seconds(t: float) -> str:
    """Return a duration: 0.8 s, 43 s, 7 min, 2.5 h."""
    if t < 9.95:
        return f"{t:.1f}{NARROW}s"
    if t < 99.5:
        return f"{t:.0f}{NARROW}s"
    return f"{t / 60:.0f}{NARROW}min" if t < 5970 else f"{t / 3600:.1f}{NARROW}h"


def plural(n: int, word: str) -> str:
    """Return "1 check", "2 checks"."""
    return f"{n} {word}" if n == 1 else f"{n} {word}s"
