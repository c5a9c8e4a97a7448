"""Base models: conversion, upcycling, random weights, and what the model stage refuses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from sami_nemo.base_model import prepare, random_model
from sami_nemo.base_model import smollm2 as smollm2_module
from sami_nemo.base_model.adopt import adopt
from sami_nemo.base_model.geometry import base_geometry
from sami_nemo.base_model.locate import locate
from sami_nemo.base_model.prepare import ensure_model
from sami_nemo.base_model.smollm2 import verify_logits
from sami_nemo.base_model.upcycle import mixture, upcycle
from sami_nemo.config.compose import compose
from sami_nemo.config.schema import ModelConfig
from sami_nemo.config_json import read_geometry
from sami_nemo.errors import CheckpointError, ConfigError, UserError
from sami_nemo.model_card import base_license
from sami_nemo.run_dir import INSTRUCT, RunDir, partial

ROOT = Path(__file__).parents[2]
TEXTS = [
    "How do I bake bread?",
    "Call 555-0123 before 09:45, won't you?",
    "  indented\n\n\tand tabbed ",
    "naïve café, 東京, 🙂",
    "<|im_start|>user\nhi<|im_end|>\n",
]


def logits(directory: Path, ids: torch.Tensor) -> torch.Tensor:
    """fp32 logits of the model in `directory`."""
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)(ids).logits


def some_ids(vocab_size: int) -> torch.Tensor:
    return torch.randint(vocab_size, (2, 48), generator=torch.Generator().manual_seed(1))


# SmolLM2


@pytest.mark.slow
def test_smollm2_answers_in_its_chat_format(smollm2: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
    answer = model.generate(ids, max_new_tokens=20, do_sample=False)[0, ids.shape[1] :].tolist()
    # It ends its turn by itself, so the end-of-sequence id in the generation config is the right one.
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"
    assert answer[-1] == tokenizer.eos_token_id == model.generation_config.eos_token_id == 2


@pytest.mark.slow
def test_smollm2_is_a_plain_mistral_checkpoint(smollm2: Path) -> None:
    config = json.loads((smollm2 / "config.json").read_text())
    assert config["architectures"] == ["MistralForCausalLM"]
    assert config["sliding_window"] is None
    assert {tensor.dtype for tensor in load_file(smollm2 / "model.safetensors").values()} == {torch.bfloat16}
    assert {path.suffix for path in smollm2.iterdir()} == {".json", ".jinja", ".safetensors"}


@pytest.mark.slow
def test_smollm2_is_what_is_said_of_it_before(smollm2: Path) -> None:
    assert read_geometry(smollm2) == smollm2_module.GEOMETRY


@pytest.mark.slow
def test_smollm2_tokenizer_splits_digits_and_adds_nothing(smollm2: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    assert tokenizer.tokenize("in 2024!") == ["in", "Ġ", "2", "0", "2", "4", "!"]
    for text in TEXTS:
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    template = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], add_generation_prompt=True)
    assert template[0] == tokenizer.bos_token_id == 1
    assert tokenizer.decode(template) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_logit_comparison_sees_a_wrong_rotary_base() -> None:
    """The check of the conversion, on a small pair of models: equal ones pass, one wrong config field fails."""
    geometry = {
        "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2,
    }  # fmt: skip
    torch.manual_seed(0)
    llama = LlamaForCausalLM(LlamaConfig(**geometry, rope_theta=100_000.0))
    for theta, right in ((100_000.0, True), (10_000.0, False)):
        mistral = MistralForCausalLM(MistralConfig(**geometry, rope_theta=theta, sliding_window=None))
        mistral.load_state_dict(llama.state_dict())
        if right:
            verify_logits(llama, mistral)
        else:
            with pytest.raises(CheckpointError, match="largest logit difference"):
                verify_logits(llama, mistral)


TOKENIZE = """
import json, sys
from transformers import AutoTokenizer

def encoded(model):
    tokenizer = AutoTokenizer.from_pretrained(model)
    chats = [[{"role": "user", "content": text}] for text in texts]
    rendered = [tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) for chat in chats]
    encode = lambda text, special: tokenizer(text, add_special_tokens=special).input_ids
    return [[encode(text, special) for text in texts + rendered] for special in (False, True)]

texts, *models = map(json.loads, sys.argv[1:])
print(json.dumps({name: encoded(path) for name, path in models}))
"""


@pytest.fixture(scope="module")
def token_ids(smollm2: Path, tiny_mistral: Path, generate_python: Path) -> list[dict[str, Any]]:
    """Of every model in the training and in the generation environment."""
    models = [json.dumps(["smollm2", str(smollm2)]), json.dumps(["tiny_mistral", str(tiny_mistral)])]
    words = [json.dumps(TEXTS), *models]
    outputs = [
        subprocess.run([python, "-c", TOKENIZE, *words], capture_output=True, text=True, check=True).stdout
        for python in (sys.executable, str(generate_python))
    ]
    return [json.loads(output) for output in outputs]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["smollm2", "tiny_mistral"])
def test_both_environments_tokenize_alike(model: str, token_ids: list[dict[str, Any]]) -> None:
    """transformers 4 trains on what transformers 5 sampled: one difference would shift every log-probability."""
    training, generation = token_ids
    assert len(training[model][0]) == 2 * len(TEXTS)
    assert training[model] == generation[model]


# Upcycling


def test_upcycled_model_computes_the_dense_function(tiny_mistral: Path, tmp_path: Path) -> None:
    """fp32 tolerance 1e-4 on logits of size 10: only the order of additions differs."""
    upcycle(tiny_mistral, tmp_path, num_experts=4, seed=0)
    ids = some_ids(1024)
    dense = logits(tiny_mistral, ids)
    torch.testing.assert_close(logits(tmp_path, ids), dense, rtol=0, atol=1e-4)

    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.0.block_sparse_moe.experts.2.w1.weight"] *= 0.5
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert (logits(tmp_path, ids) - dense).abs().max() > 1e-2


def test_upcycled_router_uses_every_expert(tiny_mistral: Path, tmp_path: Path) -> None:
    upcycle(tiny_mistral, tmp_path, num_experts=4, seed=0)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        router_logits = model(some_ids(1024), output_router_logits=True).router_logits
    for layer_TE in router_logits:
        share_E = layer_TE.topk(2, dim=-1).indices.flatten().bincount(minlength=4) / (2 * len(layer_TE))
        # An even router gives 25 %; a degenerate one gives 50, 50, 0, 0.
        assert share_E.min() > 0.1
        assert share_E.max() < 0.45


def test_upcycling_keeps_every_other_tensor_and_the_tokenizer(tiny_mistral: Path, tmp_path: Path) -> None:
    upcycle(tiny_mistral, tmp_path, num_experts=4, seed=0)
    dense, sparse = load_file(tiny_mistral / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    # Per layer three MLP tensors become four times three, and a router.
    assert len(sparse) == len(dense) + 2 * (4 * 3 - 3 + 1)
    down = sparse["model.layers.1.block_sparse_moe.experts.3.w2.weight"]
    assert torch.equal(down, dense["model.layers.1.mlp.down_proj.weight"])
    assert all(torch.equal(sparse[key], tensor) for key, tensor in dense.items() if ".mlp." not in key)
    assert (tmp_path / "tokenizer.json").read_bytes() == (tiny_mistral / "tokenizer.json").read_bytes()


def test_upcycling_refuses_a_mixtral(tiny_mixtral: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="upcycling needs a Mistral"):
        upcycle(tiny_mixtral, tmp_path, num_experts=4, seed=0)


@pytest.mark.slow
def test_upcycled_smollm2_computes_the_same_function(smollm2: Path, tmp_path: Path) -> None:
    """Tolerance 1e-3 in fp32: thirty layers of reordered additions, on logits of size 30."""
    upcycle(smollm2, tmp_path, num_experts=4, seed=0)
    ids = some_ids(49_152)
    torch.testing.assert_close(logits(tmp_path, ids), logits(smollm2, ids), rtol=0, atol=1e-3)


# Random models


def test_random_model_follows_from_geometry_and_seed(tiny_mixtral: Path, tmp_path: Path) -> None:
    geometry = random_model.geometry(architecture="mixtral", num_experts=4)
    for name, seed in (("same", 0), ("other", 1)):
        (tmp_path / name).mkdir()
        random_model.build(tmp_path / name, geometry, seed)
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / "same" / name).read_bytes() == (tiny_mixtral / name).read_bytes()
    weights = "model.safetensors"
    assert (tmp_path / "other" / weights).read_bytes() != (tiny_mixtral / weights).read_bytes()


@pytest.mark.parametrize(("model", "architecture"), [("tiny_mistral", "mistral"), ("tiny_mixtral", "mixtral")])
def test_models_are_what_is_said_of_them_before(
    model: str, architecture: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The geometry of a model that is still to be made is that of the made one's config.json."""
    made = request.getfixturevalue(model)
    experts = {"num_experts": 4} if architecture == "mixtral" else {}
    geometries = [
        base_geometry(model_config(path, prepare="random", architecture=architecture, **TINY_GEOMETRY, **experts))
        for path in (tmp_path / "not yet", made)
    ]
    assert geometries[0] == geometries[1]
    assert (geometries[0].vocab_size, geometries[0].ffn_hidden_size, geometries[0].max_positions) == (1024, 256, 8192)


def test_an_upcycled_model_is_what_is_said_of_it_before(tiny_mistral: Path, tmp_path: Path) -> None:
    upcycle(tiny_mistral, tmp_path, num_experts=4, seed=0)
    config = json.loads((tmp_path / "config.json").read_text())
    assert read_geometry(tmp_path) == mixture(read_geometry(tiny_mistral), 4)
    assert config["router_aux_loss_coef"] == 0.0


@pytest.mark.parametrize("model", ["tiny_mistral", "tiny_mixtral"])
def test_random_models_answer_each_prompt_differently(model: str, request: pytest.FixtureRequest) -> None:
    directory = request.getfixturevalue(model)
    network = AutoModelForCausalLM.from_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    answers = set()
    for text in TEXTS[:4]:
        ids = tokenizer(text, return_tensors="pt").input_ids
        assert ids[0].tolist().count(tokenizer.bos_token_id) == 1
        answers.add(tuple(network.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :].tolist()))
    assert len(answers) == 4


def test_tokenizer_needs_enough_text() -> None:
    with pytest.raises(CheckpointError, match="1024 tokens"):
        random_model.train_tokenizer(["too short"], vocab_size=1024)


# The model stage


def model_config(path: Path, **fields: object) -> ModelConfig:
    return ModelConfig.model_validate({"name": "m", "architecture": "mistral", "path": str(path)} | fields)


TINY_GEOMETRY = {"num_layers": 2, "hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}


def test_stage_makes_a_random_model(tiny_mistral: Path, tmp_path: Path) -> None:
    config = model_config(tmp_path / "m", prepare="random", **TINY_GEOMETRY)
    assert ensure_model(config) == tmp_path / "m"
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == (tiny_mistral / "model.safetensors").read_bytes()


def test_stage_says_which_number_a_random_model_needs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.hidden_size = null"):
        ensure_model(model_config(tmp_path / "m", prepare="random", **TINY_GEOMETRY | {"hidden_size": None}))


@pytest.mark.parametrize("fields", [{}, TINY_GEOMETRY])
def test_own_checkpoint_is_accepted(tiny_mistral: Path, fields: dict[str, int]) -> None:
    model = model_config(tiny_mistral, **fields)
    assert ensure_model(model) == tiny_mistral
    assert base_geometry(model) == read_geometry(tiny_mistral)


def test_other_geometry_is_refused(tiny_mistral: Path) -> None:
    with pytest.raises(ConfigError, match=r"^model\.num_layers = 3: .*config\.json says num_hidden_layers = 2"):
        base_geometry(model_config(tiny_mistral, num_layers=3))


def test_other_architecture_is_refused(tiny_mixtral: Path) -> None:
    with pytest.raises(ConfigError, match=r"^model\.architecture = mistral: .*config\.json says model_type = mixtral"):
        base_geometry(model_config(tiny_mixtral))


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_incomplete_checkpoint_is_refused(tiny_mistral: Path, tmp_path: Path, missing: str) -> None:
    checkpoint, run = shutil.copytree(tiny_mistral, tmp_path / "own"), tmp_path / "run"
    (checkpoint / missing).unlink()
    (checkpoint / "pytorch_model.bin").write_bytes(b"pickle")
    run.mkdir()
    with pytest.raises(CheckpointError, match=missing):
        adopt(checkpoint, run, "model.path")


def test_path_that_is_no_hub_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such directory"):
        locate(str(tmp_path / "nowhere"))


LOCATE = "import sys; from sami_nemo.base_model.locate import {function}; print({function}(sys.argv[1]))"


def run_locate(function: str, cache: Path) -> subprocess.CompletedProcess[str]:
    variables = os.environ | {"HF_HOME": str(cache), "HF_HUB_OFFLINE": "1"}
    variables.pop("HF_HUB_CACHE", None)
    command = [sys.executable, "-c", LOCATE.format(function=function), "some-one/some-model"]
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("function", ["locate", "download"])
def test_hub_name_is_found_in_the_local_cache(tiny_mistral: Path, tmp_path: Path, function: str) -> None:
    repository = tmp_path / "hub" / "models--some-one--some-model"
    snapshot = repository / "snapshots" / ("0" * 40)
    shutil.copytree(tiny_mistral, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    assert run_locate(function, tmp_path).stdout.strip() == str(snapshot)


@pytest.mark.parametrize("function", ["locate", "download"])
def test_hub_name_that_cannot_be_had_says_what_to_do(tmp_path: Path, function: str) -> None:
    finished = run_locate(function, tmp_path)
    last = finished.stderr.strip().splitlines()[-1]
    assert "CheckpointError: model.path = some-one/some-model: neither a directory nor available" in last
    assert "hf download" in last


def run_stage(tmp_path: Path, checkpoint: Path, *words: str) -> RunDir:
    """Stage `model` of a run whose launcher could not see the checkpoint, one on the hub, say."""
    config = compose(
        ["recipe=sami_debug", "model=checkpoint", f"model.path={checkpoint}", f"runs_dir={tmp_path}", *words]
    )
    run = RunDir(config.run_dir)
    prepare.main(config, run, 0)
    return run


def test_the_stage_leaves_a_plain_form_of_base_and_baseline(
    tiny_mistral: Path, tiny_mixtral: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = Path(shutil.copytree(tiny_mistral, tmp_path / "own"))
    values = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps(values | {"unsloth_version": "1", "made_by": "me"}))
    (own / "README.md").write_text("---\nlicense: mit\n---\n")
    run = run_stage(tmp_path / "runs", own, f"evaluate.instruct={tiny_mixtral}")
    base, instruct = partial(run.hf(0)), partial(run.hf(INSTRUCT))
    assert read_geometry(base) == read_geometry(tiny_mistral) and read_geometry(instruct) == read_geometry(tiny_mixtral)
    assert (base / "model.safetensors").resolve() == (own / "model.safetensors").resolve()
    assert base_license(base) == {"license": "mit"}
    assert (
        "ignored, because no class of this architecture reads it: made_by, unsloth_version" in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("words", "changes", "message"),
    [
        ((), {"max_position_embeddings": 1024}, "generate.max_model_len = 2048: the model sees 1024 positions"),
        ((), {"sliding_window": 1024}, "generate.max_model_len = 2048: the model sees 1024 positions"),
        (("model.num_layers=3",), {}, "model.num_layers = 3:"),
        (("evaluate.instruct=SELF",), {"sliding_window": 1024}, "generate.max_model_len = 2048:"),
    ],
)
def test_the_stage_refuses_what_does_not_fit_the_settings(
    words: tuple[str, ...], changes: dict[str, Any], message: str, tiny_mistral: Path, tmp_path: Path
) -> None:
    own = Path(shutil.copytree(tiny_mistral, tmp_path / "own"))
    values = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps(values | changes))
    with pytest.raises(UserError) as refused:
        run_stage(tmp_path / "runs", own, *(word.replace("SELF", str(own)) for word in words))
    assert str(refused.value).startswith(message)


def test_a_baseline_that_does_not_fit_is_named(tiny_mistral: Path, tmp_path: Path) -> None:
    instruct = Path(shutil.copytree(tiny_mistral, tmp_path / "instruct"))
    values = json.loads((instruct / "config.json").read_text())
    (instruct / "config.json").write_text(json.dumps(values | {"sliding_window": 512}))
    with pytest.raises(CheckpointError) as refused:
        run_stage(tmp_path / "runs", tiny_mistral, f"evaluate.instruct={instruct}")
    assert str(refused.value).startswith(f"evaluate.instruct = {instruct}: does not fit generate.max_model_len = 2048:")
