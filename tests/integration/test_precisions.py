"""Every type of base checkpoint with every training precision: trained, exported, asked by vLLM, and evaluated.

All runs share one process for each kind of stage (tests/stages_worker.py), training and scoring in Megatron, sampling in vLLM.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from sami_nemo.checkpoint.export import compare_logits, fixed_tokens
from sami_nemo.checkpoint.headers import read_headers
from sami_nemo.checkpoint.hf_verify import hf_logits, verify_export
from sami_nemo.checkpoint.safetensors_io import DTYPE_NAMES
from sami_nemo.config.schema import Config
from sami_nemo.errors import CheckpointError
from sami_nemo.run_dir import RunDir, read_json, read_jsonl, write_jsonl, write_text
from tests import stages_worker
from tests.distributed.ranks import run_ranks, tail
from tests.distributed.training_runs import make_run, random_groups, tiny_config

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
PRINCIPLES = REPOSITORY / "sami_nemo" / "constitution" / "principles" / "dialogue_claude_opus.yaml"
# Against hanging: it takes a minute.
TIMEOUT = 900

BASES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
PRECISIONS = ("bf16", "fp32")
KINDS = ("dense", "moe")
ALL = [(kind, base, precision) for kind in KINDS for base in BASES for precision in PRECISIONS]
STORED = {"bf16": ("BF16", "bfloat16"), "fp32": ("F32", "float32")}


def run_config(runs_dir: Path, name: str, base: Path, architecture: str, precision: str) -> Config:
    """One step of training at a rate that moves every weight by more than bf16 can hold, and two questions to the result."""
    config = tiny_config(runs_dir, name, base, 1, batch_size=2, batches=1, precision=precision)
    sampled = {"dtype": STORED[precision][1], "max_model_len": 1024, "max_num_seqs": 2, "cpu_kv_cache_gib": 1}
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"architecture": architecture}),
            "data": config.data.model_copy(update={"max_query_tokens": 64}),
            "generate": config.generate.model_copy(update=sampled),
            "evaluate": config.evaluate.model_copy(update={"constitutions_per_query": 2}),
        }
    )


def ready_to_train(config: Config) -> RunDir:
    run = make_run(config, random_groups(2))
    write_text(run.principles, PRINCIPLES.read_text())
    query = {"id": "one", "text": "How do I bake bread?", "source": "test"}
    write_jsonl(run.queries / "evaluation.jsonl", [query])
    return run


def train_stages(modules: list[str], runs: list[RunDir], log: Path) -> None:
    """Stages of iteration 1 of all runs, in the training environment."""
    status = run_ranks(1, log, stages_worker.main, modules, 1, runs)
    assert status == 0, tail(log)


def sample(runs: list[RunDir], python: Path) -> None:
    """The sampling stage of iteration 1 of all runs, in the generation environment."""
    command = [str(python), stages_worker.__file__, "sami_nemo.generate.sample", "1", *(str(run.root) for run in runs)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.fixture(scope="module")
def bases(
    tmp_path_factory: pytest.TempPathFactory, tiny_mistral: Path, tiny_mixtral: Path
) -> dict[tuple[str, str], Path]:
    """Checkpoints by kind and type of the stored weights."""
    folder, found = tmp_path_factory.mktemp("bases"), {}
    for kind, source in (("dense", tiny_mistral), ("moe", tiny_mixtral)):
        for name, dtype in BASES.items():
            found[kind, name] = shutil.copytree(source, folder / f"{kind}_{name}")
            AutoModelForCausalLM.from_pretrained(source, dtype=dtype).save_pretrained(found[kind, name])
            assert {info.dtype for info in read_headers(found[kind, name]).values()} == {DTYPE_NAMES[dtype]}
    return found


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, bases: dict[tuple[str, str], Path], generate_python: Path
) -> dict[tuple[str, str, str], RunDir]:
    """A run of each combination, through all stages of its iteration 1."""
    folder = tmp_path_factory.mktemp("runs")
    found = {
        (kind, base, precision): ready_to_train(
            run_config(
                folder,
                f"{kind}_{base}_{precision}",
                bases[kind, base],
                "mixtral" if kind == "moe" else "mistral",
                precision,
            )
        )
        for kind, base, precision in ALL
    }
    everything = list(found.values())
    train_stages(["sami_nemo.train"], everything, folder / "train.log")
    sample(everything, generate_python)
    train_stages(["sami_nemo.contrast.groups", "sami_nemo.evaluate.bound"], everything, folder / "evaluate.log")
    return found


@pytest.mark.parametrize(("kind", "base", "precision"), ALL)
def test_from_base_to_bound(
    runs: dict[tuple[str, str, str], RunDir],
    bases: dict[tuple[str, str], Path],
    kind: str,
    base: str,
    precision: str,
) -> None:
    run = runs[kind, base, precision]
    stored, name = STORED[precision]
    exported = read_headers(run.hf(1))
    assert {info.dtype for info in exported.values()} == {stored}
    config = read_json(run.hf(1) / "config.json")
    assert {config.get("dtype", name), config.get("torch_dtype", name)} == {name}
    assert "dtype" in config or "torch_dtype" in config
    before = load_file(bases[kind, base] / "model.safetensors")
    after = load_file(run.hf(1) / "model.safetensors")
    moved = [not torch.equal(before[tensor].to(after[tensor].dtype), after[tensor]) for tensor in before]
    assert sum(moved) > len(moved) / 2, "training moved the weights"

    responses = read_jsonl(run.responses(1) / "evaluation.jsonl")
    assert len(responses) == 2 and all(row["token_ids"] for row in responses)
    bound = read_json(run.evaluation(1) / "summary.json")["mi_bound"]
    assert math.isfinite(bound["mean"]) and bound["n"] == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rounded_to", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_fp32_weights_that_were_rounded_are_refused(
    runs: dict[tuple[str, str, str], RunDir],
    bases: dict[tuple[str, str], Path],
    tmp_path: Path,
    kind: str,
    rounded_to: torch.dtype,
) -> None:
    """What an export in the type of the base would hold: of the right shapes, and another model."""
    trained = runs[kind, "bf16", "fp32"].hf(1)
    export = shutil.copytree(trained, tmp_path / "export")
    tokens_BS = fixed_tokens(1024)
    trained_BSV = hf_logits(trained, tokens_BS, torch.float32)
    compare_logits(trained_BSV, hf_logits(export, tokens_BS, torch.float32), torch.float32, export)

    weights = load_file(export / "model.safetensors")
    rounded = {name: tensor.to(rounded_to).float() for name, tensor in weights.items()}
    save_file(rounded, export / "model.safetensors", {"format": "pt"})
    verify_export(export, bases[kind, "bf16"], torch.float32)
    with pytest.raises(CheckpointError, match="other log-probs than the trained model"):
        compare_logits(trained_BSV, hf_logits(export, tokens_BS, torch.float32), torch.float32, export)


def test_type_of_an_export_is_checked(
    runs: dict[tuple[str, str, str], RunDir], bases: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    base = bases["dense", "fp16"]
    with pytest.raises(CheckpointError, match=r"as BF16 \(.*, not F32"):
        verify_export(runs["dense", "fp16", "bf16"].hf(1), base, torch.float32)
    export = shutil.copytree(runs["dense", "fp16", "fp32"].hf(1), tmp_path / "export")
    shutil.copyfile(base / "config.json", export / "config.json")
    with pytest.raises(CheckpointError, match=r"says torch.float16, with weights in torch.float32"):
        verify_export(export, base, torch.float32)
