"""How fast vLLM answers, and how much of the prompts its prefix cache spares, by the order of requests.

.venv/generate/bin/python tools/bench_generate.py [--queries N] [--repeats N] [key=value …]

SmolLM2-135M answers queries under all constitutions of the shipped principles, greedily: in the order that the engine takes
(prompts with the same head follow one another) and in the plan's (query after query), in turn. Also says how many answers
of the two orders are the same.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sami_nemo.bench.measure import machine, paired, table
from sami_nemo.compose import compose
from sami_nemo.config import Config
from sami_nemo.constitution.principles import load_principles
from sami_nemo.constitution.sampling import all_constitutions
from sami_nemo.data.records import Query
from sami_nemo.data.tokenization import PromptTokenizer
from sami_nemo.errors import EXIT_USER_ERROR, UserError
from sami_nemo.generate.engine import Answer, Engine, prefix_order, set_environment
from sami_nemo.generate.requests import plan_requests
from sami_nemo.run_dir import read_jsonl

HEADER = ("order", "requests", "seconds", "responses/s", "tokens/s", "prefix cache")
DEFAULTS = ("recipe=sami_smol", "generate.max_tokens=16")


@dataclass
class Order:
    """An order of requests, and what it gave."""

    name: str
    take: Callable[[Sequence[Sequence[int]]], Sequence[int]]
    seconds: list[float] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)

    def row(self, prompts: Sequence[Sequence[int]]) -> list[str]:
        median = statistics.median(self.seconds)
        cached = sum(answer.cached_tokens for answer in self.answers) / sum(map(len, prompts))
        tokens = sum(len(answer.token_ids) for answer in self.answers)
        rates = [f"{len(prompts) / median:.2f}", f"{tokens / median:.1f}"]
        return [self.name, str(len(prompts)), f"{median:.1f}", *rates, f"{cached:.0%}"]


def requests(config: Config, queries: int) -> list[tuple[int, ...]]:
    """Prompts as a stage would plan them, query after query."""
    tokenizer = PromptTokenizer.load(Path(config.model.path), config.data.task, config.generate.chat_template)
    assert config.principles.file is not None
    principles = load_principles(config.principles.file)
    rows = read_jsonl(Path("sami_nemo/data/sample_queries.jsonl"))[:queries]
    asked = [Query(str(number), row["query"], "sample") for number, row in enumerate(rows)]
    plan = plan_requests(config, asked, lambda q: all_constitutions(principles, config.seed, q.id), tokenizer)
    return [request.prompt_ids for request in plan.requests]


def measure(config: Config, prompts: Sequence[Sequence[int]], repeats: int) -> tuple[Order, Order]:
    """Both orders in turn, after one pass that is not counted."""
    orders = Order("same heads together", prefix_order), Order("query after query", lambda given: range(len(given)))
    with Engine(Path(config.model.path), config) as engine:
        for repeat in range(repeats + 1):
            for order in orders:
                began = time.monotonic()
                order.answers = engine.answer(prompts, lambda answer: None, order.take)
                if repeat:
                    order.seconds.append(time.monotonic() - began)
    return orders


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the recipe sami_smol")
    parser.add_argument("--queries", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_intermixed_args()
    try:
        config = compose([*DEFAULTS, *arguments.overrides])
        set_environment(config)
        prompts = requests(config, arguments.queries)
        ours, plain = measure(config, prompts, arguments.repeats)
    except UserError as error:
        print(error, file=sys.stderr)
        return EXIT_USER_ERROR
    print(f"{machine()}; {config.generate.dtype}; medians of {arguments.repeats}, ratios paired\n")
    print(table(HEADER, [order.row(prompts) for order in (ours, plain)]))
    same = sum(a.token_ids == b.token_ids for a, b in zip(ours.answers, plain.answers, strict=True))
    ratio = paired(ours.seconds, plain.seconds)
    print(f"\nquery after query takes {ratio:.2f} times as long; {same} of {len(prompts)} answers are the same")
    return 0


if __name__ == "__main__":
    sys.exit(main())
