"""Real training stages on tiny models and random contrast groups."""

from __future__ import annotations

import contextlib
import os
import random
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from sami_nemo.config.files import dump_config, parse_config
from sami_nemo.config.schema import Config
from sami_nemo.constitution.principles import SHIPPED
from sami_nemo.progress import EVENTS_VARIABLE
from sami_nemo.records import Constitution, ContrastGroup, Query
from sami_nemo.run_dir import RunDir, read_jsonl, write_jsonl, write_text
from tests.checkpoints import give
from tests.distributed.ranks import run_ranks

REPOSITORY = Path(__file__).parents[2]
# A stage takes 15 s on an idle machine, of which imports are 13; a slow one under load has time enough.
STAGE_TIMEOUT = 900


def tiny_config(runs_dir: Path, name: str, base: Path, devices: int, **train: Any) -> Config:
    """Two steps of two groups, in fp32 and one process unless `train` says otherwise."""
    settings: dict[str, Any] = {"batch_size": 4, "batches": 2, "optimizer": "adamw", "lr": 1e-3, "precision": "fp32"}
    return parse_config(
        {
            "name": name,
            "recipe": "test",
            "seed": 0,
            "iterations": 1,
            "runs_dir": str(runs_dir),
            "model": {"name": "tiny", "architecture": "mistral", "path": str(base)},
            "data": {
                "name": "none",
                "format": "queries",
                "task": "dialogue",
                "source": "none",
                "evaluation_queries": 1,
                "max_query_tokens": 16,
            },
            "principles": {"name": "none", "source": "file", "file": "dialogue_claude_opus"},
            "judge": {"name": "none", "method": "none"},
            "generate": {"max_tokens": 8, "chat_template": False, "max_model_len": 64},
            "train": settings | train,
            "evaluate": {},
            "logger": {"tensorboard": False},
            "hardware": {"name": "test", "accelerator": "cpu", "devices_per_node": devices},
        }
    )


def random_groups(
    count: int, size: int = 2, vocabulary: int = 256, seed: int = 0, first: int = 5
) -> list[ContrastGroup]:
    """Contrast groups of random tokens from `first` on; responses of one token are among them."""
    draw = random.Random(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw.randrange(first, vocabulary) for _ in range(draw.randint(low, high)))

    return [
        ContrastGroup(
            Query(f"query-{number}", "?", "test"),
            tuple(Constitution(str(j), ("s",)) for j in range(size)),
            tuple(ids(4, 9) for _ in range(size)),
            tuple(ids(1, 7) for _ in range(size)),
            ("",) * size,
        )
        for number in range(count)
    ]


def make_run(config: Config, groups: list[ContrastGroup]) -> RunDir:
    """A run directory at the point where iteration 1 trains."""
    run = RunDir(config.run_dir)
    write_text(run.config, dump_config(config))
    # The model card tells them.
    write_text(run.principles, (SHIPPED / "dialogue_claude_opus.yaml").read_text(encoding="utf-8"))
    write_jsonl(run.groups(0) / "training.jsonl", (group.to_json() for group in groups))
    give(run, Path(config.model.path))
    return run


def run_stage(run: RunDir, module: str, processes: int, iteration: int) -> tuple[int, str]:
    """The stage on forked ranks; exit status and output."""
    log = run.root / f"{module}.log"
    return run_ranks(processes, log, be_stage, run.root, module, iteration), log.read_text(errors="replace")


def be_stage(root: Path, module: str, iteration: int) -> None:
    """What `python -m MODULE` does with a stage's options."""
    os.environ[EVENTS_VARIABLE] = str(root / "events.jsonl")
    sys.argv = [module, "--run-dir", str(root), "--iteration", str(iteration)]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def start(run: RunDir, module: str, processes: int, iteration: int) -> subprocess.Popen[str]:
    """The stage as the launcher starts it, under torch.distributed.run, in a process group of its own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]
    command += [
        f"--nproc-per-node={processes}",
        "-m",
        module,
        "--run-dir",
        str(run.root),
        "--iteration",
        str(iteration),
    ]
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        EVENTS_VARIABLE: str(run.root / "events.jsonl"),
    }
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit status and output; whatever happens, no process stays."""
    try:
        output, _ = process.communicate(timeout=STAGE_TIMEOUT)
        return process.returncode, output
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def train(config: Config, groups: list[ContrastGroup]) -> tuple[RunDir, list[dict[str, Any]]]:
    """Train iteration 1 to the end; the rows of its steps."""
    run = make_run(config, groups)
    processes = config.hardware.devices_per_node
    status, output = run_stage(run, "sami_nemo.train", processes, iteration=1)
    assert status == 0, output[-4000:]
    return run, read_jsonl(run.iteration(1) / "train.partial" / "steps.jsonl")
