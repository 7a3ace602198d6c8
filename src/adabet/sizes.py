"""Bytes inside, ``"200MB"`` only at the edge."""

import math
import re

from adabet.errors import OptionError

BYTES_PER_UNIT = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
}


def parse_size(size: str | float) -> int:
    """Number of bytes that a size such as ``"200MB"`` or ``"1.5 GiB"`` stands for.

    Args:
        size: a number of bytes, or a number with one of the units B, kB, MB, GB (powers of 1000),
            KiB, MiB, GiB (powers of 1024). Case does not matter.

    Returns:
        Bytes, rounded down.

    Raises:
        OptionError: if the text is not a size, or the size is not positive.

    Examples:
        >>> parse_size("200MB"), parse_size("1.5 GiB"), parse_size(4096)
        (200000000, 1610612736, 4096)
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([a-z]*)\s*", str(size), re.IGNORECASE)
    unit = match.group(2).upper() if match else None
    if match is None or unit not in BYTES_PER_UNIT:
        raise OptionError(f"expected a size such as '200MB' or '1.5GiB', got {size!r}")
    number = float(match.group(1)) * BYTES_PER_UNIT[unit]
    if not 1 <= number < math.inf:
        raise OptionError(f"expected a size of at least one byte, and a finite one, got {size!r}")
    return int(number)


def format_size(number: float) -> str:
    """Bytes as people read them, in powers of 1000 with three significant digits.

    Examples:
        >>> format_size(182_400_000), format_size(512), format_size(0)
        ('182 MB', '512 B', '0 B')
    """
    value, unit = float(number), "B"
    for larger in ("kB", "MB", "GB"):
        if abs(value) < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" or abs(value) >= 99.95 else f"{value:.3g} {unit}"
