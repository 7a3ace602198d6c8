"""Numbers and options as people read them."""

import json
import math
from collections.abc import Mapping
from typing import Any

from adabet.sizes import format_size

NO_BREAK = "\u00a0"
"""A space at which no line ends."""

SHARES = frozenset({"accuracy"})
"""Metrics in [0, 1] that are written as percentages."""


def size_text(number: float) -> str:
    """Bytes as `adabet.sizes.format_size` writes them, number and unit on one line.

    Examples:
        >>> size_text(182_400_000) == f"182{NO_BREAK}MB"
        True
    """
    return format_size(number).replace(" ", NO_BREAK)


def percentage(share: float) -> str:
    """A share of one.

    Examples:
        >>> [percentage(share).replace(NO_BREAK, " ") for share in (0.9214, 1.0, 0.00042)]
        ['92.1 %', '100.0 %', '0.04 %']
    """
    digits = 1 if share == 0 or abs(share) >= 0.001 else 2
    return f"{100 * share:.{digits}f}{NO_BREAK}%"


def rounded(share: float) -> str:
    """A share of one in whole percent.

    Examples:
        >>> rounded(0.4049).replace(NO_BREAK, " ")
        '40 %'
    """
    return f"{100 * share:.0f}{NO_BREAK}%"


def signed(value: float, form: str) -> str:
    """A number with its sign, a proper minus included.

    Examples:
        >>> signed(1.25, ".1f"), signed(-3.0, ".1f")
        ('+1.2', '−3.0')
    """
    return f"{value:+{form}}".replace("-", "\u2212")


def metric_text(name: str, value: float) -> str:
    """A metric's value.

    Examples:
        >>> metric_text("accuracy", 0.9214).replace(NO_BREAK, " "), metric_text("loss", 0.25)
        ('92.1 %', '0.25')
    """
    if not math.isfinite(value):
        return str(value)
    return percentage(value) if name in SHARES else f"{value:.4g}"


def counted(count: int, thing: str) -> str:
    """A number of things.

    Examples:
        >>> counted(1, "layer"), counted(1200, "layer")
        ('1 layer', '1,200 layers')
    """
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours.

    Examples:
        >>> duration(0.034), duration(4.2), duration(150), duration(9000)
        ('34 ms', '4.2 s', '2.5 min', '2.5 h')
    """
    for limit, factor, unit in ((1, 1e3, "ms"), (100, 1, "s"), (6000, 1 / 60, "min")):
        if seconds < limit:
            return f"{seconds * factor:.{0 if unit == 'ms' or seconds * factor >= 10 else 1}f} {unit}"
    return f"{seconds / 3600:.1f} h"


def as_text(value: Any) -> str:
    """A value of an option as people read it.

    Examples:
        >>> as_text({"samples": 40}), as_text(None), as_text(True)
        ('samples 40', 'none', 'yes')
    """
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {as_text(item)}" for name, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(as_text, value)) or "none"
    return value if isinstance(value, str) else json.dumps(value)
