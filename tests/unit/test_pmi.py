"""The offline proxy by hand."""

from __future__ import annotations

import math

import pytest

from sami_nemo.evaluate.pmi import compare, pmi


def test_by_hand() -> None:
    # p = 1/2 under the desired constitution, 1/4 and 1/8 under two others: the mean is 7/24.
    logprobs = [math.log(1 / 4), math.log(1 / 2), math.log(1 / 8)]
    assert pmi(logprobs, desired=1) == pytest.approx(math.log((1 / 2) / (7 / 24)))
    assert pmi([-3.0, -3.0], desired=0) == pytest.approx(0.0)


def test_very_small_probabilities() -> None:
    assert pmi([-1000.0, -1002.0], desired=0) == pytest.approx(math.log(2 / (1 + math.exp(-2))))


def test_at_most_log_c() -> None:
    assert pmi([0.0, -900.0, -900.0], desired=0) == pytest.approx(math.log(3))


def test_equal_scores_are_a_draw() -> None:
    assert [compare(2.0, 1.0), compare(1.0, 2.0), compare(1.0, 1.0)] == [1.0, 0.0, 0.5]
