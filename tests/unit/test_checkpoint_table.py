"""docs/checkpoints.md: each row of its table is a checkpoint that works here, or that is refused in one line.

What works is loaded by both environments as a run reads it, to the ids and the logits that the environment gave which
saved it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sami_nemo.base_model import random_model
from sami_nemo.base_model.adopt import adopt
from sami_nemo.checkpoint.headers import EMBEDDING, INDEX, SINGLE
from sami_nemo.config_json import geometry_of
from sami_nemo.errors import CheckpointError
from sami_nemo.run_dir import read_json, write_json
from tests.unit.other_tokenizers import sentencepiece_bpe
from tests.unit.test_config_json import LLAMA3, YARN

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "checkpoints.md"
WORKS = "works"
LINEAR = {"rope_type": "linear", "factor": 4.0}
# The 24 tokens of the comparison feel how they are stretched.
NEAR = {"original_max_position_embeddings": 8}
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
Change = Callable[[Path], object]


HEAD_OF_TABLE = "| architecture | weights | tokenizer | saved by | output projection | files | positions | outcome |"


@dataclass(frozen=True)
class Row:
    """A line of the table, and how its checkpoint differs from a plain one."""

    architecture: str = "Mistral"
    dtype: str = "bfloat16"
    tokenizer: str = "`tokenizer.json`"
    saved_by: int = 4
    """Version of transformers."""
    head: str = "its own"
    files: str = "one"
    positions: str = "plain"
    outcome: str = WORKS
    """Or what the message says."""
    alone: bool = True
    """Whether the transformers that saved it reads its tokenizer, too."""
    config: tuple[tuple[str, Any], ...] = ()
    """Of the model that is saved."""
    change: Change = lambda directory: None
    """Made to the files afterwards."""

    def cells(self) -> str:
        outcome = self.outcome if self.outcome == WORKS else f"refused: “{self.outcome}”"
        cells = (self.architecture, self.dtype, self.tokenizer, f"transformers {self.saved_by}", self.head, self.files,
                 self.positions, outcome)  # fmt: skip
        return f"| {' | '.join(cells)} |"


def said(**changes: Any) -> Change:
    """Change config.json; None removes a key."""

    def change(directory: Path) -> None:
        values = read_json(directory / "config.json") | changes
        write_json(directory / "config.json", {key: value for key, value in values.items() if value is not None})

    return change


def weights(**tensors: Any) -> Change:
    """Add tensors; `__` stands for a dot. A name stands for a copy of that tensor."""

    def change(directory: Path) -> None:
        held = load_file(directory / SINGLE)
        for name, value in tensors.items():
            held[name.replace("__", ".")] = held[value].clone() if isinstance(value, str) else value
        save_file(held, directory / SINGLE, metadata={"format": "pt"})

    return change


def sentencepiece(kind: str) -> Change:
    def change(directory: Path) -> None:
        for file in directory.glob("*token*"):
            file.unlink()
        (directory / "tokenizer.model").write_bytes(sentencepiece_bpe(model_type=kind))

    return change


def sharded(directory: Path, missing: bool = False) -> None:
    held = load_file(directory / SINGLE)
    (directory / SINGLE).unlink()
    names = sorted(held)
    files = {name: f"model-{1 + names.index(name) * 3 // len(names):05d}-of-00003.safetensors" for name in names}
    for file in sorted(set(files.values())):
        save_file(
            {name: held[name] for name in names if files[name] == file}, directory / file, metadata={"format": "pt"}
        )
    write_json(directory / INDEX, {"metadata": {}, "weight_map": files})
    if missing:
        (directory / "model-00002-of-00003.safetensors").unlink()


def renamed(name: str) -> Change:
    return lambda directory: (directory / SINGLE).rename(directory / name)


def beside(directory: Path) -> None:
    for name in ("consolidated.safetensors", "adapter_model.safetensors", "pytorch_model.bin", "modeling_mine.py"):
        (directory / name).write_bytes(b"not read")


def written(name: str, text: str) -> Change:
    return lambda directory: (directory / name).write_text(text)


def scaled(kind: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    return (("rope_scaling", kind), ("rope_theta", 5e5))


def tokenizer_class(directory: Path) -> None:
    settings = read_json(directory / "tokenizer_config.json")
    write_json(directory / "tokenizer_config.json", settings | {"tokenizer_class": "TokenizersBackend"})


def tekken(directory: Path) -> None:
    for file in directory.glob("*token*"):
        file.unlink()
    (directory / "tekken.json").write_text("{}")


TIED = (("tie_word_embeddings", True),)
DOUBLE = torch.zeros(128, dtype=torch.float64)
ROWS = [
    # What differs in the weights.
    Row(),
    Row(dtype="float16"),
    Row(dtype="float32"),
    Row(files="three and an index", change=sharded),
    Row(head="the embedding", config=TIED),
    Row(head="the embedding, and stored", config=TIED, change=weights(lm_head__weight=EMBEDDING)),
    Row(head="said to be the embedding, and another is stored", change=said(tie_word_embeddings=True),
        outcome="ties the embeddings, and lm_head.weight is another tensor"),
    Row(files="one, others beside it", change=beside),
    Row(files="with rotary frequencies", change=weights(model__layers__0__self_attn__rotary_emb__inv_freq=torch.zeros(16))),
    Row(files="three, one missing", change=lambda directory: sharded(directory, missing=True),
        outcome="the index names it, and it is not there"),
    Row(files="a pointer of Git LFS", change=written(SINGLE, POINTER), outcome="is a Git LFS pointer"),
    Row(files="`consolidated.safetensors`", change=renamed("consolidated.safetensors"),
        outcome="convert the weights to the form of transformers"),
    Row(files="`adapter_model.safetensors`", change=renamed("adapter_model.safetensors"),
        outcome="convert the weights to the form of transformers"),
    Row(files="pickle", change=renamed("pytorch_model.bin"), outcome="pickle is not read"),
    Row(files="with biases", change=weights(model__layers__0__self_attn__q_proj__bias=torch.zeros(128)),
        outcome="holds tensors that its config.json has no place for"),
    Row(dtype="float64", change=weights(model__norm__weight=DOUBLE), outcome="is stored as F64"),
    Row(dtype="quantised", change=said(quantization_config={"quant_method": "gptq"}), outcome="quantised weights cannot be trained"),
    # Which architecture.
    Row(saved_by=5),
    Row(architecture="Mixtral"),
    Row(architecture="Mixtral", saved_by=5),
    Row(architecture="Mixtral", change=said(rope_theta=None), positions="no base (transformers’ own, 1e6)", config=(("rope_theta", 1e6),)),
    Row(architecture="Llama"),
    Row(architecture="Llama", head="the embedding", positions="llama3", config=(*TIED, *scaled(LLAMA3 | NEAR))),
    Row(architecture="Llama", saved_by=5, positions="llama3", config=scaled(LLAMA3 | NEAR)),
    Row(architecture="Mistral for classification", change=said(architectures=["MistralForSequenceClassification"]),
        outcome="says architectures"),
    Row(architecture="Qwen2", change=said(model_type="qwen2"), outcome="only mistral, mixtral, llama work"),
    Row(architecture="Mistral with code of its own", change=said(auto_map={"AutoModelForCausalLM": "m.M"}),
        outcome="asks for code of its own, which is never run"),
    Row(architecture="Mistral with gelu", change=said(hidden_act="gelu"), outcome="vLLM samples these architectures with silu alone"),
    Row(architecture="Llama with biases", change=said(attention_bias=True), outcome="projections with a bias are not trained"),
    Row(architecture="Mistral with an unknown key", change=said(mixture_of_depths=2)),
    # Which positions.
    Row(positions="linear", config=scaled(LINEAR)),
    Row(positions="yarn", config=scaled(YARN | NEAR)),
    Row(positions="yarn", saved_by=5, config=scaled(YARN | NEAR)),
    Row(positions="dynamic", change=said(rope_scaling={"type": "dynamic", "factor": 2.0}),
        outcome="only linear, llama3 and yarn are computed alike"),
    Row(positions="longrope", change=said(rope_scaling={"type": "longrope", "factor": 2.0}),
        outcome="only linear, llama3 and yarn are computed alike"),
    Row(positions="two bases", change=said(rope_parameters={"rope_theta": 3.0}), outcome="rope_theta twice"),
    # Which tokenizer.
    Row(tokenizer="`tokenizer.json`, class of transformers 5", change=tokenizer_class, alone=False),
    Row(tokenizer="`tokenizer.model` (BPE)", change=sentencepiece("bpe"), alone=False),
    Row(tokenizer="`tokenizer.model` (unigram)", change=sentencepiece("unigram"), outcome="it is no BPE model"),
    Row(tokenizer="`tekken.json`", change=tekken, outcome="only tekken.json"),
    Row(tokenizer="a pointer of Git LFS", change=written("tokenizer.json", POINTER), outcome="is a Git LFS pointer"),
    Row(tokenizer="more tokens than the vocabulary", change=said(vocab_size=1000), outcome="has the shape [1024, 128], and [1000, 128]"),
]  # fmt: skip

LOAD = """
import json, os, sys, torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
transformers.logging.set_verbosity_error()
request = json.load(sys.stdin)
for source, target in request["save"]:
    AutoModelForCausalLM.from_pretrained(source, dtype="auto").save_pretrained(target)
    AutoTokenizer.from_pretrained(source).save_pretrained(target)
ids = torch.tensor(request["ids"])[None]
logits, tokens = {}, {}
for path in request["logits"]:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        logits[path] = model(ids).logits[0].log_softmax(-1)
for path in request["tokens"]:
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokens[path] = tokenizer(request["text"])["input_ids"], tokenizer.eos_token_id
torch.save({"logits": logits, "tokens": tokens}, request["output"])
"""
TEXT = "Post: I baked  bread.\n\nHow? Größe 12, naïve 🍞</s>"


class Both:
    """Both environments, with a process for each request."""

    def __init__(self, generate_python: Path, folder: Path) -> None:
        self.pythons = {4: sys.executable, 5: str(generate_python)}
        self.folder = folder

    def ask(self, version: int, **request: Any) -> dict[str, Any]:
        output = self.folder / f"answer_{version}.pt"
        defaults = {
            "save": [],
            "logits": [],
            "tokens": [],
            "ids": list(range(5, 29)),
            "text": TEXT,
            "output": str(output),
        }
        finished = subprocess.run(
            [self.pythons[version], "-c", LOAD], input=json.dumps(defaults | request), capture_output=True, text=True
        )
        assert finished.returncode == 0, finished.stderr[-3000:]
        answer: dict[str, Any] = torch.load(output, weights_only=True)
        return answer


@pytest.fixture(scope="module")
def checkpoints(generate_python: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Both, list[Path]]:
    """The checkpoint of each row."""
    folder = tmp_path_factory.mktemp("rows")
    both = Both(generate_python, folder)
    again = []
    for number, row in enumerate(ROWS):
        build(row, folder / str(number))
        if row.saved_by == 5:
            (folder / str(number)).rename(folder / f"{number}_by_4")
            again.append((str(folder / f"{number}_by_4"), str(folder / str(number))))
    both.ask(5, save=again)
    for number, row in enumerate(ROWS):
        row.change(folder / str(number))
    return both, [folder / str(number) for number in range(len(ROWS))]


def build(row: Row, directory: Path) -> None:
    directory.mkdir()
    name = row.architecture.split()[0].lower()
    architecture: Any = name if name in ("mistral", "mixtral", "llama") else "mistral"
    plain = random_model.geometry(architecture, num_experts=2 if architecture == "mixtral" else None)
    geometry = replace(geometry_of(plain.hf() | dict(row.config), directory), dtype=plain.dtype)
    random_model.build(directory, geometry, seed=0)
    if row.dtype in ("float16", "float32"):
        held = {name: tensor.to(getattr(torch, row.dtype)) for name, tensor in load_file(directory / SINGLE).items()}
        save_file(held, directory / SINGLE, metadata={"format": "pt"})
        said(dtype=row.dtype, torch_dtype=row.dtype)(directory)


def test_the_page_has_these_rows() -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    first = lines.index(HEAD_OF_TABLE) + 2
    assert lines[first : lines.index("", first)] == [row.cells() for row in ROWS]


@pytest.mark.parametrize(
    "number",
    range(len(ROWS)),
    ids=[f"{row.architecture}-{row.files}-{row.positions}-{row.tokenizer}"[:70] for row in ROWS],
)
def test_a_row_works_or_is_refused(number: int, checkpoints: tuple[Both, list[Path]], tmp_path: Path) -> None:
    checkpoint, outcome = checkpoints[1][number], ROWS[number].outcome
    if outcome == WORKS:
        adopt(checkpoint, tmp_path, "model.path")
        return
    with pytest.raises(CheckpointError) as caught:
        adopt(checkpoint, tmp_path, "model.path")
    assert outcome in str(caught.value) and "\n" not in str(caught.value)


def test_what_works_is_the_same_in_both_environments(checkpoints: tuple[Both, list[Path]], tmp_path: Path) -> None:
    both, paths = checkpoints
    adopted = {}
    for number, row in enumerate(ROWS):
        if row.outcome == WORKS:
            adopted[number] = tmp_path / str(number)
            adopted[number].mkdir()
            adopt(paths[number], adopted[number], "model.path")
    found = {}
    for version in (4, 5):
        saved = [str(paths[number]) for number in adopted if ROWS[number].saved_by == version]
        own = [str(paths[number]) for number in adopted if ROWS[number].saved_by == version and ROWS[number].alone]
        mine = list(map(str, adopted.values()))
        found[version] = both.ask(version, logits=[*mine, *saved], tokens=[*mine, *own])
    for number, directory in adopted.items():
        source, row = str(paths[number]), ROWS[number]
        original = found[row.saved_by]
        for version in (4, 5):
            difference = (found[version]["logits"][str(directory)] - original["logits"][source]).abs().max()
            assert difference < 1e-3, (row, version, float(difference))
            tokens = found[version]["tokens"][str(directory)]
            assert tokens == original["tokens"].get(source, tokens), (row, version)
        assert found[4]["tokens"][str(directory)] == found[5]["tokens"][str(directory)], row
