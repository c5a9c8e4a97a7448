"""Win rates by hand; a wrong correction (pooling the strata) must not match."""

from __future__ import annotations

import math
from typing import Any

import pytest

from sami_nemo.evaluate.win_rates import win_rate, win_rates


def row(score: float | None, longer: bool, opponent: str = "base", source: str = "s") -> dict[str, Any]:
    return {
        "query_id": "q",
        "opponent": opponent,
        "source": source,
        "score": score,
        "response_tokens": 9 if longer else 5,
        "opponent_tokens": 5,
    }


def test_strata_weigh_the_same() -> None:
    # Longer: 3 of 4 won; equally long: 0 of 2. Uncorrected 1/2, corrected (3/4 + 0) / 2.
    rows = [row(1, True), row(1, True), row(1, True), row(0, True), row(0, False), row(0, False)]
    result = win_rate(rows)
    assert result["mean"] == pytest.approx(1 / 2) and result["n"] == 6
    # Squared deviations from 1/2: 6 x 1/4; variance 1.5 / 5 = 0.3.
    assert result["sem"] == pytest.approx(math.sqrt(0.3 / 6))
    assert result["corrected"]["mean"] == pytest.approx(3 / 8) != result["mean"]
    # In the longer stratum: 3 x 1/16 + 9/16 = 3/4; variance 1/4; sem 1/4. In the other both values are alike.
    assert result["corrected"]["sem"] == pytest.approx(1 / 8)
    assert result["strata"]["longer"]["n"] == 4 and result["strata"]["not_longer"]["n"] == 2


@pytest.mark.parametrize("others", [0, 1])
def test_a_stratum_without_a_standard_error_is_said(others: int) -> None:
    result = win_rate([row(1, True), row(0, True), *[row(1, False)] * others])
    assert "corrected" not in result and result["small_stratum"] == "not_longer"
    assert result["strata"]["not_longer"]["n"] == others and result["n"] == 2 + others


def test_unread_replies_are_neither_wins_nor_ties() -> None:
    result = win_rate([row(1, True), row(None, True), row(1, False)])
    assert (result["mean"], result["n"], result["unparsed"]) == (1.0, 2, 1)
    assert win_rate([row(None, True)]) == {"n": 0, "unparsed": 1}


def test_refusals_are_counted_by_reason_and_not_as_unread() -> None:
    refused = [{**row(None, True), "refused": reason} for reason in ("too long", "content filter", "too long")]
    result = win_rate([row(1, True), {**row(None, True), "refused": None}, *refused])
    assert (result["mean"], result["n"], result["unparsed"]) == (1.0, 1, 1)
    assert result["refused"] == {"too long": 2, "content filter": 1}
    assert "refused" not in win_rate([row(1, True), row(None, True)])


def test_opponents_and_sources_apart() -> None:
    rows = [row(1, True), row(0, True, source="t"), row(1, True, opponent="instruct")]
    rates = win_rates(rows)
    assert list(rates) == ["base", "instruct"] and rates["base"]["n"] == 2
    assert {name: rate["mean"] for name, rate in rates["base"]["by_source"].items()} == {"s": 1.0, "t": 0.0}
    assert "by_source" not in rates["instruct"]
