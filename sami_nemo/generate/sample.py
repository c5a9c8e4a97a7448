"""Stage `sample_n`: the model of iteration n answers the evaluation queries and those that iteration n+1 trains on.

Paper, Algorithm 1 and appendix A.1.1. Runs in the generation environment. Writes into iteration_<n>/responses/, or
as stage `sample_n_engine_k` into iteration_<n>/engine_<k>/, where engines share the requests (merge.py joins them):

    evaluation.jsonl, training.jsonl    `Response` rows; no training.jsonl after the last iteration, nor of the
                                        instruct baseline, which answers like an iteration's model
    model.json                          which model answered: path and hash; what it was asked, and with which settings
                                        and limits
    report.json                         how many queries and requests there were, and which queries were too long
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sami_nemo import progress
from sami_nemo.config.schema import Config
from sami_nemo.config_json import read_geometry
from sami_nemo.constitution.drawing import all_constitutions, draw_constitutions, draw_with_desired
from sami_nemo.constitution.principles import load_principles
from sami_nemo.generate.requests import (
    Request,
    RequestPlan,
    plan_requests,
    requests_sha256,
    share,
    training_queries,
)
from sami_nemo.generate.response_log import ResponseLog
from sami_nemo.prompts.tokenization import PromptTokenizer, uses_chat_template
from sami_nemo.queries.split import half_index
from sami_nemo.records import Constitution, Query, Response
from sami_nemo.run_dir import INSTRUCT, RunDir, partial, read_json, read_jsonl, sha256_file, write_json
from sami_nemo.serving.engine import Answer, BatchLimits, Engine, batch_limits, set_environment

MODEL_FILES = (
    "*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "tokenizer*",
    "chat_template.jinja",
)  # fmt: skip
# Often enough for a person who watches, and no burden on the event file.
SECONDS_BETWEEN_REPORTS = 2.0


def main(config: Config, run_dir: RunDir, iteration: int, engine: int | None = None) -> None:
    # Before the tokenizer, which imports torch.
    set_environment(config)
    model = run_dir.hf(iteration)
    plans = plan_stage(config, run_dir, iteration, model)
    if engine is None:
        output = partial(run_dir.responses(iteration))
    else:
        output = partial(run_dir.engine_responses(iteration, engine))
        plans = {name: share(plan, engine, config.generate.engines) for name, plan in plans.items()}
    record = open_output(output, model_record(config, model, plans))
    write_report(output, plans)
    for name, plan in plans.items():
        print(f"{name}: {len(plan.requests)} requests for {plan.queries} queries, {len(plan.too_long)} too long")
    sample(config, model, plans, output, BatchLimits(**record["limits"]))


def plan_stage(config: Config, run_dir: RunDir, iteration: int, model: Path) -> dict[str, RequestPlan]:
    """The requests of each response file, by its name."""
    tokenizer = PromptTokenizer.load(model, config.data.task, uses_chat_template(config, iteration))
    principles = load_principles(str(run_dir.principles))
    following = iteration + 1

    def for_evaluation(query: Query) -> tuple[Constitution, ...]:
        count = config.evaluate.constitutions_per_query
        if count is None:
            return all_constitutions(principles, config.seed, query.id)
        return draw_with_desired(principles, count, config.seed, query.id)

    def for_training(query: Query) -> tuple[Constitution, ...]:
        # A query that comes back in a later iteration gets constitutions of its own.
        drawn_for = f"{query.id}/iteration_{following}"
        return draw_constitutions(principles, config.train.constitutions_per_query, config.seed, drawn_for)

    plans = {"evaluation": plan_requests(config, _read_queries(run_dir, "evaluation"), for_evaluation, tokenizer)}
    if iteration != INSTRUCT and iteration < config.iterations:
        half = _read_queries(run_dir, f"half_{half_index(following)}")
        queries = training_queries(config, half, following)
        plans["training"] = plan_requests(config, queries, for_training, tokenizer)
    return plans


def _read_queries(run_dir: RunDir, name: str) -> list[Query]:
    return [Query(**row) for row in read_jsonl(run_dir.queries / f"{name}.jsonl")]


def write_report(output: Path, plans: dict[str, RequestPlan]) -> None:
    """report.json: what was asked, and what could not be."""
    report = {
        name: {"queries": plan.queries, "requests": len(plan.requests), "too_long": list(plan.too_long)}
        for name, plan in plans.items()
    }
    write_json(output / "report.json", report)


def model_record(config: Config, model: Path, plans: dict[str, RequestPlan]) -> dict[str, Any]:
    """Who answers what, and how: what another model, prompt or setting has left must not be continued."""
    files = sorted({path for pattern in MODEL_FILES for path in model.glob(pattern)})
    digest = hashlib.sha256("".join(f"{path.name} {sha256_file(path)}\n" for path in files).encode())
    return {
        "path": str(model.resolve()),
        "sha256": digest.hexdigest(),
        "requests_sha256": {name: requests_sha256(plan.requests) for name, plan in plans.items()},
        "generate": config.generate.model_dump(),
        "limits": asdict(batch_limits(config, read_geometry(model))),
        "seed": config.seed,
    }


def open_output(output: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Keep what an interrupted stage has left in `output` if it answered the same; else begin with an empty one.

    Returns:
        The record to go on with: it has the limits of the interrupted stage. Derived now, from the memory that is free,
        they may be others, and other batches may break greedy ties otherwise.
    """
    model_file = output / "model.json"
    if model_file.exists():
        found = read_json(model_file)
        if "limits" in found and found == {**record, "limits": found["limits"]}:
            return dict(found)
    shutil.rmtree(output, ignore_errors=True)
    write_json(model_file, record)
    return record


def sample(config: Config, model: Path, plans: dict[str, RequestPlan], output: Path, limits: BatchLimits) -> None:
    """Answer what is not answered yet. Loads the model only if there is something left."""
    chunk = config.generate.chunk_requests
    logs = {name: ResponseLog(output / f"{name}.jsonl", chunk, len(plan.requests)) for name, plan in plans.items()}
    meter = Meter(done=sum(log.done for log in logs.values()), total=sum(len(p.requests) for p in plans.values()))
    if meter.done == meter.total:
        return
    print(f"{meter.done} of {meter.total} responses are there; loading {model}", flush=True)
    with Engine(model, config, limits) as engine:
        meter.start()
        for name, log in logs.items():
            while indices := log.next_chunk():
                log.append(_answer(engine, [plans[name].requests[i] for i in indices], meter))
                print(f"{name}: {log.done} of {len(plans[name].requests)} responses", flush=True)
        print(meter.prefix_cache(), flush=True)
        # What is left is the end of the engine.
        progress.report_phase("saving")


def _answer(engine: Engine, requests: Sequence[Request], meter: Meter) -> list[Response]:
    answers = engine.answer([request.prompt_ids for request in requests], meter.add)
    meter.prompt_tokens += sum(len(request.prompt_ids) for request in requests)
    return [
        Response(
            query=request.query,
            constitution=request.constitution,
            text=answer.text,
            token_ids=answer.token_ids,
            finish_reason=answer.finish_reason,
            prompt_tokens=len(request.prompt_ids),
        )
        for request, answer in zip(requests, answers, strict=True)
    ]


class Meter:
    """Counts responses and reports them, with the rate of sampled tokens since `start`."""

    def __init__(self, done: int, total: int) -> None:
        self.done = done
        self.total = total
        self.prompt_tokens = 0
        self._cached_tokens = 0
        self._tokens = 0
        self._started = self._reported = time.monotonic()

    def start(self) -> None:
        self._started = time.monotonic()
        progress.report_phase("work")
        progress.report(self.done, self.total, "responses")

    def prefix_cache(self) -> str:
        """How many prompt tokens need not be computed, of the responses that this process sampled."""
        rate = self._cached_tokens / self.prompt_tokens
        return f"prefix cache: {self._cached_tokens} of {self.prompt_tokens} prompt tokens ({rate:.0%})"

    def add(self, answer: Answer) -> None:
        self.done += 1
        self._tokens += len(answer.token_ids)
        self._cached_tokens += answer.cached_tokens
        now = time.monotonic()
        if self.done == self.total or now - self._reported > SECONDS_BETWEEN_REPORTS:
            self._reported = now
            rate = self._tokens / (now - self._started)
            progress.report(self.done, self.total, "responses", tokens_per_s=round(rate, 1))


if __name__ == "__main__":
    from sami_nemo import stage_entry

    stage_entry.run(main, "generate")
