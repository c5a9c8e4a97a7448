"""Checkpoints of every form compute what transformers computes of them: log-probs and gradients."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sami_nemo.base_model import random_model
from sami_nemo.base_model.adopt import adopt
from sami_nemo.config_json import geometry_of
from sami_nemo.run_dir import read_json, write_json
from tests.distributed import conversion_worker
from tests.distributed.ranks import run_ranks, tail

pytestmark = pytest.mark.slow

# So short that the 24 tokens of the comparison feel how they are stretched.
BEFORE = 8
LINEAR = {"rope_type": "linear", "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 6.0,
    # Megatron's constants are 1, 4 and 8192.
    "low_freq_factor": 1.5,
    "high_freq_factor": 3.0,
    "original_max_position_embeddings": BEFORE,
}
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": BEFORE}
# Architecture, what its config.json says in transformers 4's form, and in the form in which it is read here.
FORMS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "mistral": ("mistral", {}, {}),
    "mistral, no rope_theta": ("mistral", {"rope_theta": 1e4}, {"rope_theta": None}),
    "mistral, linear": ("mistral", {"rope_scaling": LINEAR}, {}),
    "mistral, old name of the type": (
        "mistral",
        {"rope_scaling": LINEAR},
        {"rope_scaling": {"type": "linear", "factor": 4}},
    ),
    "mistral, yarn": ("mistral", {"rope_scaling": YARN}, {}),
    "mistral, yarn with its own temperature": ("mistral", {"rope_scaling": YARN | {"attention_factor": 0.7}}, {}),
    "mistral, yarn with all its values": (
        "mistral",
        {"rope_scaling": YARN | {"beta_fast": 4.0, "beta_slow": 2.0, "mscale": 0.8, "mscale_all_dim": 0.5, "truncate": False}},
        {},
    ),
    "mistral by transformers 5": (
        "mistral",
        {"rope_theta": 2e5, "rope_scaling": YARN},
        {"rope_theta": None, "rope_scaling": None, "rope_parameters": YARN | {"rope_theta": 2e5}},
    ),
    "mistral by transformers 5, no base": (
        "mistral",
        {"rope_theta": 1e4},
        {"rope_theta": None, "rope_parameters": {"rope_type": "default"}},
    ),
    "mixtral, no rope_theta": ("mixtral", {"rope_theta": 1e6}, {"rope_theta": None}),
    "mixtral by transformers 5, no base": (
        "mixtral",
        {"rope_theta": 1e6},
        {"rope_theta": None, "rope_parameters": {"rope_type": "default"}},
    ),
    "mixtral, yarn": ("mixtral", {"rope_scaling": YARN}, {}),
    "llama 2": ("llama", {}, {}),
    "llama 2, a key for each head": ("llama", {"num_key_value_heads": 4}, {"num_key_value_heads": None}),
    "llama 3": ("llama", {"rope_theta": 5e5, "rope_scaling": LLAMA3, "tie_word_embeddings": True}, {}),
    "llama 3 by transformers 5": (
        "llama",
        {"rope_theta": 5e5, "rope_scaling": LLAMA3},
        {"rope_theta": None, "rope_scaling": None, "rope_parameters": LLAMA3 | {"rope_theta": 5e5}},
    ),
}  # fmt: skip


def make(directory: Path, architecture: Any, config: dict[str, Any], form: dict[str, Any]) -> tuple[Path, Path]:
    """A random checkpoint as the run reads it, and as transformers 4 reads it."""
    reference, other, run = directory / "reference", directory / "other", directory / "run"
    for each in (reference, other, run):
        each.mkdir(parents=True)
    plain = random_model.geometry(architecture, num_experts=2 if architecture == "mixtral" else None)
    geometry = replace(geometry_of(plain.hf() | config, directory), dtype=plain.dtype)
    random_model.build(reference, geometry, seed=0)
    if "rope_scaling" in config:
        # As it is written, without what is filled in here.
        write_json(
            reference / "config.json", read_json(reference / "config.json") | {"rope_scaling": config["rope_scaling"]}
        )
    for file in reference.iterdir():
        (other / file.name).symlink_to(file)
    said = read_json(reference / "config.json")
    (other / "config.json").unlink()
    left = {key: value for key, value in (said | form).items() if value is not None or key == "sliding_window"}
    if form.get("num_key_value_heads", 0) is None:
        left["num_key_value_heads"] = None
    (other / "config.json").write_text(json.dumps(left))
    adopt(other, run, "model.path")
    return run, reference


def test_every_form_is_computed_as_transformers_does(tmp_path: Path) -> None:
    pairs = {name: make(tmp_path / str(number), *form) for number, (name, form) in enumerate(FORMS.items())}
    # What must not match: angles without what their checkpoint says of them.
    ignored = {
        "linear": (pairs["mistral"][0], pairs["mistral, linear"][1]),
        "yarn": (pairs["mistral"][0], pairs["mistral, yarn"][1]),
        "temperature": (pairs["mistral, yarn"][0], pairs["mistral, yarn with its own temperature"][1]),
        "llama3": (pairs["llama 3"][0], _with_megatrons_constants(pairs["llama 3"][1], tmp_path / "constants")),
        "base": (
            pairs["mixtral, no rope_theta"][0],
            _with(pairs["mixtral, no rope_theta"][1], tmp_path / "base", rope_theta=1e4),
        ),
    }
    log = tmp_path / "ranks.log"
    assert run_ranks(1, log, conversion_worker.compare, pairs | ignored, tmp_path) == 0, tail(log)
    report = read_json(tmp_path / "report.json")
    for name in pairs:
        assert report[name]["logprobs"] < 1e-4 and report[name]["gradients"] < 1e-4, (name, report[name])
    for name in ignored:
        assert report[name]["logprobs"] > 0.05, (name, report[name])


def _with(reference: Path, directory: Path, **changes: Any) -> Path:
    directory.mkdir()
    for file in reference.iterdir():
        (directory / file.name).symlink_to(file)
    (directory / "config.json").unlink()
    write_json(directory / "config.json", read_json(reference / "config.json") | changes)
    return directory


def _with_megatrons_constants(reference: Path, directory: Path) -> Path:
    constants = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    return _with(reference, directory, rope_scaling=LLAMA3 | constants)
