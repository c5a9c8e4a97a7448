"""What a run directory holds, as plain values for figures and tables. No torch; whatever is missing is left out."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sami_nemo.errors import RunDirectoryError
from sami_nemo.evaluate.choice import read_choice
from sami_nemo.run_dir import INSTRUCT, RunDir, read_json, read_jsonl

# Enough to see what the judge answers instead.
UNREAD_SHOWN = 3


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` and its standard error."""

    mean: float
    sem: float
    n: int | None = None
    """Null where the mean is made of others (length-corrected win rates)."""


@dataclass(frozen=True)
class WinRate:
    """Against one opponent."""

    raw: Estimate | None
    """Null if no verdict could be read."""
    corrected: Estimate | None
    """By length; null if one of the strata is empty."""
    unparsed: int
    refused: Mapping[str, int] = field(default_factory=dict)
    """Comparisons without a verdict, by why the judge gave none."""
    by_source: Mapping[str, WinRate] = field(default_factory=dict)


@dataclass(frozen=True)
class Measures:
    """Of one model, over all held-out queries or those of one source."""

    bound: Estimate
    maximum: float
    """log C."""
    tokens: Estimate | None


@dataclass(frozen=True)
class Iteration:
    """One entry of metrics.json."""

    number: int
    total: Measures
    by_source: Mapping[str, Measures]
    """Empty unless there are several."""
    gain: Estimate | None
    win_rates: Mapping[str, WinRate]


@dataclass(frozen=True)
class Judge:
    name: str
    proxy: bool

    @property
    def label(self) -> str:
        """How win rates are labelled: a proxy is never shown without saying so."""
        return "PMI proxy" if self.proxy else f"judge: {self.name}"


@dataclass(frozen=True)
class Results:
    """metrics.json."""

    name: str
    recipe: str
    seed: int
    judge: Judge | None
    instruct: Measures | None
    iterations: tuple[Iteration, ...]


@dataclass(frozen=True)
class Step:
    """One gradient step."""

    loss: float
    grad_norm: float


@dataclass(frozen=True)
class Matrix:
    """Mean log-probs of one model, nats per token, by (constitution, constitution the response was sampled under)."""

    constitutions: tuple[str, ...]
    cells: Mapping[tuple[str, str], Estimate]


@dataclass(frozen=True)
class Answers:
    """What one model answered, by (query, constitution), and what the judge said of it."""

    model: str
    texts: Mapping[tuple[str, str], str]
    verdicts: Mapping[str, Mapping[str, float | str | None]]
    """Score by query and opponent; where there is no verdict, why."""


@dataclass(frozen=True)
class StageRecord:
    """A finished stage."""

    name: str
    seconds: float
    phases: Mapping[str, float]
    """Of them: start_up, work, saving."""
    finished: str
    tokens_per_s: float | None
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Unread:
    """A reply of the judge that holds no verdict."""

    model: str
    opponent: str
    reply: str


@dataclass(frozen=True)
class RunData:
    """Everything that a report shows."""

    results: Results
    steps: Mapping[int, tuple[Step, ...]]
    """By iteration."""
    matrices: Mapping[int, Matrix]
    """Of the base model, and of the last iteration."""
    queries: Mapping[str, str]
    """Held-out queries by id."""
    constitutions: Mapping[str, tuple[str, ...]]
    """Statements by id, the desired constitution first."""
    desired: str | None
    answers: tuple[Answers, ...]
    unread: tuple[Unread, ...]
    """The first few."""
    filters: Mapping[str, Mapping[str, Any]]
    """Counts of filters.json by model."""
    stages: tuple[StageRecord, ...]
    """In the order in which they finished."""
    models: Mapping[str, Mapping[str, str]]
    """Path and SHA-256 of the model that answered."""
    config: str
    """As YAML."""


def read_run(run: RunDir) -> RunData:
    """Everything a report shows.

    Raises:
        RunDirectoryError: there are no results.
    """
    results = read_results(run)
    numbers = [iteration.number for iteration in results.iterations]
    models = [*numbers, *([INSTRUCT] if results.instruct else [])]
    config = run.config.read_text(encoding="utf-8") if run.config.exists() else ""
    queries, constitutions = _asked(run, models)
    return RunData(
        results=results,
        steps={n: steps for n in numbers if (steps := _steps(run, n))},
        matrices={n: m for n in dict.fromkeys([*numbers[:1], *numbers[-1:]]) if (m := _matrix(run, n, config))},
        queries=queries,
        constitutions=constitutions,
        desired=_desired(run),
        answers=tuple(answers for n in models if (answers := _answers(run, n)).texts),
        unread=tuple(itertools.islice((each for n in models for each in _unread(run, n)), UNREAD_SHOWN)),
        filters={model_name(n): counts for n in models if (counts := _json(run.groups(n) / "filters.json"))},
        stages=_stages(run),
        models={model_name(n): found for n in models if (found := _json(run.responses(n) / "model.json"))},
        config=config,
    )


def read_results(run: RunDir) -> Results:
    """The numbers of metrics.json.

    Raises:
        RunDirectoryError: there are none.
    """
    if not run.root.is_dir():
        raise RunDirectoryError("run", run.root, "no such directory; give the directory of a run, like runs/NAME")
    if not run.metrics.is_file():
        raise RunDirectoryError("metrics", run.metrics, "no such file; wait until iteration 0 is evaluated")
    try:
        metrics = read_json(run.metrics)
        judge = metrics.get("judge")
        instruct = metrics.get("instruct")
        return Results(
            name=run.root.resolve().name,
            recipe=metrics["recipe"],
            seed=metrics["seed"],
            judge=Judge(judge["name"], judge["proxy"]) if judge else None,
            instruct=_measures(instruct) if instruct else None,
            iterations=tuple(map(_iteration, metrics["iterations"])),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        remedy = f"not the results of a run ({type(error).__name__}: {error}); remove it and start the run again"
        raise RunDirectoryError("metrics", run.metrics, remedy) from None


def model_name(iteration: int) -> str:
    """How a model is called on the page."""
    return {INSTRUCT: "instruct", 0: "base"}.get(iteration, f"iteration {iteration}")


def opponents_of(runs: Iterable[Results]) -> list[str]:
    """Everyone that any of the runs was compared with: base before instruct, which is there from iteration 0 on."""
    return sorted({opponent for run in runs for iteration in run.iterations for opponent in iteration.win_rates})


def _iteration(entry: dict[str, Any]) -> Iteration:
    gain = entry.get("mi_bound_gain")
    return Iteration(
        number=entry["iteration"],
        total=_measures(entry),
        by_source={source: _measures(values) for source, values in entry.get("by_source", {}).items()},
        gain=_estimate(gain) if gain else None,
        win_rates={opponent: _win_rate(values) for opponent, values in entry.get("win_rate", {}).items()},
    )


def _measures(entry: dict[str, Any]) -> Measures:
    tokens = entry.get("response_tokens")
    return Measures(_estimate(entry["mi_bound"]), entry["mi_bound"]["max"], _estimate(tokens) if tokens else None)


def _win_rate(values: dict[str, Any]) -> WinRate:
    corrected = values.get("corrected")
    return WinRate(
        raw=_estimate(values) if "mean" in values else None,
        corrected=_estimate(corrected) if corrected else None,
        unparsed=values.get("unparsed", 0),
        refused=values.get("refused", {}),
        by_source={source: _win_rate(below) for source, below in values.get("by_source", {}).items()},
    )


def _estimate(values: dict[str, Any]) -> Estimate:
    return Estimate(values["mean"], values["sem"], values.get("n"))


def _json(path: Path) -> Any:
    return read_json(path) if path.exists() else {}


def _jsonl(path: Path) -> list[dict[str, Any]]:
    return read_jsonl(path) if path.exists() else []


def _steps(run: RunDir, n: int) -> tuple[Step, ...]:
    return tuple(Step(row["loss"], row["grad_norm"]) for row in _jsonl(run.train(n) / "steps.jsonl"))


def _matrix(run: RunDir, n: int, config: str) -> Matrix | None:
    """Means over queries; a query may have been evaluated under some of the constitutions only."""
    rows = _jsonl(run.evaluation(n) / "groups.jsonl")
    train = (yaml.safe_load(config) or {}).get("train", {})
    whole = train.get("logprob_normalization") == "sum"
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        for scored, logprobs in zip(row["constitutions"], row["logprobs"], strict=True):
            for sampled, logprob, tokens in zip(row["constitutions"], logprobs, row["response_tokens"], strict=True):
                values[scored, sampled].append(logprob / tokens if whole else logprob)
    names = tuple(sorted({name for row in rows for name in row["constitutions"]}))
    cells = {key: Estimate(sum(found) / len(found), 0.0, len(found)) for key, found in values.items()}
    return Matrix(names, cells) if cells else None


def _desired(run: RunDir) -> str | None:
    return _json(run.queries / "constitutions.json").get("desired", {}).get("id")


def _asked(run: RunDir, models: list[int]) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """Texts of queries and statements of constitutions that any model was asked, by id."""
    queries, constitutions = {}, {}
    for n in models:
        for row in _jsonl(run.groups(n) / "evaluation.jsonl"):
            queries[row["query"]["id"]] = row["query"]["text"]
            constitutions.update({c["id"]: tuple(c["statements"]) for c in row["constitutions"]})
    desired = _desired(run)
    order = sorted(constitutions, key=lambda name: (name != desired, name))
    return queries, {name: constitutions[name] for name in order}


def _answers(run: RunDir, n: int) -> Answers:
    texts = {}
    for row in _jsonl(run.groups(n) / "evaluation.jsonl"):
        for constitution, text in zip(row["constitutions"], row["responses"], strict=True):
            texts[row["query"]["id"], constitution["id"]] = text
    verdicts: dict[str, dict[str, float | str | None]] = defaultdict(dict)
    for row in _jsonl(run.judge(n) / "verdicts.jsonl"):
        verdicts[row["query_id"]][row["opponent"]] = row.get("refused") or row["score"]
    return Answers(model_name(n), texts, verdicts)


def _unread(run: RunDir, n: int) -> Iterator[Unread]:
    for row in _jsonl(run.judge(n) / "verdicts.jsonl"):
        if row["score"] is not None or row.get("refused"):
            continue
        for order in row.get("orders", []):
            if read_choice(order["reply"], order.get("finish_reason")) is None:
                yield Unread(model_name(n), row["opponent"], order["reply"])


def _stages(run: RunDir) -> tuple[StageRecord, ...]:
    return tuple(
        StageRecord(
            manifest["stage"],
            manifest["wall_seconds"],
            manifest.get("phases", {}),
            manifest["finished"],
            _tokens_per_s(run.events(manifest["stage"])),
            manifest.get("versions", {}),
        )
        for manifest in run.manifests()
    )


def _tokens_per_s(events: Path) -> float | None:
    """The last one that the stage told."""
    last = None
    for line in events.read_text(encoding="utf-8").splitlines() if events.exists() else []:
        try:
            last = json.loads(line).get("tokens_per_s", last)
        except json.JSONDecodeError:
            # A stage that was killed while it wrote, before it was started again.
            continue
    return last
