"""Stage `model`: the base model exists, is whole, and is the one that the configuration describes.

Writes hf/ of iteration 0 and of the instruct baseline, see adopt.py.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from sami_nemo.base_model import random_model, sealed, smollm2
from sami_nemo.base_model.adopt import adopt
from sami_nemo.base_model.checks import MODEL_CHECKS
from sami_nemo.base_model.geometry import base_geometry, experts_of, random_geometry
from sami_nemo.base_model.locate import download
from sami_nemo.base_model.upcycle import upcycle
from sami_nemo.config.schema import Config, ModelConfig
from sami_nemo.errors import CheckpointError, failures, raise_all
from sami_nemo.run_dir import INSTRUCT, RunDir, partial

# Of random weights and routers. Not the seed of the run: runs that differ in it start from the same base model.
MODEL_SEED = 0
DENSE_SMOLLM2 = "smollm2-135m"


def main(config: Config, run: RunDir, iteration: int) -> None:
    checkpoint = ensure_model(config.model)
    print(f"base model: {checkpoint.resolve()}")
    geometry = adopt(checkpoint, _empty(run.hf(0)), "model.path")
    base_geometry(config.model, checkpoint)
    raise_all(failures(MODEL_CHECKS, config, geometry))
    if (instruct := config.evaluate.instruct) is not None:
        checkpoint = download(instruct, field="evaluate.instruct")
        print(f"instruct baseline: {checkpoint.resolve()}")
        geometry = adopt(checkpoint, _empty(run.hf(INSTRUCT)), "evaluate.instruct")
        for problem in failures(MODEL_CHECKS, config, geometry):
            raise CheckpointError("evaluate.instruct", instruct, f"does not fit {problem}")


def _empty(output: Path) -> Path:
    """Where an output of this stage is written, with nothing in it."""
    directory = partial(output)
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return directory


def ensure_model(model: ModelConfig) -> Path:
    """Make or fetch the base model if it is not there.

    Returns:
        Its directory.

    Raises:
        CheckpointError: it cannot be had, or what was made here is damaged.
        ConfigError: `model.prepare` needs a field that is null.
    """
    if model.prepare == "smollm2":
        prepare_smollm2(Path(model.path), experts_of(model))
    elif model.prepare == "random":
        sealed.place(
            Path(model.path), lambda directory: random_model.build(directory, random_geometry(model), MODEL_SEED)
        )
    return download(model.path)


def prepare_smollm2(target: Path, num_experts: int | None) -> None:
    """SmolLM2-135M-Instruct at `target`; with `num_experts` upcycled from the dense one, which is put beside it."""
    if num_experts is None:
        sealed.place(target, smollm2.build)
        return
    dense = target.parent / DENSE_SMOLLM2
    if not target.exists():
        sealed.place(dense, smollm2.build)
    sealed.place(target, lambda directory: upcycle(dense, directory, num_experts, MODEL_SEED))


if __name__ == "__main__":
    from sami_nemo import stage_entry

    stage_entry.run(main, "train")
