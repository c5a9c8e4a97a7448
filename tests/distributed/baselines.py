"""Losses, bounds and gradient norms that training is known to give, without sampling.

Contrast groups are committed beside the table. Weights come from NumPy's generator, which gives the same numbers on every
machine, so that nothing but the product's own arithmetic is in them. A change of numerics has to change the table:

    PYTHONPATH=. .venv/train/bin/python -m tests.distributed.baselines
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from sami_nemo.base_model import random_model
from sami_nemo.records import ContrastGroup
from sami_nemo.run_dir import read_json, read_jsonl, write_json, write_jsonl
from tests.distributed.training_runs import random_groups, tiny_config, train

FOLDER = Path(__file__).parents[1] / "baselines"
TABLE = FOLDER / "losses.json"
# Small enough that rounding stays rounding: at 0.2, log-probs of -20 and more, a step of training magnifies it a hundredfold.
WEIGHT_STD = 0.08

CASES: dict[str, dict[str, Any]] = {
    "dense": {},
    "dense, plain layout": {"layout": "plain"},
    "dense, three constitutions": {"constitutions_per_query": 3},
    "dense, KL to the base model": {"kl_beta": 0.1},
    "dense, RMSprop": {"optimizer": "rmsprop"},
    "dense, bf16": {"precision": "bf16"},
    "mixture": {},
    "mixture, plain layout": {"layout": "plain"},
    "mixture, three constitutions": {"constitutions_per_query": 3},
    "mixture, bf16": {"precision": "bf16"},
}


def groups_of(settings: dict[str, Any]) -> list[ContrastGroup]:
    """The committed groups of a case."""
    size = settings.get("constitutions_per_query", 2)
    return [ContrastGroup.from_json(row) for row in read_jsonl(FOLDER / f"groups_{size}.jsonl")]


def make_base(directory: Path, mixture: bool) -> Path:
    """A tiny checkpoint in fp32 whose weights are the same on every machine."""
    directory.mkdir()
    architecture, experts = ("mixtral", 4) if mixture else ("mistral", None)
    random_model.build(directory, random_model.geometry(architecture, num_experts=experts), seed=0)
    file = directory / "model.safetensors"
    tensors = {}
    for number, (name, tensor) in enumerate(sorted(load_file(file).items())):
        drawn = np.random.default_rng(number).standard_normal(tuple(tensor.shape)) * WEIGHT_STD
        tensors[name] = torch.ones(tensor.shape) if "norm" in name else torch.from_numpy(drawn).float()
    save_file(tensors, file, metadata={"format": "pt"})
    return directory


def rows_of(case: str, runs_dir: Path, base: Path) -> list[dict[str, float]]:
    """What each step of a case gives."""
    settings = {"precision": "fp32", **CASES[case]}
    name = case.replace(",", "").replace(" ", "-")
    _, steps = train(tiny_config(runs_dir, name, base, devices=1, **settings), groups_of(settings))
    measures = ("loss", "bound", "grad_norm", *(("kl",) if "kl_beta" in settings else ()))
    return [{measure: round(row[measure], 6) for measure in measures} for row in steps]


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for size in (2, 3):
        file = FOLDER / f"groups_{size}.jsonl"
        if not file.exists():
            write_jsonl(file, (group.to_json() for group in random_groups(8, size=size, seed=size)))
    scratch = Path(tempfile.mkdtemp())
    try:
        bases = {kind: make_base(scratch / kind, kind == "mixture") for kind in ("dense", "mixture")}
        write_json(TABLE, {case: rows_of(case, scratch, bases[case.partition(",")[0]]) for case in CASES})
    finally:
        shutil.rmtree(scratch)
    json.dump(read_json(TABLE), sys.stdout, indent=1)


if __name__ == "__main__":
    main()
