"""Line charts of the report."""

import itertools
import math
import xml.etree.ElementTree as ElementTree

import pytest

from alm_jax.report.charts import HEIGHT, WIDTH, Line, line_chart, ticks


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (3.2, 11.4), (-2.0, 7.5), (0.0012, 0.0019), (5.0, 5.0), (0, 0)]
)
def test_ticks_enclose_the_values_evenly(low: float, high: float) -> None:
    """A curve would run out of its chart, or a loss be read off wrongly."""
    found = ticks(low, high, 5)
    assert found[0] <= low <= high <= found[-1]
    assert 2 <= len(found) <= 8
    steps = [b - a for a, b in itertools.pairwise(found)]
    assert max(steps) == pytest.approx(min(steps))


def test_ticks_inside_stay_inside() -> None:
    """Step numbers beyond the last step would be printed under a chart."""
    assert ticks(10, 300, 5, inside=True) == [100, 200, 300]


def test_points_lie_where_their_values_say() -> None:
    """A loss that falls would be drawn as one that rises."""
    svg = line_chart(
        "loss",
        [Line("training", [(0, 4.0), (10, 2.0), (20, 0.0)])],
        x_label="steps",
        y_label="loss",
    )
    assert svg is not None
    root = ElementTree.fromstring(svg)
    (line,) = [element for element in root.iter() if element.tag == "polyline"]
    points = [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]
    xs, ys = zip(*points, strict=True)
    assert list(xs) == sorted(xs) and list(ys) == sorted(ys)  # SVG's y points down
    assert ys[1] - ys[0] == pytest.approx(ys[2] - ys[1], abs=0.11)
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points)


def test_gaps_and_hostile_names() -> None:
    """A diverged loss (null in metrics.jsonl) would break the page, or a name inject markup."""
    points = [(0, 1.0), (1, None), (2, math.nan), (3, math.inf), (4, 0.5)]
    svg = line_chart("a<b", [Line('"><script>', points)], x_label="x", y_label="y")
    assert svg is not None
    root = ElementTree.fromstring(svg)  # well-formed
    (line,) = [element for element in root.iter() if element.tag == "polyline"]
    assert len(line.attrib["points"].split()) == 2
    assert "<script" not in svg


def test_nothing_to_draw() -> None:
    """A run that logged one step or none would crash the report."""
    assert line_chart("loss", [Line("a", [(1, 1.0)])], x_label="x", y_label="y") is None
    assert line_chart("loss", [], x_label="x", y_label="y") is None
