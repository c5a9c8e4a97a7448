"""The planner's memory and operations against real training steps of 135 M parameters on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sami_nemo.config import Config, dump_config
from sami_nemo.planner.compute import Batch, group_tokens, step_flops
from sami_nemo.planner.geometry import model_geometry
from sami_nemo.planner.layout import layout_of
from sami_nemo.planner.memory import CPU, rank_memory
from tests.distributed.training_runs import tiny_config

REPOSITORY = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("training_costs.py")
PROMPT, RESPONSE = 96, 32


def measured(config: Config, folder: Path) -> dict[str, float]:
    (folder / "config.yaml").write_text(dump_config(config))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=1", "--rdzv-backend=c10d"]
    command += ["--rdzv-endpoint=127.0.0.1:0", str(WORKER), str(folder / "config.yaml"), str(PROMPT), str(RESPONSE)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("REPORT ")]
    assert lines, done.stderr[-3000:]
    report = json.loads(lines[-1].removeprefix("REPORT "))
    assert isinstance(report, dict)
    return report


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"precision": "bf16"},
        {"precision": "fp32", "micro_batch": 2},
        {"precision": "bf16", "master_weights": "bf16", "optimizer": "rmsprop", "activation_checkpointing": True},
        {"precision": "bf16", "gradients": "bf16", "constitutions_per_query": 3},
        {"precision": "bf16", "layout": "plain"},
        {"precision": "fp32", "layout": "plain", "micro_batch": 2},
    ],
    ids=["bf16", "fp32", "in place, checkpointing", "three constitutions", "plain", "plain, fp32"],
)
def test_within_a_tenth_of_a_real_step(smollm2: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    together = settings.pop("micro_batch", 1)
    config = tiny_config(tmp_path, "costs", smollm2, 1, **{"batch_size": 2, "batches": 2, "lr": 1e-5} | settings)
    train = config.train
    batch = Batch(train.batch_size, train.constitutions_per_query, PROMPT, RESPONSE, train.layout)
    tokens = together * group_tokens(batch)
    config = config.model_copy(update={"train": train.model_copy(update={"micro_batch_tokens": tokens})})
    geometry, layout = model_geometry(config.model), replace(layout_of(config), micro_batch=together)
    assert geometry is not None
    found = measured(config, tmp_path)
    memory = rank_memory(geometry, layout, batch, 0, CPU)
    print({name: (value, getattr(memory, name, None)) for name, value in found.items()})
    assert memory.weights == found["weights"]
    assert memory.gradients == found["gradients"]
    # The planner counts the padding of the last shard, which has no states.
    assert memory.optimizer == pytest.approx(found["optimizer"], rel=1e-5)
    assert memory.activations == pytest.approx(found["activations"], rel=0.1)
    assert step_flops(geometry, layout, batch, skip=False) == pytest.approx(found["flops"], rel=0.1)
