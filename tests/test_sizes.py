import pytest
from hypothesis import given
from hypothesis import strategies as st

from adabet.errors import OptionError
from adabet.sizes import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("200MB", 200_000_000),
        ("1.5 GiB", 3 * 2**29),
        ("64kib", 65536),
        ("64 KB", 64_000),
        (" 7 b ", 7),
        ("12", 12),
        (".5kB", 500),
        ("2e3", 2000),
        ("1E+2 mb", 10**8),
        ("2.7", 2),
        (4096, 4096),
        (1e18, 10**18),
        (2**53, 2**53),
    ],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "MB",
        "much",
        "12 parsecs",
        "1,5GB",
        "1 000",
        "-5MB",
        "0",
        "0 GB",
        "0.2",
        "1e400",
        "inf",
        "nan",
        "1.2.3MB",
        True,
        None,
    ],
)
def test_what_is_no_size(text):
    with pytest.raises(OptionError, match="expected a size"):
        parse_size(text)


@given(st.integers(1, 2**53))
def test_whole_bytes_are_kept(size):
    assert parse_size(size) == parse_size(f"{size}B") == size


@given(st.integers(1, 10**15))
def test_what_people_read_is_within_half_a_percent(size):
    text = format_size(size)
    assert parse_size(text) == pytest.approx(size, rel=0.0051)
    digits = text.partition(" ")[0].replace(".", "").strip("0")
    assert len(digits) <= 3 or size >= 999.5e9


@given(st.integers(0, 10**13), st.integers(0, 10**13))
def test_larger_reads_larger(left, right):
    small, large = sorted((left, right))
    assert small == 0 or parse_size(format_size(small)) <= parse_size(format_size(large))


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (99_949, "99.9 kB"),
        (99_950, "100 kB"),
        (999_499, "999 kB"),
        (999_500, "1 MB"),
        (-2_500_000, "-2.5 MB"),
    ],
)
def test_text(size, text):
    assert format_size(size) == text
