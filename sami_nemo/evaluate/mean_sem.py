"""Mean and standard error, the form of every number in metrics.json."""

from __future__ import annotations

import math
from collections.abc import Sequence


def mean_sem(values: Sequence[float]) -> dict[str, float | int]:
    """Mean, standard error of the mean (0 for a single value), and count."""
    n = len(values)
    assert n > 0, "nothing to average"
    mean = sum(values) / n
    variance = sum((value - mean) ** 2 for value in values) / (n - 1) if n > 1 else 0.0
    return {"mean": mean, "sem": math.sqrt(variance / n), "n": n}
