"""metrics.json against values by hand and against the objective."""

from __future__ import annotations

import math

import pytest
import torch

from sami_nemo.evaluate.mean_sem import mean_sem
from sami_nemo.evaluate.metrics import bound, summarise
from sami_nemo.objective import mutual_information_bound


def test_mean_and_standard_error() -> None:
    # Squared deviations of 1, 2, 6 from 3 are 4, 1, 9: variance 14 / 2 = 7.
    assert mean_sem([1, 2, 6]) == {"mean": 3.0, "sem": pytest.approx(math.sqrt(7 / 3)), "n": 3}
    assert mean_sem([4.0]) == {"mean": 4.0, "sem": 0.0, "n": 1}


@pytest.mark.parametrize("size", [2, 4])
def test_bound_equals_the_objectives(size: int) -> None:
    matrix = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
    assert bound(matrix.tolist()) == pytest.approx(mutual_information_bound(matrix).item(), abs=1e-12)


def test_summary() -> None:
    rows = [
        {"query_id": "a", "source": "x", "logprobs": [[0.0, 0.0], [0.0, 0.0]], "response_tokens": [1, 3]},
        {"query_id": "b", "source": "x", "logprobs": [[0.0, -50.0], [-50.0, 0.0]], "response_tokens": [2, 2]},
    ]
    summary = summarise(1, rows)
    assert summary["mi_bound"]["mean"] == pytest.approx(math.log(2) / 2)
    assert summary["mi_bound"]["max"] == pytest.approx(math.log(2))
    assert summary["response_tokens"] == {"mean": 2.0, "sem": pytest.approx(math.sqrt(2 / 3 / 4)), "n": 4}
