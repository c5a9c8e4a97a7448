"""A Llama that transformers 5 saved, with all that such a checkpoint may have, through the whole loop."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from sami_nemo.base_model import random_model
from sami_nemo.config_json import geometry_of
from sami_nemo.run_dir import read_json

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
# It takes a minute and a half on two idle cores.
TIMEOUT = 900
LLAMA3: dict[str, Any] = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 3.0,
    # Prompts are longer.
    "original_max_position_embeddings": 64,
}
SAVE = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
source, target = sys.argv[1:]
AutoModelForCausalLM.from_pretrained(source, dtype="auto").save_pretrained(target)
AutoTokenizer.from_pretrained(source).save_pretrained(target)
"""
LOAD = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
print(type(model).__name__, model(torch.arange(5, 105)[None]).logits.log_softmax(-1)[0, :-1].gather(-1, torch.arange(6, 105)[:, None]).mean().item())
"""


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory, generate_python: Path) -> Path:
    """Its rotary embedding in `rope_parameters`, its class of tokenizer unknown to transformers 4, its tied head stored."""
    folder = tmp_path_factory.mktemp("llama")
    plain = random_model.geometry("llama")
    stated = plain.hf() | {"rope_scaling": LLAMA3, "rope_theta": 5e5, "tie_word_embeddings": True}
    (folder / "by_4").mkdir()
    random_model.build(folder / "by_4", replace(geometry_of(stated, folder), dtype=plain.dtype), seed=0)
    five = folder / "by 5"
    subprocess.run([str(generate_python), "-c", SAVE, str(folder / "by_4"), str(five)], check=True, capture_output=True)
    assert read_json(five / "config.json")["rope_parameters"]["rope_type"] == "llama3"
    assert "rope_theta" not in read_json(five / "config.json")
    assert read_json(five / "tokenizer_config.json")["tokenizer_class"] == "TokenizersBackend"
    held = load_file(five / "model.safetensors")
    held["lm_head.weight"] = held["model.embed_tokens.weight"].clone()
    save_file(held, five / "model.safetensors", metadata={"format": "pt"})
    (five / "consolidated.safetensors").write_bytes(b"another form")
    return five


def test_it_is_trained_sampled_and_exported_under_its_own_name(
    llama: Path, tmp_path: Path, generate_python: Path
) -> None:
    command = [
        sys.executable,
        str(REPOSITORY / "launcher_scripts" / "main.py"),
        "recipe=sami_debug",
        "model=checkpoint",
    ]
    command += ["model.architecture=llama", f"model.path={llama}", f"runs_dir={tmp_path}", "iterations=1", "judge=none"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, cwd=tmp_path)
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    run = tmp_path / "sami_debug"
    found = re.search(
        r"mean difference of log-probs between Megatron and transformers (\S+) nats",
        (run / "logs" / "train_1.log").read_text(),
    )
    # Angles that are not stretched are further away than this (tests/distributed/test_checkpoint_forms.py).
    assert found is not None and float(found[1]) < 0.05
    export = run / "iteration_1" / "hf"
    config = read_json(export / "config.json")
    assert config["architectures"] == ["LlamaForCausalLM"] and config["model_type"] == "llama"
    assert config["rope_scaling"] == LLAMA3 and config["rope_theta"] == 5e5
    assert load_file(export / "model.safetensors").keys() == load_file(llama / "model.safetensors").keys() - {
        "lm_head.weight"
    }
    scores = []
    for python in (sys.executable, str(generate_python)):
        loaded = subprocess.run([python, "-c", LOAD, str(export)], capture_output=True, text=True, check=True)
        name, score = loaded.stdout.split()
        assert name == "LlamaForCausalLM"
        scores.append(float(score))
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)
