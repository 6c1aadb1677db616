"""Counts of what is named at a threshold, and the threshold that a share of wrong names takes."""

import numpy as np
import pytest

from rice_jax.eval.decisions import Counts, Decisions

RIGHT = np.array([True, False, True, False, True, False])
SHOWS = np.array([True, True, True, True, True, False])
CONFIDENCE = np.array([0.9, 0.7, 0.7, 0.2, 0.5, 0.6])
DECISIONS = Decisions(RIGHT, SHOWS, CONFIDENCE)


def test_clips_are_right_wrong_or_silent():
    named = np.array([True, True, False, False, True, False])
    counts = DECISIONS.count(named)
    assert counts == Counts(right=2, wrong=1, silent=2, none=1) and counts.wrong_share == pytest.approx(1 / 3)
    assert Counts(0, 0, 3, 1).wrong_share == 0


def test_the_curve_has_every_count_once():
    points = DECISIONS.curve()
    assert [point.min_confidence for point in points] == [0, 0.35, 0.55, 0.65, 0.8]
    assert [(point.right, point.wrong, point.silent, point.none) for point in points] == [
        (3, 3, 0, 0), (3, 2, 1, 0), (2, 2, 2, 0), (2, 1, 2, 1), (1, 0, 4, 1)
    ]  # fmt: skip
    for point in points:
        assert DECISIONS.count(point.min_confidence <= CONFIDENCE, point.min_confidence) == point


@pytest.mark.parametrize(
    "max_wrong, expected", [(1.0, 0), (0.5, 0), (0.45, 0.35), (0.4, 0.35), (0.34, 0.65), (0.1, 0.8)]
)
def test_the_least_threshold_is_suggested(max_wrong, expected):
    found = DECISIONS.suggest(max_wrong)
    assert found.min_confidence == expected and found.wrong_share <= max_wrong


def test_none_is_suggested_where_none_fits():
    assert Decisions(~RIGHT[[0, 0]], SHOWS[[0, 0]], CONFIDENCE[:2]).suggest(0.5) is None


def test_thresholds_lie_between_neighbors():
    close = np.array([0.123456789, 0.1234567891, 0.9])
    points = Decisions(RIGHT[:3], SHOWS[:3], close).curve()
    assert [point.right + point.wrong for point in points] == [3, 2, 1]
    assert points[-1].min_confidence == 0.51, "as short as can be"


def test_intervals_are_of_the_names():
    """The closed forms where no name, or every name, is wrong."""
    assert Counts(3, 0, 5, 5).wrong_interval == pytest.approx((0, 1 - 0.025 ** (1 / 3)))
    assert Counts(0, 4, 5, 5).wrong_interval == pytest.approx((0.025 ** (1 / 4), 1))
    low, high = Counts(30, 10, 0, 0).wrong_interval
    assert 0.12 < low < 0.25 < high < 0.42
    assert Counts(0, 0, 3, 3).wrong_interval is None
