"""metrics.json: what a run measured, by iteration. No torch: the launcher and the tools read it too.

bound of a query   log C - loss (nats), see objective.py
mean, sem, n       over held-out queries, see mean_sem.py
max                log C, where the estimate saturates
gain               bound of a query minus its bound at iteration 0, over the queries that both have
win_rate           against the base model and the instruct baseline, see win_rates.py; absent if nobody judged
by_source          the same for each source (HH-RLHF's subsets), where there are several
stages             wall seconds of every finished stage, and of them start-up, work and saving
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sami_nemo.config.schema import Config
from sami_nemo.evaluate.mean_sem import mean_sem
from sami_nemo.run_dir import INSTRUCT, RunDir, read_json, read_jsonl, write_json


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
    summary = {"iteration": iteration, **_summary(rows)}
    sources = list(dict.fromkeys(row["source"] for row in rows))
    if len(sources) > 1:
        summary["by_source"] = {s: _summary([row for row in rows if row["source"] == s]) for s in sources}
    return summary


def _summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    maximum = math.log(len(rows[0]["logprobs"]))
    return {
        "mi_bound": {**mean_sem([bound(row["logprobs"]) for row in rows]), "max": maximum},
        "response_tokens": mean_sem([tokens for row in rows for tokens in row["response_tokens"]]),
    }


def _gain(before: Path, after: Path) -> dict[str, float | int]:
    first = {row["query_id"]: bound(row["logprobs"]) for row in read_jsonl(before / "groups.jsonl")}
    rows = [row for row in read_jsonl(after / "groups.jsonl") if row["query_id"] in first]
    return mean_sem([bound(row["logprobs"]) - first[row["query_id"]] for row in rows])


def write_metrics(config: Config, run: RunDir) -> None:
    """Write metrics.json from the results of every evaluation and judgement that there is."""

    def summary(path: Path) -> dict[str, Any]:
        file = path / "summary.json"
        return read_json(file) if file.exists() else {}

    entries = []
    for n in range(config.iterations + 1):
        entry = summary(run.evaluation(n))
        if not entry:
            continue
        if n:
            entry["mi_bound_gain"] = _gain(run.evaluation(0), run.evaluation(n))
        entries.append(entry | summary(run.judge(n)))
    metrics = {"recipe": config.recipe, "seed": config.seed}
    if config.judge.method != "none":
        metrics["judge"] = {
            "name": config.judge.name,
            "method": config.judge.method,
            "proxy": config.judge.method == "pmi",
        }
    if baseline := summary(run.evaluation(INSTRUCT)):
        metrics["instruct"] = {key: value for key, value in baseline.items() if key != "iteration"}
    stages = [{"stage": m["stage"], "seconds": m["wall_seconds"], **m.get("phases", {})} for m in run.manifests()]
    write_json(run.metrics, {**metrics, "iterations": entries, "stages": stages})
