"""Stage `judge_n` with `judge.method=pmi`: an offline proxy for a judge, under the base model.

    pmi(y) = l(y | desired) - log(1/C sum_c exp l(y | c)),    l(y | c) = mean log-prob of y's tokens, in nats

over the C constitutions that the query was evaluated under. Of two responses the one with the larger pmi is the likelier
sign of the desired constitution, to the model before any training. It rewards what SAMI trains for, so it says less than
a judge of another kind; it is called a proxy wherever it is shown.

Under torch.distributed.run, in the layout of training. Writes into iteration_<n>/judge/:

    scores.jsonl      pmi of the responses that were scored here: the iteration's, at iteration 0 the instruct baseline's
    verdicts.jsonl    one row per comparison, see comparisons.py
    summary.json      win rates, see win_rates.py
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

from sami_nemo import stage_entry
from sami_nemo.config.schema import Config
from sami_nemo.contrast.batches import group_length
from sami_nemo.evaluate.bound import score_groups
from sami_nemo.evaluate.comparisons import comparisons, desired_id, desired_index, evaluation_groups, verdict
from sami_nemo.evaluate.win_rates import win_rates
from sami_nemo.progress import report_phase
from sami_nemo.prompts.tokenization import PromptTokenizer
from sami_nemo.records import ContrastGroup
from sami_nemo.run_dir import INSTRUCT, RunDir, partial, read_jsonl, write_json, write_jsonl

Scores = dict[str, float]
"""pmi of one model's responses, by query."""


def main(config: Config, run: RunDir, iteration: int) -> None:
    desired = desired_id(run)
    tokenizer = PromptTokenizer.load(run.hf(0), config.data.task, config.generate.chat_template)
    subject = iteration or INSTRUCT
    groups = groups_to_score(run, subject, desired, tokenizer)
    directory = partial(run.judge(iteration))
    shutil.rmtree(directory, ignore_errors=True)
    scored = score_under_base(config, run.hf(0), groups, desired)
    if not stage_entry.is_writer():
        return
    report_phase("saving")
    write_jsonl(directory / "scores.jsonl", ({"query_id": query, "pmi": pmi} for query, pmi in scored.items()))
    base = base_scores(config, run, desired)
    if iteration == 0:
        mine, theirs = base, {"instruct": scored}
    else:
        mine, theirs = scored, {"base": base, "instruct": instruct_scores(run)}
    rows = [
        verdict(
            comparison,
            score=compare(mine[comparison.query_id], theirs[comparison.opponent][comparison.query_id]),
            count_tokens=tokenizer.count,
        )
        for comparison in comparisons(config, run, iteration)
        # The base model's prompts score all responses: queries that it did not answer are left out.
        if comparison.query_id in mine and comparison.query_id in theirs[comparison.opponent]
    ]
    write_jsonl(directory / "verdicts.jsonl", rows)
    write_json(directory / "summary.json", {"win_rate": win_rates(rows)})


def compare(mine: float, theirs: float) -> float:
    """1 for the larger pmi, 1/2 for equal ones (the same text twice)."""
    return 0.5 if mine == theirs else float(mine > theirs)


def pmi(logprobs: Sequence[float], desired: int) -> float:
    """pmi of a response.

    Args:
        logprobs: mean log-prob of its tokens under each constitution, nats.
        desired: index of the desired one.
    """
    largest = max(logprobs)
    mean = sum(math.exp(value - largest) for value in logprobs) / len(logprobs)
    return logprobs[desired] - largest - math.log(mean)


def groups_to_score(run: RunDir, subject: int, desired: str, tokenizer: PromptTokenizer) -> list[ContrastGroup]:
    """The response of `subject` to each query under the desired constitution, with the base model's prompts of all."""
    prompts = evaluation_groups(run, 0)
    groups = []
    for query_id, group in evaluation_groups(run, subject).items():
        if query_id not in prompts:
            continue
        index = desired_index(group, desired)
        ids = group.response_ids[index]
        if subject == INSTRUCT:
            # Its own tokenizer's ids mean nothing to the base model.
            ids = tokenizer.encode_response(group.responses[index])
        one = dataclasses.replace(prompts[query_id], response_ids=(ids,), responses=(group.responses[index],))
        groups.append(one)
    return groups


def score_under_base(config: Config, base: Path, groups: list[ContrastGroup], desired: str) -> Scores:
    """pmi of the single response of each group, on every rank; collective."""
    from sami_nemo.model.trainer import backend, build_model

    with backend(config):
        longest = max(map(group_length, groups))
        # Length-normalised whatever training does: responses of different models differ in length.
        train = config.train.model_copy(update={"logprob_normalization": "mean"})
        config = config.model_copy(update={"train": train})
        model = build_model(config, base, sequence_length=longest)
        matrices = score_groups(config, model, groups)
    return {
        group.query.id: pmi([row[0] for row in matrix], desired_index(group, desired))
        for group, matrix in zip(groups, matrices, strict=True)
    }


def base_scores(config: Config, run: RunDir, desired: str) -> Scores:
    """pmi of the base model's own responses, from the matrices of iteration 0."""
    scores = {}
    for row in read_jsonl(run.evaluation(0) / "groups.jsonl"):
        index = row["constitutions"].index(desired)
        tokens = row["response_tokens"][index] if config.train.logprob_normalization == "sum" else 1
        scores[row["query_id"]] = pmi([values[index] / tokens for values in row["logprobs"]], index)
    return scores


def instruct_scores(run: RunDir) -> Scores:
    """pmi of the baseline's responses, scored at iteration 0 if there is a baseline."""
    file = run.judge(0) / "scores.jsonl"
    return {row["query_id"]: row["pmi"] for row in read_jsonl(file)} if file.exists() else {}


if __name__ == "__main__":
    stage_entry.run(main, "train")
