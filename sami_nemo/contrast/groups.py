"""Stage `groups_n`: contrast groups from sampled responses.

Writes into iteration_<n>/groups/:

    evaluation.jsonl    every evaluation query whose responses are not empty
    training.jsonl      exactly the groups that iteration n+1 trains on; absent after the last iteration
    filters.json        how many groups and responses each filter dropped, and what was kept
"""

from __future__ import annotations

import itertools
import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sami_nemo.config.schema import Config
from sami_nemo.contrast.filters import Reason, Screened, screen_evaluation, screen_training
from sami_nemo.errors import DataError
from sami_nemo.progress import report_phase
from sami_nemo.prompts.tokenization import PromptTokenizer, uses_chat_template
from sami_nemo.queries.split import half_index, needed_groups
from sami_nemo.records import ContrastGroup, Response
from sami_nemo.run_dir import INSTRUCT, RunDir, partial, read_json, read_jsonl, write_json, write_jsonl


def main(config: Config, run_dir: RunDir, iteration: int) -> None:
    # An iteration's tokenizer is the base model's.
    model = run_dir.hf(iteration if iteration == INSTRUCT else 0)
    tokenizer = PromptTokenizer.load(model, config.data.task, uses_chat_template(config, iteration))
    report_phase("work")
    responses = run_dir.responses(iteration)
    sampled = read_json(responses / "report.json")
    output = partial(run_dir.groups(iteration))
    shutil.rmtree(output, ignore_errors=True)

    def training_screen(texts: Sequence[str]) -> Screened:
        return screen_training(texts, config.generate.require_full_stop)

    evaluation, tally = build_groups(read_responses(responses / "evaluation.jsonl"), screen_evaluation, tokenizer)
    if not evaluation:
        remedy = f"no evaluation query has responses under every constitution ({tally.describe()}); look at the model"
        raise DataError(str(responses / "evaluation.jsonl"), "(no groups)", remedy)
    write_jsonl(output / "evaluation.jsonl", (group.to_json() for group in evaluation))
    report = {"evaluation": {**sampled_counts(sampled["evaluation"]), **tally.to_json()}}

    if iteration != INSTRUCT and iteration < config.iterations:
        training, tally = build_groups(read_responses(responses / "training.jsonl"), training_screen, tokenizer)
        needed = needed_groups(config, iteration + 1)
        if len(training) < needed:
            half = len(read_jsonl(run_dir.queries / f"half_{half_index(iteration + 1)}.jsonl"))
            raise too_few_groups(config, iteration + 1, tally, sampled["training"]["queries"], half)
        write_jsonl(output / "training.jsonl", (group.to_json() for group in training[:needed]))
        counts = {"needed": needed, "unused": len(training) - needed}
        report["training"] = {**sampled_counts(sampled["training"]), **tally.to_json(), **counts}

    write_json(output / "filters.json", report)
    for name, values in report.items():
        print(f"{name}: {values}")


def read_responses(path: Path) -> list[Response]:
    return [Response.from_json(row) for row in read_jsonl(path)]


def sampled_counts(plan: dict[str, Any]) -> dict[str, int]:
    """What the sampling stage reports, as counts."""
    return {"queries": plan["queries"], "too_long": len(plan["too_long"])}


@dataclass
class Tally:
    """What the filters did. `groups` = `kept` + the sum of `dropped_groups`, and likewise for responses."""

    groups: int = 0
    kept: int = 0
    responses: int = 0
    tails_cut: int = 0
    """Responses that went on with the next turn, and were cut there."""
    dropped_groups: Counter[Reason] = field(default_factory=Counter)
    dropped_responses: Counter[Reason] = field(default_factory=Counter)
    """By their own defect; the sound responses of a dropped group are not counted."""

    def add(self, screened: Screened) -> None:
        self.groups += 1
        self.responses += len(screened.texts)
        self.tails_cut += sum(screened.cut)
        self.dropped_responses.update(reason for reason in screened.reasons if reason)
        if screened.reason:
            self.dropped_groups[screened.reason] += 1
        else:
            self.kept += 1

    def describe(self) -> str:
        """Dropped groups by reason, most frequent first."""
        return ", ".join(f"{reason} {count}" for reason, count in self.dropped_groups.most_common()) or "none dropped"

    def to_json(self) -> dict[str, Any]:
        return {
            "groups": self.groups,
            "kept": self.kept,
            "responses": self.responses,
            "human_tails_cut": self.tails_cut,
            "dropped_groups": {reason.value: self.dropped_groups[reason] for reason in Reason},
            "dropped_responses": {reason.value: self.dropped_responses[reason] for reason in Reason},
        }


def build_groups(
    responses: Iterable[Response], screen: Callable[[Sequence[str]], Screened], tokenizer: PromptTokenizer
) -> tuple[list[ContrastGroup], Tally]:
    """The groups that pass `screen`, in the order of the responses.

    Args:
        responses: those of a query follow one another.
        screen: judges the texts of a group.
    """
    groups: list[ContrastGroup] = []
    tally = Tally()
    for _, members in itertools.groupby(responses, key=lambda response: response.query.id):
        group = list(members)
        screened = screen([response.text for response in group])
        tally.add(screened)
        if screened.reason is None:
            groups.append(contrast_group(group, screened, tokenizer))
    return groups, tally


def contrast_group(responses: Sequence[Response], screened: Screened, tokenizer: PromptTokenizer) -> ContrastGroup:
    """One query's responses and their training prompts.

    Responses keep the ids that were sampled; one whose tail was cut keeps those of its text.
    """
    query = responses[0].query
    sampled = (
        tokenizer.cut(response.token_ids, text) if cut else response.token_ids
        for response, text, cut in zip(responses, screened.texts, screened.cut, strict=True)
    )
    response_ids = tuple((*tokenizer.response_prefix_ids, *ids) for ids in sampled)
    return ContrastGroup(
        query=query,
        constitutions=tuple(response.constitution for response in responses),
        prompt_ids=tuple(tokenizer.encode_training_prompt(response.constitution, query) for response in responses),
        response_ids=response_ids,
        responses=tuple(tokenizer.decode(ids).strip() for ids in response_ids),
    )


def too_few_groups(config: Config, iteration: int, tally: Tally, sampled: int, half: int) -> DataError:
    """The error for an iteration without enough groups.

    Args:
        sampled: queries that were taken for it.
        half: queries that its half of the data holds.
    """
    needed = needed_groups(config, iteration)
    parts = [f"{needed} are needed, {tally.kept} of {sampled} sampled queries survived the filters"]
    parts.append(f"dropped: {tally.describe()}, too long {sampled - tally.groups}")
    lower = "lower train.batch_size or train.batches"
    if tally.kept == 0:
        parts.append("none survived, so more queries will not help: look at the responses")
    else:
        rate = tally.kept / sampled
        more = math.ceil((needed - tally.kept) / rate)
        oversample = math.ceil(10 * (sampled + more) / needed) / 10
        parts.append(f"at this rate {more} more queries are needed")
        if sampled + more <= half:
            parts.append(
                f"set generate.oversample={oversample} or more (half {half_index(iteration)} has {half} queries)"
            )
        else:
            parts.append(f"half {half_index(iteration)} has only {half} queries: give data.source more, or {lower}")
    return DataError(f"training groups of iteration {iteration}", tally.kept, "; ".join(parts))


if __name__ == "__main__":
    from sami_nemo import stage_entry

    stage_entry.run(main, "train")
