"""metrics.json: what a run measured, by iteration. No torch: the launcher and the tools read it too.

bound of a query   log C - loss (nats), see objective.py
mean, sem, n       over held-out queries; sem = sample standard deviation / sqrt(n)
max                log C, where the estimate saturates
gain               bound of a query minus its bound at iteration 0, over the queries that both have
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sami_nemo.config import Config
from sami_nemo.run_dir import RunDir, read_json, read_jsonl, write_json


def mean_sem(values: Sequence[float]) -> dict[str, float | int]:
    """Mean, standard error of the mean (0 for a single value), and count."""
    n = len(values)
    assert n > 0, "nothing to average"
    mean = sum(values) / n
    variance = sum((value - mean) ** 2 for value in values) / (n - 1) if n > 1 else 0.0
    return {"mean": mean, "sem": math.sqrt(variance / n), "n": n}


def _logsumexp(values: Sequence[float]) -> float:
    largest = max(values)
    return largest + math.log(sum(math.exp(value - largest) for value in values))


def bound(logprobs: Sequence[Sequence[float]]) -> float:
    """The bound of one group from its matrix `[constitution][response]`; equals objective.py's."""
    size = len(logprobs)
    rows = sum(logprobs[j][j] - _logsumexp(logprobs[j]) for j in range(size))
    columns = sum(logprobs[j][j] - _logsumexp([row[j] for row in logprobs]) for j in range(size))
    return math.log(size) + (rows + columns) / (2 * size)


def summarise(iteration: int, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The entry of metrics.json for one iteration, from the rows of evaluation/groups.jsonl."""
    bounds = {row["query_id"]: bound(row["logprobs"]) for row in rows}
    maximum = math.log(len(rows[0]["logprobs"]))
    return {
        "iteration": iteration,
        "mi_bound": {**mean_sem(list(bounds.values())), "max": maximum},
        "response_tokens": mean_sem([tokens for row in rows for tokens in row["response_tokens"]]),
    }


def _gain(before: Path, after: Path) -> dict[str, float | int]:
    first = {row["query_id"]: bound(row["logprobs"]) for row in read_jsonl(before / "groups.jsonl")}
    rows = [row for row in read_jsonl(after / "groups.jsonl") if row["query_id"] in first]
    return mean_sem([bound(row["logprobs"]) - first[row["query_id"]] for row in rows])


def write_metrics(config: Config, run: RunDir, directory: Path, iteration: int) -> None:
    """Write metrics.json with this iteration, whose results are in `directory`, those before, and later ones if any.

    There are later ones when an evaluation is repeated in a finished run.
    """
    later = (run.evaluation(n) for n in range(iteration + 1, config.iterations + 1))
    folders = [*(run.evaluation(n) for n in range(iteration)), directory, *(path for path in later if path.exists())]
    entries = [read_json(folder / "summary.json") for folder in folders]
    for entry, folder in zip(entries[1:], folders[1:], strict=True):
        entry["mi_bound_gain"] = _gain(folders[0], folder)
    write_json(run.metrics, {"recipe": config.recipe, "seed": config.seed, "iterations": entries})
