"""How fast vLLM answers, and how much of the prompts its prefix cache spares, by the order of requests.

.venv/generate/bin/python tools/bench_generate.py [--queries N] [--repeats N] [key=value …]

SmolLM2-135M answers queries under all constitutions of the shipped principles, greedily: in the order that the engine takes
(prompts with the same head follow one another), in the plan's (query after query), and without a prefix cache, in turn.
Also says how many answers are the same as in the first.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from sami_nemo.bench.measure import machine, paired, table
from sami_nemo.config.files import parse_config
from sami_nemo.config.schema import Config
from sami_nemo.config_json import read_geometry
from sami_nemo.constitution.drawing import all_constitutions
from sami_nemo.constitution.principles import load_principles
from sami_nemo.errors import EXIT_USER_ERROR, UserError
from sami_nemo.generate.requests import plan_requests
from sami_nemo.launch.stages import ROOT, python
from sami_nemo.prompts.tokenization import PromptTokenizer
from sami_nemo.records import Query
from sami_nemo.run_dir import read_jsonl
from sami_nemo.serving.engine import Answer, Engine, batch_limits, prefix_order, set_environment

HEADER = (
    "order",
    "requests",
    "seconds",
    "responses/s",
    "tokens/s",
    "prefix cache",
    "takes, to the first",
    "same answers",
)
DEFAULTS = ("recipe=sami_smol", "generate.max_tokens=16")
# Hydra is in the training environment only.
COMPOSE = """
import sys
from sami_nemo.config.compose import compose
from sami_nemo.config.files import dump_config
from sami_nemo.errors import UserError
try:
    print(dump_config(compose(sys.argv[1:])))
except UserError as error:
    sys.exit(str(error))
"""


@dataclass
class Way:
    """A way to ask, and what it gave."""

    name: str
    order: Callable[[Sequence[Sequence[int]]], Sequence[int]]
    engine: Engine
    seconds: list[float] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)

    def ask(self, prompts: Sequence[Sequence[int]]) -> None:
        began = time.monotonic()
        self.answers = self.engine.answer(prompts, lambda answer: None, self.order)
        self.seconds.append(time.monotonic() - began)

    def row(self, prompts: Sequence[Sequence[int]], first: Way) -> list[str]:
        median = statistics.median(self.seconds)
        cached = sum(answer.cached_tokens for answer in self.answers) / sum(map(len, prompts))
        tokens = sum(len(answer.token_ids) for answer in self.answers)
        same = sum(a.token_ids == b.token_ids for a, b in zip(self.answers, first.answers, strict=True))
        rates = [f"{len(prompts) / median:.2f}", f"{tokens / median:.1f}"]
        ratio = f"{paired(first.seconds, self.seconds):.2f}"
        return [self.name, str(len(prompts)), f"{median:.1f}", *rates, f"{cached:.0%}", ratio, str(same)]


def composed(overrides: Sequence[str]) -> Config | None:
    """The configuration; None, and a line on stderr, where it cannot work."""
    command = [str(python("train")), "-c", COMPOSE, *DEFAULTS, *overrides]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    return None if done.returncode else parse_config(yaml.safe_load(done.stdout))


def requests(config: Config, queries: int) -> list[tuple[int, ...]]:
    """Prompts as a stage would plan them, query after query."""
    tokenizer = PromptTokenizer.load(Path(config.model.path), config.data.task, config.generate.chat_template)
    assert config.principles.file is not None
    principles = load_principles(config.principles.file)
    rows = read_jsonl(ROOT / "sami_nemo" / "queries" / "sample_queries.jsonl")[:queries]
    asked = [Query(str(number), row["query"], "sample") for number, row in enumerate(rows)]
    plan = plan_requests(config, asked, lambda q: all_constitutions(principles, config.seed, q.id), tokenizer)
    return [request.prompt_ids for request in plan.requests]


def measure(config: Config, prompts: Sequence[Sequence[int]], repeats: int) -> list[Way]:
    """All ways in turn, after one pass that is not counted."""

    def as_planned(given: Sequence[Sequence[int]]) -> range:
        return range(len(given))

    model = Path(config.model.path)
    limits = batch_limits(config, read_geometry(model))
    with ExitStack() as stack:
        caching, plain = (stack.enter_context(Engine(model, config, limits, cache)) for cache in (True, False))
        ways = [
            Way("same heads together", prefix_order, caching),
            Way("query after query", as_planned, caching),
            Way("no prefix cache", as_planned, plain),
        ]
        for repeat in range(repeats + 1):
            for way in ways:
                way.ask(prompts)
                if not repeat:
                    way.seconds.clear()
    return ways


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the recipe sami_smol")
    parser.add_argument("--queries", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_intermixed_args()
    config = composed(arguments.overrides)
    if config is None:
        return EXIT_USER_ERROR
    try:
        set_environment(config)
        prompts = requests(config, arguments.queries)
        ways = measure(config, prompts, arguments.repeats)
    except UserError as error:
        print(error, file=sys.stderr)
        return EXIT_USER_ERROR
    print(f"{machine()}; {config.generate.dtype}; medians of {arguments.repeats}, ratios paired\n")
    print(table(HEADER, [way.row(prompts, ways[0]) for way in ways]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
