"""Stage `queries`: load and split the queries of a run, and list its constitutions.

Writes into queries/:

    evaluation.jsonl, half_0.jsonl, half_1.jsonl    `Query` rows
    constitutions.json                              citation, the desired constitution, and every principle
    report.json                                     rows read, kept, and dropped by reason; sizes of the parts
"""

from __future__ import annotations

import dataclasses
import shutil

from sami_nemo import stage_entry
from sami_nemo.config.schema import Config
from sami_nemo.constitution.principles import load_principles
from sami_nemo.progress import report_phase
from sami_nemo.prompts.tokenization import special_texts
from sami_nemo.queries.loaders import load_queries
from sami_nemo.queries.split import split_for_run
from sami_nemo.run_dir import RunDir, partial, write_json, write_jsonl


def main(config: Config, run: RunDir, iteration: int) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(run.hf(0))
    report_phase("work")
    # A chat template's tokens are parsed wherever they stand; elsewhere prompts are tokenised with them as plain text.
    special = special_texts(tokenizer) if config.generate.chat_template else ()
    queries, report = load_queries(
        config.data, lambda text: len(tokenizer.encode(text, add_special_tokens=False)), special
    )
    print(report.words(), flush=True)
    split = split_for_run(config, queries, report.words())
    principles = load_principles(str(run.principles))

    report_phase("saving")
    directory = partial(run.queries)
    shutil.rmtree(directory, ignore_errors=True)
    parts = {"evaluation": split.evaluation, "half_0": split.halves[0], "half_1": split.halves[1]}
    for name, members in parts.items():
        write_jsonl(directory / f"{name}.jsonl", (query.to_json() for query in members))
    sizes = {name: len(members) for name, members in parts.items()}
    write_json(directory / "report.json", {**report.to_json(), "parts": sizes})
    desired = {"desired": principles.desired.to_json(), "distinct": principles.count}
    write_json(directory / "constitutions.json", dataclasses.asdict(principles) | desired)


if __name__ == "__main__":
    stage_entry.run(main, "train")
