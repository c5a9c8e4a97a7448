"""The training stage of an iteration: base model in, Hugging Face checkpoint out.

Under torch.distributed.run, one process per device:

    python -m sami_nemo.train --run-dir runs/NAME --iteration N

Trains from the base model on the contrast groups that the model of iteration N-1 gave rise to, goes on from
its last checkpoint if there is one, exports, verifies the export, and writes its model card.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from sami_nemo import stage_entry
from sami_nemo.config.schema import Config
from sami_nemo.constitution.principles import load_principles
from sami_nemo.contrast.batches import group_length, training_order
from sami_nemo.model_card import CARD, base_license, model_card
from sami_nemo.progress import report_phase
from sami_nemo.records import ContrastGroup
from sami_nemo.run_dir import RunDir, partial, read_jsonl, write_json, write_text
from sami_nemo.versions import check_versions


def main(config: Config, run: RunDir, iteration: int) -> None:
    groups = [ContrastGroup.from_json(row) for row in read_jsonl(run.groups(iteration - 1) / "training.jsonl")]
    base = run.hf(0)
    directory = partial(run.train(iteration))
    directory.mkdir(parents=True, exist_ok=True)
    card = ""
    if stage_entry.is_writer():
        # Before the training: what is wrong with it is told before hours have gone by.
        principles, versions = load_principles(str(run.principles)), check_versions("train")
        card = model_card(config, principles, iteration, base_license(base), versions)
        print_sample(groups[0], base)

    from sami_nemo.model.trainer import backend

    with backend(config):
        train_and_export(config, groups, base, directory, partial(run.hf(iteration)), iteration, card)


def train_and_export(
    config: Config, groups: list[ContrastGroup], base: Path, directory: Path, hf: Path, iteration: int, card: str
) -> None:
    """Train on `groups` and write the model with its `card`, which rank 0 has, to `hf`; collective over all ranks."""
    import torch

    from sami_nemo.checkpoint.export import export_and_verify
    from sami_nemo.contrast.data_module import ContrastDataModule
    from sami_nemo.model.callbacks import BaseReference, Checkpoints, FiniteCheck, StepLog, last_checkpoint
    from sami_nemo.model.loggers import build_loggers
    from sami_nemo.model.trainer import build_model, build_trainer
    from sami_nemo.model.training_state import load_training_state

    train, total = config.train, config.training_steps(iteration)
    saved = directory / "checkpoints"
    resumed = last_checkpoint(saved)
    order = training_order(len(groups), config.seed, iteration)[resumed * train.batch_size : total * train.batch_size]
    if stage_entry.is_writer():
        print(f"training from step {resumed} of {total}", flush=True)

    model = build_model(config, base, sequence_length=max(map(group_length, groups)))
    loggers = build_loggers(config, directory, iteration) if stage_entry.is_writer() else []
    callbacks: list[Any] = [
        *([BaseReference()] if train.kl_beta else []),
        FiniteCheck(resumed),
        # First the line of a step, then its checkpoint: killed between them, the step is done again, not left out.
        StepLog(config, directory, resumed, total, loggers),
        Checkpoints(saved, train.checkpoint_every, resumed, total),
    ]
    trainer = build_trainer(config, max_steps=total - resumed, callbacks=callbacks)
    trainer.fit(model, ContrastDataModule(config, groups, order, train.batch_size))
    if resumed + trainer.global_step < total:
        if stage_entry.is_writer():
            print(f"stopped as asked; saved at step {resumed + trainer.global_step} of {total}", flush=True)
        return
    if resumed == total:
        # Killed after the last step: nothing was left to train, so no callback has loaded the weights.
        load_training_state(trainer.optimizers[0], saved, total)
    if stage_entry.is_writer():
        report_phase("saving")
        shutil.rmtree(hf, ignore_errors=True)
        hf.mkdir(parents=True)
    torch.distributed.barrier()
    export_and_verify(trainer, base, hf)
    if stage_entry.is_writer():
        write_text(hf / CARD, card)
        write_json(directory / "training.json", {"steps": total, "resumed_from": resumed, "groups": len(groups)})
        shutil.rmtree(saved)


def print_sample(group: ContrastGroup, base: Path) -> None:
    """Print one sequence as the model sees it; what the loss counts stands between the marks."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    prompt, response = group.prompt_ids[0], group.response_ids[0]
    shown = f"{tokenizer.decode(prompt)}>>>{tokenizer.decode(response)}<<<"
    print(f"first sequence, {len(prompt)} + {len(response)} tokens, the loss counts >>>…<<<:\n{shown}", flush=True)


if __name__ == "__main__":
    stage_entry.run(main, "train")
