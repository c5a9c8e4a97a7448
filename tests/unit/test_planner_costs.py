"""The planner's memory and operations against real training steps on the CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from sami_nemo.base_model.geometry import base_geometry
from sami_nemo.config.files import dump_config
from sami_nemo.config.schema import Config
from sami_nemo.planner.batch import Batch, group_tokens
from sami_nemo.planner.compute import step_flops
from sami_nemo.planner.layout import layout_of
from sami_nemo.planner.memory import CPU, optimizer_bytes, rank_memory
from sami_nemo.run_dir import read_json
from tests.distributed.ranks import run_ranks, tail
from tests.distributed.training_runs import tiny_config
from tests.unit import training_costs

PROMPT, RESPONSE = 96, 32


@pytest.fixture(scope="module")
def small_smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 in small: tied embeddings, three query heads to a key-value head, and its proportions of widths.

    As there, the activations of the layers are most of what a step holds, and the head's a good part. Its steps are
    quick in bf16 even where the CPU has no instructions for it.
    """
    directory = tmp_path_factory.mktemp("costs") / "model"
    config = MistralConfig(
        vocab_size=4096,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        sliding_window=None,
        tie_word_embeddings=True,
    )
    MistralForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
    return directory


def measured(config: Config, folder: Path) -> dict[str, float]:
    (folder / "config.yaml").write_text(dump_config(config))
    log, words = folder / "log", (folder / "config.yaml", PROMPT, RESPONSE)
    assert run_ranks(1, log, training_costs.measure_steps, *words) == 0, tail(log)
    return read_json(folder / "report.json")


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
def test_within_a_tenth_of_a_real_step(small_smollm2: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    together = settings.pop("micro_batch", 1)
    config = tiny_config(tmp_path, "costs", small_smollm2, 1, **{"batch_size": 2, "batches": 2, "lr": 1e-5} | settings)
    train = config.train
    batch = Batch(train.batch_size, train.constitutions_per_query, PROMPT, RESPONSE, train.layout)
    tokens = together * group_tokens(batch)
    config = config.model_copy(update={"train": train.model_copy(update={"micro_batch_tokens": tokens})})
    geometry, layout = base_geometry(config.model), replace(layout_of(config), micro_batch=together)
    assert geometry is not None
    found = measured(config, tmp_path)
    memory = rank_memory(geometry, layout, batch, 0, CPU)
    print({name: (value, getattr(memory, name, None)) for name, value in found.items()})
    assert memory.weights == found["weights"]
    assert memory.gradients == found["gradients"]
    # The planner counts the padding of the last shard, up to 127 elements that have no states.
    assert 0 <= memory.optimizer - found["optimizer"] < 128 * optimizer_bytes(layout, CPU)
    assert memory.activations == pytest.approx(found["activations"], rel=0.1)
    assert step_flops(geometry, layout, batch, skip=False) == pytest.approx(found["flops"], rel=0.1)
