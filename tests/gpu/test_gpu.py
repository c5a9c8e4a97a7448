"""What only a GPU can show: FlexAttention, Transformer Engine's layers, NCCL. Skipped where there is none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sami_nemo.config.schema import Config
from sami_nemo.model.attention import attended_by_rows, flex_attended
from sami_nemo.run_dir import partial, read_json, read_jsonl
from tests.distributed.training_runs import REPOSITORY, finish, make_run, random_groups, start, tiny_config, train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU"),
]

WORKER = REPOSITORY / "tests" / "distributed" / "layouts_worker.py"
# Two rows of a prompt and three responses, one of a single token; 512 positions with padding.
ROWS = torch.tensor([[130, 40, 1, 33], [120, 40, 1, 33]])
LENGTH = 512


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 3e-2)], ids=["fp32", "bf16"])
def test_flex_attention_equals_attention_by_rows(dtype: torch.dtype, tolerance: float) -> None:
    """Values and gradients, against the CPU's in float64."""
    generator = torch.Generator().manual_seed(0)
    reference, ours = [], []
    for heads in (8, 2, 2):
        tensor = torch.randn(1, heads, LENGTH, 64, generator=generator, dtype=torch.float64)
        reference.append(tensor.clone().requires_grad_())
        ours.append(tensor.to("cuda", dtype).requires_grad_())
    counts = int(ROWS.sum())
    weights = torch.randn(1, 8, LENGTH, 64, generator=generator, dtype=torch.float64)
    weights[:, :, counts:] = 0
    expected = attended_by_rows(*reference, ROWS)
    found = flex_attended(*ours, ROWS.cuda(), scale=None)
    assert torch.allclose(found[:, :, :counts].cpu().double(), expected[:, :, :counts], atol=tolerance)
    (expected * weights).sum().backward()
    (found * weights.to("cuda", dtype)).sum().backward()
    for a, b in zip(ours, reference, strict=True):
        assert a.grad is not None and b.grad is not None
        apart = (a.grad.cpu().double() - b.grad).norm() / b.grad.norm()
        assert apart < tolerance


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_layouts_agree_in_bf16(kind: str, tiny_mistral: Path, tiny_mixtral: Path, tmp_path: Path) -> None:
    """With Transformer Engine's layers where it is installed, Megatron's own elsewhere."""
    checkpoint = tiny_mistral if kind == "dense" else tiny_mixtral
    cases = {"bf16": {"precision": "bf16", "size": 3}}
    command = [sys.executable, "-m", "torch.distributed.run", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]
    command += ["--nproc-per-node=1", str(WORKER), str(checkpoint), str(tmp_path), json.dumps(cases)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "CUDA_DEVICE_MAX_CONNECTIONS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    apart = read_json(tmp_path / "report.json")["bf16"]
    assert 0 < apart["mean"] < 1e-2
    assert apart["gradients"] < 0.1


def on_gpu(config: Config) -> Config:
    return config.model_copy(update={"hardware": config.hardware.model_copy(update={"accelerator": "gpu"})})


@pytest.mark.parametrize("layout", ["shared_prefix", "plain"])
def test_a_training_stage_begins_as_on_the_cpu(layout: str, tiny_mistral: Path, tmp_path: Path) -> None:
    """The whole stage: import, two steps, verified export."""
    settings: dict[str, Any] = {"precision": "bf16", "layout": layout}
    groups = random_groups(8)
    cpu = tiny_config(tmp_path, "cpu", tiny_mistral, 1, **settings)
    _, expected = train(cpu, groups)
    run = make_run(on_gpu(tiny_config(tmp_path, "gpu", tiny_mistral, 1, **settings)), groups)
    status, output = finish(start(run, "sami_nemo.train", 1, 1))
    assert status == 0, output[-4000:]
    found = read_jsonl(partial(run.train(1)) / "steps.jsonl")
    assert found[0]["loss"] == pytest.approx(expected[0]["loss"], abs=1e-2)
