"""Inline SVG: well formed, inert, and curves that survive thinning."""

import re
from itertools import pairwise
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from skinmm.report.figures import PALETTE, figure, line_style, shorten, thin_curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TEXT = '<script>alert(1)</script> "&" $\\frac{1 皮膚'


def drawn(text: str) -> str:
    @figure
    def paint(axes: "Axes") -> str:
        axes.plot([0, 1], [0, 1], marker="o", label=text)
        axes.set_xlabel(text)
        axes.legend()
        return text

    return str(paint())


def test_drawing_is_well_formed_and_keeps_text_as_text() -> None:
    # In HTML the parser knows SVG's prefix; XML has to be told.
    svg = drawn(TEXT).replace("<svg ", '<svg xmlns:xlink="x" ', 1)
    root = ET.fromstring(svg)  # noqa: S314 - our own drawing
    assert [node.text for node in root.iter("text")].count(TEXT) == 2
    assert root.get("aria-label") == TEXT
    assert root.get("role") == "img"


def test_drawing_names_nothing_outside_and_takes_part_in_no_page_style() -> None:
    svg = drawn("x")
    assert not re.search(r"https?:|<style|<image|<\?xml|<!DOCTYPE|<metadata", svg)


def test_same_drawing_twice_is_the_same_text() -> None:
    assert drawn("x") == drawn("x")


def test_matplotlib_settings_are_left_as_they_were() -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    drawn("x")
    assert dict(mpl.rcParams) == before


def test_lines_differ_beyond_the_palette() -> None:
    styles = [tuple(line_style(index).values()) for index in range(4 * len(PALETTE))]
    assert len(set(styles)) == len(styles)


@given(st.text(max_size=80), st.integers(6, 40))
def test_short_names_fit_and_keep_their_ends(name: str, letters: int) -> None:
    result, plain = shorten(name, letters), " ".join(name.split())
    assert len(result) <= letters
    if len(plain) <= letters:
        assert result == plain
    else:
        head, tail = result.split("\N{HORIZONTAL ELLIPSIS}", 1) if "…" not in plain else ("", "")
        assert plain.startswith(head)
        assert plain.endswith(tail)


STEPS = arrays.arrays(np.float64, st.integers(2, 3000), elements=st.floats(0, 1))


@given(STEPS, STEPS)
def test_thinned_curve_keeps_its_ends_and_strays_little(
    across: "np.ndarray", up: "np.ndarray"
) -> None:
    size = min(len(across), len(up))
    x, y = np.sort(across[:size]), np.sort(up[:size])
    kept = thin_curve(x, y, points=400)
    assert kept[0] == 0
    assert kept[-1] == size - 1
    assert (np.diff(kept) > 0).all()
    assert len(kept) <= 402
    # A rising curve between two kept points lies in their box, whose half girth bounds the error.
    for left, right in pairwise(kept.tolist()):
        if right - left > 1:
            skipped = (x[right - 1] - x[left]) + (y[right - 1] - y[left])
            assert skipped <= (x[-1] - x[0] + y[-1] - y[0]) / 399 + 1e-12
