"""How fast a gradient step is, and what memory it takes, beside the same step written with transformers.

.venv/train/bin/python tools/bench_train.py [--case TASK:N_C:GROUPS[:PROMPT] ...] [--repeats N] [--data DIR] [key=value …]

Real SmolLM2-135M weights. TASK is summary (prompts of about 550 tokens, responses of about 80) or dialogue (150, 60), N_C
the number of constitutions, GROUPS the contrast groups of a step, PROMPT another mean length of prompts. Both take steps in
turn in one process, and memory is measured in processes of their own; with --apart, where the memory for both is lacking,
times are those of the latter too, one after the other. Overrides are those of the recipe sami_smol:
hardware.devices_per_node=2 measures two ranks (with --ours-only).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sami_nemo.bench.groups import LENGTHS
from sami_nemo.bench.measure import GIB, machine, paired, table
from sami_nemo.bench.training import Case
from sami_nemo.errors import EXIT_USER_ERROR, UserError
from sami_nemo.launch.local_runner import StageFailed
from sami_nemo.launch.stages import environment_variables, plan
from sami_nemo.run_dir import write_json

# Steps of 10 to 30 s on two cores. Of summary:4:1 transformers alone takes a minute and 20 GiB: see --apart.
CASES = ("summary:2:2", "dialogue:2:4", "dialogue:4:2")
TIMES = (
    "case",
    "prompt + response",
    "ours",
    "transformers",
    "ratio",
    "tokens",
    "share of the limit",
    "our loss",
    "theirs",
)
GROWTH = ("case", "prompt + response", "tokens", "a step", "tokens/s", "share of the limit", "peak memory")
MEMORY = ("case", "ours", "transformers", "share", "ours above its state", "theirs above its state", "share")


@dataclass(frozen=True)
class Result:
    """Reports of `sami_nemo.bench.training` by mode."""

    case: Case
    pair: dict[str, Any]
    ours: dict[str, Any]
    theirs: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.case.task}, N_c = {self.case.constitutions}, {self.case.groups} groups"

    def times(self) -> list[str]:
        pair = self.pair
        ours, theirs = statistics.median(pair["ours"]), statistics.median(pair["theirs"])
        share = pair["unique_flops"] / ours / pair["matmul_flops"]
        return [
            self.name,
            f"{pair['prompt']:.0f} + {pair['response']:.0f}",
            f"{ours:.2f} s",
            f"{theirs:.2f} s",
            f"**{paired(pair['ours'], pair['theirs']):.2f}**",
            f"{pair['ours_tokens']:,} / {pair['theirs_tokens']:,}",
            f"{share:.0%}",
            f"{pair['ours_loss'][0]:.4f}",
            f"{pair['theirs_loss'][0]:.4f}",
        ]

    def memory(self) -> list[str]:
        peaks = [report["peak"] / GIB for report in (self.ours, self.theirs)]
        above = [(report["peak"] - report["resting"]) / GIB for report in (self.ours, self.theirs)]
        return [
            self.name,
            *(f"{peak:.2f} GiB" for peak in peaks),
            f"{peaks[0] / peaks[1]:.2f}",
            *(f"{size:.2f} GiB" for size in above),
            f"**{above[0] / above[1]:.2f}**",
        ]


def run(case: Case) -> dict[str, Any]:
    """Measure a case in fresh processes, with the variables that a training stage gets.

    Raises:
        StageFailed: they end without a report.
    """
    config = case.config()
    (stage,) = [stage for stage in plan(config) if stage.name == "train_1"]
    ranks = 1 if case.mode == "theirs" else config.hardware.devices_per_node
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1"]
    command += ["-m", "sami_nemo.bench.training", json.dumps(asdict(case))]
    environment = {**os.environ, **environment_variables(stage, config)}
    if case.mode == "theirs":
        # Keeping freed memory is a setting of our stages, and costs some.
        environment = {name: value for name, value in environment.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("REPORT ")]
    if not lines:
        raise StageFailed(f"{done.stdout[-2000:]}{done.stderr[-4000:]}\n{case} ended without a report")
    report = json.loads(lines[-1].removeprefix("REPORT "))
    assert isinstance(report, dict)
    return report


def compare(case: Case) -> Result:
    """Times in turn, memory in processes of their own."""
    alone = replace(case, repeats=1, mode="ours")
    return Result(case, run(case), run(alone), run(replace(alone, mode="theirs")))


def compare_apart(case: Case) -> Result:
    """Each in a process of its own, one after the other."""
    ours, theirs = (run(replace(case, mode=mode)) for mode in ("ours", "theirs"))
    return Result(case, ours | {name: theirs[name] for name in ("theirs", "theirs_loss")}, ours, theirs)


def growth(case: Case) -> list[str]:
    """A row of our times alone."""
    report = run(replace(case, mode="ours"))
    seconds = statistics.median(report["ours"])
    return [
        f"{case.task}, N_c = {case.constitutions}, {case.groups} groups",
        f"{report['prompt']:.0f} + {report['response']:.0f}",
        f"{report['ours_tokens']:,}",
        f"{seconds:.2f} s",
        f"{report['ours_tokens'] / seconds:.0f}",
        f"{report['unique_flops'] / seconds / report['matmul_flops']:.0%}",
        f"{report['peak'] / GIB:.2f} GiB",
    ]


def parse_case(text: str) -> tuple[Any, ...]:
    """TASK:N_C:GROUPS[:PROMPT]."""
    task, *numbers = text.split(":")
    if task not in LENGTHS or len(numbers) not in (2, 3):
        raise ValueError(text)
    return (task, *map(int, numbers))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the recipe sami_smol")
    parser.add_argument("--case", type=parse_case, action="append", help=f"default: {' '.join(CASES)}")
    parser.add_argument("--repeats", type=int, default=5, help="measured steps of each")
    parser.add_argument(
        "--data", help="directory of real texts instead of random tokens: see sami_nemo/bench/groups.py"
    )
    parser.add_argument("--apart", action="store_true", help="never both in memory")
    parser.add_argument("--ours-only", action="store_true", help="no comparison: how our own time grows")
    parser.add_argument("--json", type=Path, help="also write all numbers to this file")
    arguments = parser.parse_intermixed_args()
    cases = [
        Case(task, size, groups, arguments.repeats, "pair", tuple(arguments.overrides), arguments.data, *prompt)
        for task, size, groups, *prompt in arguments.case or map(parse_case, CASES)
    ]
    print(f"{machine()}; medians of {arguments.repeats}, ratios paired\n", flush=True)
    try:
        if arguments.ours_only:
            print(table(GROWTH, [growth(case) for case in cases]))
            return 0
        results = [(compare_apart if arguments.apart else compare)(case) for case in cases]
    except (UserError, StageFailed) as error:
        print(error, file=sys.stderr)
        return EXIT_USER_ERROR
    print(f"{table(TIMES, [result.times() for result in results])}\n")
    print(table(MEMORY, [result.memory() for result in results]))
    if arguments.json:
        write_json(arguments.json, {result.name: asdict(result) for result in results})
    return 0


if __name__ == "__main__":
    sys.exit(main())
