"""The evaluation stage of an iteration: the held-out bound and the response lengths.

Under torch.distributed.run, in the layout of training:

    python -m sami_nemo.evaluate.bound --run-dir runs/NAME --iteration N

Every response that the model of iteration N gave to a held-out query is scored by the same model under every
constitution of its group. Axes of tensor names: C constitutions, R responses.
"""

from __future__ import annotations

import shutil
from typing import Any

from sami_nemo import stage_entry
from sami_nemo.config.schema import Config
from sami_nemo.contrast.batches import group_length
from sami_nemo.evaluate.metrics import summarise
from sami_nemo.progress import report, report_phase
from sami_nemo.records import ContrastGroup
from sami_nemo.run_dir import RunDir, partial, read_jsonl, write_json, write_jsonl


def main(config: Config, run: RunDir, iteration: int) -> None:
    groups = [ContrastGroup.from_json(row) for row in read_jsonl(run.groups(iteration) / "evaluation.jsonl")]
    checkpoint = run.hf(iteration)
    directory = partial(run.evaluation(iteration))
    shutil.rmtree(directory, ignore_errors=True)

    from sami_nemo.model.trainer import backend, build_model, layout_for

    config = layout_for(config, checkpoint)
    with backend(config):
        model = build_model(config, checkpoint, sequence_length=max(map(group_length, groups)))
        matrices = score_groups(config, model, groups)
    if stage_entry.is_writer():
        report_phase("saving")
        rows = [
            {
                "query_id": group.query.id,
                "source": group.query.source,
                "constitutions": [constitution.id for constitution in group.constitutions],
                "logprobs": matrix,
                "response_tokens": [len(ids) for ids in group.response_ids],
            }
            for group, matrix in zip(groups, matrices, strict=True)
        ]
        write_jsonl(directory / "groups.jsonl", rows)
        write_json(directory / "summary.json", summarise(iteration, rows))


def score_groups(config: Config, model: Any, groups: list[ContrastGroup]) -> list[list[list[float]]]:
    """Response log-probs `[constitution][response]` of each group, on every rank; collective."""
    import torch
    from megatron.core import parallel_state

    from sami_nemo.contrast.data_module import ContrastDataModule
    from sami_nemo.model.callbacks import EvaluationProgress
    from sami_nemo.model.scoring import ScoreReduction
    from sami_nemo.model.trainer import build_trainer

    train = config.train
    ranks = config.data_parallel
    # The last group fills up the batch; scoring it twice changes nothing.
    order = [min(index, len(groups) - 1) for index in range(-(-len(groups) // ranks) * ranks)]
    data = ContrastDataModule(config, groups, order, batch_size=len(order), one_by_one=True)
    trainer = build_trainer(config, max_steps=-1, callbacks=[EvaluationProgress()], setup_optimizers=False)
    reduction = ScoreReduction(train.logprob_normalization)
    model.score_with(reduction)
    report(0, data.steps, "micro-batches")
    trainer.test(model, data, verbose=False)

    mine = {index: score.logprobs_CR.tolist() for index, score in reduction.scores.items()}
    shards: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(shards, mine if parallel_state.is_pipeline_last_stage() else {})
    scores = {index: matrix for shard in shards for index, matrix in shard.items()}
    return [scores[index] for index in range(len(groups))]


if __name__ == "__main__":
    stage_entry.run(main, "train")
