"""config.json of other people's checkpoints: what it says is computed, has no effect, or is refused by name."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers

from sami_nemo.base_model.adopt import adopt
from sami_nemo.config_json import (
    EXPERTS_ALIAS,
    INERT,
    KEPT,
    READ_BY,
    REFUSED,
    ROPE_KEYS,
    geometry_of,
    plain_config,
    read_geometry,
    unread_keys,
)
from sami_nemo.errors import CheckpointError
from sami_nemo.geometry import CLASSES, HF_NAMES, RopeScaling

HERE = Path("m")
SIZES = {
    "num_hidden_layers": 2,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1024,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 3.0,
    "original_max_position_embeddings": 512,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}


def values(architecture: str = "mistral", **changes: Any) -> dict[str, Any]:
    return {"model_type": architecture, "architectures": [CLASSES[architecture]], **SIZES, **changes}


def refusal(architecture: str = "mistral", **changes: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        geometry_of(values(architecture, **changes), HERE)
    message = str(caught.value)
    assert message.startswith("model.path = m: its config.json ") and "\n" not in message
    return message


# The fields of transformers' classes, in the versions of both environments

FIELDS = """
import dataclasses, inspect, json, transformers
from transformers import PretrainedConfig
fields = {}
for name in ("mistral", "mixtral", "llama"):
    kind = getattr(transformers, name.capitalize() + "Config")
    known = set(vars(kind())) | set(vars(PretrainedConfig())) | set(kind.attribute_map)
    for each in (kind, PretrainedConfig):
        known |= set(inspect.signature(each.__init__).parameters) - {"self", "kwargs"}
    fields[name] = sorted(known)
print(json.dumps(fields))
"""


@pytest.fixture(scope="module", params=["train", "generate"])
def fields(request: pytest.FixtureRequest, generate_python: Path) -> dict[str, list[str]]:
    python = sys.executable if request.param == "train" else str(generate_python)
    finished = subprocess.run([python, "-c", FIELDS], capture_output=True, text=True, check=True)
    found: dict[str, list[str]] = json.loads(finished.stdout.splitlines()[-1])
    return found


def test_every_field_of_the_classes_is_in_one_table(fields: dict[str, list[str]]) -> None:
    computed = set(HF_NAMES.values()) - {HF_NAMES["architecture"], HF_NAMES["dtype"]} | ROPE_KEYS | {EXPERTS_ALIAS}
    tables = [computed, set(KEPT), set(INERT), set(REFUSED)]
    for name in CLASSES:
        for field in fields[name]:
            assert sum(field in table for table in tables) == 1, f"{field} of {name}"
    assert sum(map(len, tables)) == len(set.union(*tables)), "a key stands in two tables"


def test_keys_of_some_classes_are_no_fields_of_the_others(fields: dict[str, list[str]]) -> None:
    for key, architectures in READ_BY.items():
        for name in set(CLASSES) - set(architectures):
            assert key not in fields[name], f"{key} of {name}"


@pytest.mark.parametrize("architecture", CLASSES)
def test_defaults_are_those_of_transformers(architecture: str) -> None:
    config = getattr(transformers, architecture.capitalize() + "Config")(**SIZES)
    stated = {name: value for name, value in values(architecture).items() if name != "num_key_value_heads"}
    found = geometry_of(stated | {"num_attention_heads": 8}, HERE)
    theirs = getattr(transformers, architecture.capitalize() + "Config")(**SIZES | {"num_attention_heads": 8})
    for name in ("norm_epsilon", "rope_theta", "max_positions", "tied_embeddings"):
        assert getattr(found, name) == getattr(config, HF_NAMES[name]), name
    assert found.window == getattr(theirs, "sliding_window", None)
    if architecture == "mixtral":
        assert (found.num_experts, found.experts_per_token) == (8, 2)
        assert found.rope_theta == 1e6
    del stated["num_attention_heads"]
    default = getattr(transformers, architecture.capitalize() + "Config")(num_attention_heads=16, hidden_size=128)
    assert geometry_of(stated | {"num_attention_heads": 16}, HERE).num_key_value_heads == default.num_key_value_heads


def test_null_is_an_answer_to_some() -> None:
    assert geometry_of(values(num_key_value_heads=None), HERE).num_key_value_heads == 4
    assert geometry_of(values(sliding_window=None), HERE).window is None
    assert geometry_of(values(sliding_window=64), HERE).window == 64
    assert geometry_of(values(head_dim=None), HERE).head_dim == 32
    assert geometry_of(values(head_dim=64), HERE).head_dim == 64


# What is refused


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"hidden_act": "gelu"}, 'hidden_act = "gelu": vLLM samples'),
        ({"hidden_act": "relu2"}, "hidden_act"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantised weights"),
        ({"auto_map": {"AutoModelForCausalLM": "modeling.Mine"}}, "code of its own"),
        ({"custom_pipelines": {"x": {"impl": "x.X"}}}, "code of its own"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"is_encoder_decoder": True}, "only decoders"),
        ({"num_hidden_layers": "2"}, 'num_hidden_layers = "2"; give a whole number'),
        ({"num_hidden_layers": 0}, "num_hidden_layers = 0; give a whole number above 0"),
        ({"hidden_size": 128.5}, "hidden_size = 128.5"),
        ({"vocab_size": True}, "vocab_size = true"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings"),
        ({"rms_norm_eps": "1e-5"}, 'rms_norm_eps = "1e-5"; give a number'),
        ({"rms_norm_eps": 0}, "rms_norm_eps = 0"),
        ({"rope_theta": "10000"}, "rope_theta"),
        ({"hidden_size": 130}, "states no head_dim"),
        ({"head_dim": 33}, "pairs of channels"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, '"dynamic"; only linear, llama3 and yarn'),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, '"longrope"'),
        ({"rope_scaling": {"rope_type": "linear"}}, "lacks rope_scaling.factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": -1}}, "rope_scaling.factor = -1"),
        ({"rope_scaling": {"rope_type": "linear", "type": "yarn", "factor": 2}}, "rope_type twice"),
        ({"rope_scaling": "linear"}, "one set of values"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "one set of values"),
        ({"rope_scaling": {k: v for k, v in LLAMA3.items() if k != "low_freq_factor"}}, "lacks rope_scaling.low_freq"),
        ({"rope_theta": 1e4, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, "rope_theta twice"),
        ({"rope_scaling": YARN, "rope_parameters": YARN | {"factor": 2.0}}, "rope_scaling.factor twice"),
        ({"rope_scaling": YARN, "original_max_position_embeddings": 256}, "original_max_position_embeddings twice"),
        ({"rope_parameters": {"partial_rotary_factor": 0.25}}, "partial_rotary_factor = 0.25"),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else "",
)
def test_what_is_not_computed_here_is_refused_by_name(changes: dict[str, Any], part: str) -> None:
    assert part in refusal(**changes)


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("llama", {"attention_bias": True}),
        ("llama", {"mlp_bias": True}),
        ("mixtral", {"num_local_experts": 4, "num_experts": 8}),
    ],
)
def test_what_one_architecture_reads_is_refused_there(architecture: str, changes: dict[str, Any]) -> None:
    assert next(iter(changes)) in refusal(architecture, **changes)


@pytest.mark.parametrize(
    "missing", ["num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size"]
)
def test_sizes_are_never_guessed(missing: str) -> None:
    left = {name: value for name, value in values().items() if name != missing}
    with pytest.raises(CheckpointError, match=f"its config.json lacks {missing}"):
        geometry_of(left, HERE)


@pytest.mark.parametrize(
    "architectures", [None, [], ["MistralModel"], ["MistralForSequenceClassification"], "MistralForCausalLM"]
)
def test_another_task_is_refused(tmp_path: Path, architectures: object) -> None:
    (tmp_path / "config.json").write_text(json.dumps(values(architectures=architectures)))
    with pytest.raises(CheckpointError, match="architectures"):
        read_geometry(tmp_path)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "cannot be read as JSON"),
        ("[1]", "not a JSON object"),
        ("{}", "not a JSON object"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS pointer"),
        ("[" * 100_000, "cannot be read as JSON"),
    ],
    ids=["empty", "list", "no fields", "pointer", "deep"],
)
def test_a_damaged_config_is_one_line(tmp_path: Path, text: str, part: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=part) as caught:
        read_geometry(tmp_path)
    assert "\n" not in str(caught.value)


# What is read


def test_keys_that_no_class_reads_are_named() -> None:
    assert unread_keys(values(unsloth_version="2024.8", use_cache=True, temperature=0.7)) == ["unsloth_version"]
    assert unread_keys(values("llama", sliding_window=4096, pretraining_tp=1)) == ["sliding_window"]
    assert unread_keys(values(attention_bias=True, num_local_experts=8)) == ["attention_bias", "num_local_experts"]
    assert unread_keys(values(hidden_act="swish", rope_parameters=None, num_experts_per_tok=2)) == [
        "num_experts_per_tok"
    ]


def test_all_four_values_of_llama_3_are_read() -> None:
    scaling = geometry_of(values("llama", rope_scaling=LLAMA3, rope_theta=5e5), HERE).rope_scaling
    assert scaling == RopeScaling(**LLAMA3)
    assert geometry_of(values("llama", rope_parameters=LLAMA3 | {"rope_theta": 5e5}), HERE).rope_theta == 5e5


def test_what_yarn_leaves_out_is_filled_in() -> None:
    scaling = geometry_of(
        values(rope_scaling={"type": "yarn", "factor": 4.0}, max_position_embeddings=2048), HERE
    ).rope_scaling
    assert scaling is not None and scaling.original_max_position_embeddings == 2048
    # 0.1 ln 4 + 1
    assert scaling.attention_factor == pytest.approx(1.138629436)
    assert (scaling.beta_fast, scaling.beta_slow, scaling.truncate) == (32, 1, True)
    by_length = YARN | {"factor": None}
    scaling = geometry_of(values(rope_scaling=by_length, max_position_embeddings=1024), HERE).rope_scaling
    assert scaling is not None and scaling.factor == 2
    scaled = YARN | {"mscale": 0.5, "mscale_all_dim": 1.0}
    scaling = geometry_of(values(rope_scaling=scaled), HERE).rope_scaling
    assert scaling is not None and scaling.attention_factor == pytest.approx(1.069314718 / 1.138629436)


def test_positions_that_a_sequence_may_have() -> None:
    def positions(**changes: Any) -> int | None:
        return geometry_of(values(max_position_embeddings=1000, **{"sliding_window": None} | changes), HERE).positions

    assert positions() == 1000
    assert positions(sliding_window=300) == 300
    assert positions(rope_scaling={"rope_type": "linear", "factor": 2.5}) == 2500
    assert positions(rope_scaling=LLAMA3) == 1000
    assert positions(rope_scaling=YARN) == 1000
    assert positions(rope_scaling=YARN | {"original_max_position_embeddings": 100}) == 400


@pytest.mark.parametrize("architecture", CLASSES)
@pytest.mark.parametrize("rope", [None, {"rope_type": "linear", "factor": 2.0}, LLAMA3, YARN])
def test_the_plain_form_says_the_same(architecture: str, rope: dict[str, Any] | None) -> None:
    stated = values(
        architecture, rope_parameters=(rope or {"rope_type": "default"}) | {"rope_theta": 3e4}, eos_token_id=[2, 5]
    )
    stated |= {"made_by": "someone", "torch_dtype": "float16", "_name_or_path": "/secret"}
    geometry = geometry_of(stated, HERE)
    plain = plain_config(stated, geometry, "bfloat16")
    assert geometry_of(plain, HERE) == replace(geometry, dtype="bfloat16")
    assert not unread_keys(plain)
    assert plain["architectures"] == [CLASSES[architecture]] and plain["eos_token_id"] == [2, 5]
    assert not {"made_by", "_name_or_path", "rope_parameters"} & plain.keys()


def test_what_lies_beside_a_checkpoint_is_left_out(tiny_mistral: Path, tmp_path: Path) -> None:
    checkpoint, run = tmp_path / "own", tmp_path / "run"
    checkpoint.mkdir()
    run.mkdir()
    for file in tiny_mistral.iterdir():
        (checkpoint / file.name).write_bytes(file.read_bytes())
    for stray in ("consolidated.safetensors", "adapter_model.safetensors", "pytorch_model.bin", "modeling_mine.py"):
        (checkpoint / stray).write_bytes(b"stray")
    adopt(checkpoint, run, "model.path")
    there = {file.name for file in run.iterdir()}
    assert {"config.json", "model.safetensors", "model.safetensors.index.json", "tokenizer.json"} <= there
    assert not any(name.startswith(("consolidated", "adapter", "pytorch", "modeling")) for name in there)
    assert (run / "model.safetensors").resolve() == (checkpoint / "model.safetensors").resolve()
