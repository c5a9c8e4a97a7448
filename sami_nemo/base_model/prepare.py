"""Stage `model`: the base model exists, is whole, and is the one that the configuration describes."""

from __future__ import annotations

from pathlib import Path

from sami_nemo.base_model import random_model, sealed, smollm2
from sami_nemo.base_model.geometry import base_geometry, experts_of, random_geometry
from sami_nemo.base_model.locate import download
from sami_nemo.base_model.upcycle import upcycle
from sami_nemo.config.schema import Config, ModelConfig
from sami_nemo.geometry import check_files, read_geometry
from sami_nemo.run_dir import RunDir

# Of random weights and routers. Not the seed of the run: runs that differ in it start from the same base model.
MODEL_SEED = 0
DENSE_SMOLLM2 = "smollm2-135m"


def main(config: Config, run_dir: RunDir, iteration: int) -> None:
    directory = ensure_model(config.model)
    print(f"base model: {directory.resolve()}")
    if config.evaluate.instruct is not None:
        print(f"instruct baseline: {download(config.evaluate.instruct, field='evaluate.instruct').resolve()}")


def ensure_model(model: ModelConfig) -> Path:
    """Make or fetch the base model if it is not there, and check it.

    Returns:
        Its directory.

    Raises:
        CheckpointError: it cannot be had, or is damaged.
        ConfigError: it is not what `model` says, or `model.prepare` needs a field that is null.
    """
    if model.prepare == "smollm2":
        prepare_smollm2(Path(model.path), experts_of(model))
    elif model.prepare == "random":
        sealed.place(
            Path(model.path), lambda directory: random_model.build(directory, random_geometry(model), MODEL_SEED)
        )
    directory = download(model.path)
    verify_model(directory, model)
    return directory


def prepare_smollm2(target: Path, num_experts: int | None) -> None:
    """SmolLM2-135M-Instruct at `target`; with `num_experts` upcycled from the dense one, which is put beside it."""
    if num_experts is None:
        sealed.place(target, smollm2.build)
        return
    dense = target.parent / DENSE_SMOLLM2
    if not target.exists():
        sealed.place(dense, smollm2.build)
    sealed.place(target, lambda directory: upcycle(dense, directory, num_experts, MODEL_SEED))


def verify_model(directory: Path, model: ModelConfig) -> None:
    """The checkpoint in `directory` is whole, and config.json says what `model` says.

    Raises:
        CheckpointError: a file is missing.
        ConfigError: the first difference.
    """
    check_files(directory, "model.path")
    read_geometry(directory)
    base_geometry(model, directory)


if __name__ == "__main__":
    from sami_nemo import stage_entry

    stage_entry.run(main, "train")
