"""Configurations that cannot work are refused, with one line that names field, value and remedy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sami_nemo.base_model.geometry import base_geometry
from sami_nemo.config.files import dump_config, load_config, parse_config
from sami_nemo.config.schema import Config
from sami_nemo.errors import CheckpointError, ConfigError
from sami_nemo.launch.checks import check_config

ROOT = Path(__file__).parents[2]

# A mixture of 8 experts on 8 GPUs; every check passes.
VALID: dict[str, Any] = {
    "name": "run",
    "recipe": "none",
    "seed": 0,
    "iterations": 3,
    "runs_dir": "runs",
    "model": {
        "name": "mixture",
        "architecture": "mixtral",
        "path": "someone/mixture",
        "num_layers": 6,
        "hidden_size": 512,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "num_experts": 8,
        "experts_per_token": 2,
        "ffn_hidden_size": 1024,
        "vocab_size": 32000,
    },
    "data": {
        "name": "file",
        "format": "queries",
        "task": "dialogue",
        "source": "queries.jsonl",
        "evaluation_queries": 10,
        "max_query_tokens": 128,
    },
    "principles": {"name": "claude_opus", "source": "file", "file": "dialogue_claude_opus.yaml"},
    "judge": {"name": "none", "method": "none"},
    "generate": {"max_tokens": 64, "chat_template": False, "max_model_len": 512},
    "train": {"batch_size": 16, "batches": 2, "optimizer": "adamw", "lr": 1e-4, "expert_parallel": 2},
    "evaluate": {},
    "logger": {},
    "hardware": {"name": "node", "accelerator": "gpu", "devices_per_node": 8},
    "cluster": {"name": "site", "scheduler": "slurm"},
}
DENSE = {
    "model.architecture": "mistral",
    "model.num_experts": None,
    "model.experts_per_token": None,
    "train.expert_parallel": 1,
}


def config_with(changes: dict[str, Any]) -> Config:
    """`VALID` with other values, by dotted name."""
    values = json.loads(json.dumps(VALID))
    for name, value in changes.items():
        *sections, field = name.split(".")
        target = values
        for section in sections:
            target = target[section]
        target[field] = value
    return parse_config(values)


def refusal(changes: dict[str, Any]) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        check_config(config_with(changes))
    assert "\n" not in str(caught.value)
    return caught.value


def test_accepts_what_works() -> None:
    check_config(config_with({}))
    check_config(config_with(DENSE))
    check_config(config_with({"train.tensor_parallel": 2, "train.sequence_parallel": True}))
    check_config(
        config_with({"train.tensor_parallel": 2, "train.pipeline_parallel": 2, "train.sequence_parallel": True})
    )


@pytest.mark.parametrize(
    ("changes", "field", "value", "remedy"),
    [
        # 8 query heads, 4 key-value heads, 6 layers, 8 experts, 8 devices.
        ({"train.tensor_parallel": 3}, "train.tensor_parallel", "3", "must divide the 8 attention heads"),
        ({"train.tensor_parallel": 8}, "train.tensor_parallel", "8", "must divide the 4 key-value heads"),
        ({"train.expert_parallel": 3}, "train.expert_parallel", "3", "must divide the 8 experts"),
        (DENSE | {"train.expert_parallel": 2}, "train.expert_parallel", "2", "has no experts; set 1"),
        (DENSE | {"model.num_experts": 8}, "model.num_experts", "8", "set null"),
        ({"train.tensor_parallel": 2}, "train.sequence_parallel", "False", "set true"),
        ({"train.sequence_parallel": True}, "train.sequence_parallel", "True", "set false"),
        (
            {"hardware.devices_per_node": 5, "train.pipeline_parallel": 2},
            "hardware.devices_per_node",
            "5",
            "multiple of",
        ),
        (
            {"train.expert_parallel": 8, "train.pipeline_parallel": 2},
            "train.expert_parallel",
            "8",
            "the 4 data-parallel",
        ),
        ({"train.pipeline_parallel": 4}, "train.pipeline_parallel", "4", "must divide the 6 layers"),
        (
            {"train.pipeline_parallel": 2, "train.moe_dispatcher": "allgather"},
            "train.moe_dispatcher",
            "allgather",
            "use alltoall",
        ),
        ({"train.batch_size": 12}, "train.batch_size", "12", "must be a multiple of 8"),
        ({"train.context_parallel": 2}, "train.context_parallel", "2", "not supported; set 1"),
        (
            {"train.precision": "fp32", "train.master_weights": "bf16"},
            "train.master_weights",
            "bf16",
            "train.precision=bf16",
        ),
        # Two principles with two statements each.
        ({"train.constitutions_per_query": 5}, "train.constitutions_per_query", "5", "gives 4 constitutions"),
        ({"evaluate.constitutions_per_query": 5}, "evaluate.constitutions_per_query", "5", "gives 4 constitutions"),
        # 128 for the query, 300 for the rest of the prompt, 64 for the response.
        ({"generate.max_model_len": 491}, "generate.max_model_len", "491", "set at least 492"),
        ({"generate.tensor_parallel": 3}, "generate.tensor_parallel", "3", "must divide the 8 attention heads"),
        ({"cluster.train": {"time": "soon"}}, "cluster.train.time", "soon", "hours:minutes:seconds"),
        ({"cluster.default": {"time": "10"}}, "cluster.default.time", "10", "twice cluster.signal_seconds=300"),
        (
            {"cluster.default": {"time": "1-0"}, "cluster.signal_seconds": 43_200},
            "cluster.default.time",
            "1-0",
            "twice",
        ),
        (
            {"generate.tensor_parallel": 8, "hardware.devices_per_node": 4},
            "generate.tensor_parallel",
            "8",
            "which has 4 GPUs",
        ),
    ],
)
def test_refuses_what_cannot_work(changes: dict[str, Any], field: str, value: str, remedy: str) -> None:
    error = refusal(changes)
    assert str(error).startswith(f"{field} = {value}: ")
    assert remedy in str(error)


@pytest.mark.parametrize(
    "changes",
    [
        {"generate.max_model_len": 492},
        {"train.constitutions_per_query": 4, "evaluate.constitutions_per_query": 4},
        DENSE | {"train.pipeline_parallel": 2, "train.moe_dispatcher": "allgather"},
        DENSE | {"train.tensor_parallel": 2},
        # A token was added: ranks share the vocabulary all the same.
        DENSE | {"train.tensor_parallel": 2, "model.vocab_size": 32_001},
        {"train.tensor_parallel": 4, "train.sequence_parallel": True, "model.vocab_size": 32_003},
        {"train.precision": "fp32"},
    ],
)
def test_accepts_the_neighbours_of_what_cannot_work(changes: dict[str, Any]) -> None:
    check_config(config_with(changes))


def write_hf_config(directory: Path, **changes: Any) -> None:
    hf_config = {
        "model_type": "mixtral",
        "num_hidden_layers": 6,
        "hidden_size": 512,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "intermediate_size": 1024,
        "vocab_size": 32000,
    }
    (directory / "config.json").write_text(json.dumps(hf_config | changes))


def test_geometry_of_a_checkpoint_fills_nulls(tmp_path: Path) -> None:
    write_hf_config(tmp_path, num_key_value_heads=2)
    changes = {"model.path": str(tmp_path), "model.num_key_value_heads": None, "model.num_layers": None}
    geometry = base_geometry(config_with(changes).model)
    assert geometry is not None and geometry.num_key_value_heads == 2
    check_config(config_with(changes))
    changes |= {"train.tensor_parallel": 4, "train.sequence_parallel": True}
    assert "must divide the 2 key-value heads" in str(refusal(changes))


def test_unknown_geometry_is_not_guessed() -> None:
    unknown = {f"model.{field}": None for field in ("num_layers", "num_attention_heads", "num_key_value_heads")}
    check_config(config_with(DENSE | unknown | {"train.tensor_parallel": 8}))


@pytest.mark.parametrize(
    ("found", "field", "value"),
    [
        ({"num_hidden_layers": 7}, "model.num_layers", "6"),
        ({"num_local_experts": 4}, "model.num_experts", "8"),
        ({"model_type": "llama"}, "model.architecture", "mixtral"),
    ],
)
def test_geometry_of_a_checkpoint_must_agree(tmp_path: Path, found: dict[str, Any], field: str, value: str) -> None:
    write_hf_config(tmp_path, **found)
    message = str(refusal({"model.path": str(tmp_path)}))
    assert message.startswith(f"{field} = {value}: ")
    assert f"config.json says {next(iter(found))}" in message


def test_broken_checkpoint_config_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError) as caught:
        check_config(config_with({"model.path": str(tmp_path)}))
    assert str(caught.value).startswith(f"model.path = {tmp_path}: its config.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("train.learning_rate", 0.1, "train.learning_rate = 0.1: unknown key"),
        ("train.batch_size", "many", "train.batch_size = 'many': Input should be a valid integer"),
        ("train.batch_size", 0, "train.batch_size = 0: Input should be greater than or equal to 1"),
        ("train.lr", float("nan"), "train.lr = nan: Input should be"),
        ("train.optimizer", "sgd", "train.optimizer = 'sgd': Input should be 'adamw' or 'rmsprop'"),
        ("train.constitutions_per_query", 1, "train.constitutions_per_query = 1: Input should be greater"),
        ("name", "../elsewhere", "name = '../elsewhere': String should match"),
    ],
)
def test_parse_names_field_value_and_remedy(name: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_with({name: value})
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_missing_key_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^seed = \(missing\): give it a value$"):
        parse_config({key: value for key, value in VALID.items() if key != "seed"})


def test_stored_configuration_reads_back_equal(tmp_path: Path) -> None:
    config = config_with({"train.lr": 5e-7})
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    assert load_config(path) == config


def test_checks_import_nothing_heavy() -> None:
    code = (
        "import json, sys; from sami_nemo.config.files import parse_config; from sami_nemo.launch.checks import check_config; "
        "check_config(parse_config(json.loads(sys.argv[1]))); "
        "print(sorted({'torch', 'nemo', 'megatron', 'vllm', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, json.dumps(VALID)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300)
    assert result.stdout.strip() == "[]"
