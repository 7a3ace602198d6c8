"""Colours are legible in both schemes: contrast as WCAG 2.2 defines it."""

import re
from pathlib import Path

import pytest

import adabet.report.page

STYLE = (Path(adabet.report.page.__file__).with_name("page.css")).read_text()


def palettes():
    """The colours by name of the light and the dark scheme, and of paper."""
    light, dark, paper = (
        dict(re.findall(r"--([\w-]+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", STYLE, re.S)
    )
    return {"light": light, "dark": dark, "print": light | paper}


def luminance(colour):
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark", "print"])
def test_text_has_a_contrast_of_4_5_and_marks_of_3(scheme):
    colours = palettes()[scheme]
    for text in ("ink", "quiet", "link"):
        for paper in ("paper", "raised", "notice"):
            assert contrast(colours[text], colours[paper]) >= 4.5, (text, paper)
    for mark in ("axis", "accent", "best", "tone-1", "tone-2", "tone-3", "tone-4", "notice-line"):
        assert contrast(colours[mark], colours["paper"]) >= 3, mark
    assert contrast(colours["accent"], colours["track"]) >= 3


def test_every_colour_that_is_used_is_there():
    assert set(re.findall(r"var\(--([\w-]+)\)", STYLE)) <= set(re.findall(r"--([\w-]+):", STYLE))


def test_the_known_contrast_of_black_on_white():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
