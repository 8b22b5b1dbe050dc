"""Figures of similarities: what they draw, for readers with and without colour, as SVG and as PNG."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
import torch

from xferkit.metrics import Interval
from xferkit.report.curves import Curve, CurvePanel, curve_panels
from xferkit.report.dots import Dot, DotPanel, dot_panels, dot_panels_png
from xferkit.report.format import signed, signed_interval
from xferkit.report.similarity_map import (
    SimilarityMap,
    cosine_colour,
    similarity_maps_png,
    similarity_maps_svg,
)
from xferkit.report.similarity_report import (
    record_course,
    record_layers,
    record_maps,
    write_record_figures,
)
from xferkit.surgery.similarity import SimilarityRecorder

TICKS = ((-1.0, "−1"), (0.0, "0"), (1.0, "+1"))
PNG = b"\x89PNG\r\n\x1a\n"


def square(n, value=-0.4):
    rows = [[1.0 if a == b else value for b in range(n)] for a in range(n)]
    return tuple(tuple(row) for row in rows)


def test_colours_are_signed_and_differ_without_red_and_green():
    assert cosine_colour(0.0) == "#FFFFFF"
    assert cosine_colour(1.0) == cosine_colour(7.0) == "#0072B2"
    assert cosine_colour(-1.0) == "#D55E00"
    blues = [int(cosine_colour(value / 10)[5:], 16) for value in range(-10, 11)]
    assert blues[:11] == sorted(blues[:11]), "the blue channel alone, which all see, grows up to white"
    assert int(cosine_colour(1.0)[1:3], 16) < 10 < int(cosine_colour(-1.0)[1:3], 16)


def test_numbers_stand_in_cells_only_where_they_fit():
    few = similarity_maps_svg("t", [SimilarityMap("few", ("a", "b", "c"), square(3))])
    assert few.count(">−.40<") == 6 and "in a cell: below 0" not in few
    labels = tuple(f"language {n}" for n in range(23))
    short = tuple(f"l{n}" for n in range(23))
    many = SimilarityMap("many", labels, square(23), short)
    svg = similarity_maps_svg("t", [many, many])
    assert "−.40" not in svg and svg.count("−0.40</title>") == 2 * 23 * 22
    assert svg.count("h4.4") == 2 * 23 * 22 and "− in a cell: below 0" in svg, "the sign shows without colour"
    assert "h4.4" not in similarity_maps_svg("t", [SimilarityMap("many", labels, square(23, 0.4), short)] * 2)


def test_blocks_and_bold_labels():
    m = SimilarityMap(
        "m", ("a", "b", "c"), square(3), blocks=(("one & only", 1), ("two", 2)), bold=frozenset({0})
    )
    assert m.borders == (1,)
    svg = similarity_maps_svg("t <x>", [m])
    assert "one &amp; only" in svg and "t &lt;x&gt;" in svg
    assert re.search(r'font-weight="600">a<', svg) and not re.search(r'font-weight="600">b<', svg)


def test_what_was_never_seen_is_left_white():
    values = ((1.0, math.nan), (math.nan, 1.0))
    svg = similarity_maps_svg("t", [SimilarityMap("m", ("a", "b"), values)])
    assert "nan" not in svg.lower() and "<path" in svg
    assert similarity_maps_svg("t", [SimilarityMap("m", (), ())])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"values": square(2)}, r"values must be \[3\]\[3\]"),
        ({"short": ("a",)}, "1 short labels for 3 rows"),
        ({"blocks": (("x", 2),)}, "blocks must cover the 3 rows"),
    ],
)
def test_maps_that_do_not_fit_are_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        SimilarityMap(**{"title": "m", "labels": ("a", "b", "c"), "values": square(3), **arguments})


def test_dots_stand_where_their_values_are():
    panel = DotPanel("p", ((Dot(0.5, 0.1), Dot(-0.5)), (Dot(math.nan), None), (Dot(9.0), Dot(-9.0))))
    svg = dot_panels("t", ("r1", "r2", "r3"), ("within", "across"), [panel], ticks=TICKS)
    circles = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', svg)]
    squares = [float(x) + 4 for x in re.findall(r'<rect x="([\d.]+)"', svg)]
    assert len(circles) == len(squares) == 2 + 1, "two dots, and one in the legend"
    low, middle, high = 150 + 14, 150 + 730 / 2, 880 - 14
    assert circles[:2] == pytest.approx([(middle + high) / 2, high], abs=0.2)
    assert squares[:2] == pytest.approx([(middle + low) / 2, low], abs=0.2)
    assert "nan" not in svg.lower()
    with pytest.raises(ValueError, match="panel 'p' must have 1 rows of 2 series"):
        dot_panels("t", ("r1",), ("within", "across"), [panel], ticks=TICKS)
    with pytest.raises(ValueError, match="expected 1 to 4 series, got 0"):
        dot_panels("t", ("r1",), (), [panel], ticks=TICKS)


def test_curves_below_zero_have_a_line_at_zero_and_share_a_span():
    curves = (Curve("a", ((1.0, 0.8), (2.0, -0.3))),)
    plain, wide = CurvePanel("p", curves), CurvePanel("p", curves, (-1.0, 1.0))
    svg = curve_panels("t", [wide])
    assert ">−1<" in svg and ">1<" in svg
    assert svg.count('stroke="#1E2328" stroke-width="1"') == 2, "the axis and the line at 0"
    above = CurvePanel("p", (Curve("a", ((1.0, 0.8), (2.0, 0.3))),))
    assert curve_panels("t", [above]).count('stroke="#1E2328" stroke-width="1"') == 1
    assert curve_panels("t", [plain]) != svg


def test_pngs():
    pytest.importorskip("matplotlib", reason="PNGs come with the demo's extra")
    from xferkit.report.curves_png import curve_panels_png

    labels = tuple("abcdefghij" * 2)
    maps = [
        SimilarityMap("few", ("a", "b"), ((1.0, math.nan), (0.3, 1.0)), bold=frozenset({1})),
        SimilarityMap("many", labels, square(20), blocks=(("x", 5), ("y", 15))),
    ]
    assert similarity_maps_png("t", maps).startswith(PNG)
    panel = DotPanel("p", ((Dot(0.5, 0.1), Dot(-0.5)), (None, Dot(0.1))))
    assert dot_panels_png("t", ("a", "b"), ("x", "y"), [panel], ticks=TICKS).startswith(PNG)
    curves = (Curve("a", ((1.0, 0.8), (2.0, -0.3)), marked=2.0), Curve("b", ((1.0, 0.1),)))
    panels = [CurvePanel("p", curves, (-1.0, 1.0)), CurvePanel("empty", ())]
    assert curve_panels_png("t", panels).startswith(PNG)


def test_signed_numbers_as_text():
    assert [signed(value) for value in (0.571, -0.36, 0.001, math.nan)] == ["+0.57", "−0.36", "0.00", "–"]
    assert signed(-0.5, 1) == "−0.5"
    assert signed_interval(Interval(0.5, 0.25, 3)) == "+0.50 [+0.25 to +0.75]"
    assert signed_interval(Interval(0.5, math.nan, 1)) == "+0.50"


# -- a training's record -------------------------------------------------------------------------------------


def record(surgery=False, steps=20):
    recorder = SimilarityRecorder(window=5)
    for step in range(1, steps + 1):
        angle = 0.1 * step
        gradients = torch.tensor([[1.0, 0.0], [1.0, 0.1], [-1.0, angle], [-1.0, angle + 0.2]])
        gram = (gradients @ gradients.T).expand(2, 4, 4)
        cosine = torch.ones(2, 4, 4) if surgery else None
        moved = torch.eye(4).bool().expand(2, 4, 4) if surgery else None
        recorder.add(gram, ("de", "nl", "quechua", "aymara"), ("enc", "dec"), cosine=cosine, moved=moved)
    return recorder.record()


FAMILIES = {"de": "north", "nl": "north", "quechua": "south", "aymara": "south"}


def test_figures_of_a_record():
    maps = record_maps(record(), FAMILIES, last=10)
    assert [m.title for m in maps] == ["By family", "By clustering"]
    assert maps[0].blocks == (("north", 2), ("south", 2)) and maps[0].columns == ("de", "nl", "3", "4")
    assert maps[0].labels == ("de", "nl", "quechua  3", "aymara  4")
    assert maps[0].values[0][1] > 0.9 > 0 > maps[0].values[0][2]
    assert len(record_maps(record())) == 1
    within, across = record_course(record(), FAMILIES)[0].curves
    assert [step for step, _ in within.points] == [3, 8, 13, 18]
    assert across.points[0][1] < across.points[-1][1] < 0 < within.points[0][1]
    assert [curve.label for curve in record_course(record())[0].curves] == ["all pairs"]
    active = record_course(record(surgery=True), FAMILIES)[1].curves[0]
    assert [value for _, value in active.points] == pytest.approx([0.25] * 4)
    labels, series, panels = record_layers(record(), FAMILIES)
    assert labels == ["whole model", "enc", "dec"] and len(series) == 2
    assert panels[0].rows[0][0].value == pytest.approx(panels[0].rows[1][0].value), "both groups are the same"
    with pytest.raises(ValueError, match="families lacks 'aymara'"):
        record_maps(record(), {"de": 1, "nl": 1, "quechua": 1})
    with pytest.raises(ValueError, match="families lacks 'aymara'"):
        record_course(record(), {"de": 1, "nl": 1, "quechua": 1})


@pytest.mark.parametrize("png", [False, True])
@pytest.mark.parametrize("families", [None, FAMILIES])
def test_figures_of_a_record_as_files(tmp_path, png, families):
    if png:
        pytest.importorskip("matplotlib", reason="PNGs come with the demo's extra")
    paths = write_record_figures(record(surgery=True), tmp_path, families, png=png)
    assert [path.stem for path in paths] == ["similarity-map", "similarity-steps", "similarity-layers"]
    for path in paths:
        content = path.read_bytes()
        if png:
            assert content.startswith(PNG)
        else:
            assert ElementTree.fromstring(content).tag == "{http://www.w3.org/2000/svg}svg"
