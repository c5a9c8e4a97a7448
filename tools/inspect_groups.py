"""Print contrast groups of a run as the model sees them.

    .venv/train/bin/python tools/inspect_groups.py RUN_DIR [--iteration 0] [--part evaluation|training] [--query ID] [--first 2]

For each group: the query, every constitution with its training prompt and the response sampled under it, token counts,
which positions the loss counts, and for held-out queries the matrix of response log-probs (nats per token) by the
model that answered, with the group's bound.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sami_nemo.errors import EXIT_USER_ERROR, DataError, RunDirectoryError, UserError
from sami_nemo.evaluate.metrics import bound
from sami_nemo.records import ContrastGroup
from sami_nemo.run_dir import RunDir, read_jsonl


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--iteration", type=int, default=0, help="whose responses (default: the base model's)")
    parser.add_argument("--part", choices=("evaluation", "training"), default="evaluation")
    parser.add_argument("--query", help="only the group of this query id")
    parser.add_argument("--first", type=int, default=2, help="how many groups (default: 2)")
    arguments = parser.parse_args()
    try:
        for line in inspect(
            RunDir(arguments.run_dir), arguments.iteration, arguments.part, arguments.query, arguments.first
        ):
            print(line)
    except UserError as error:
        print(error, file=sys.stderr)
        return EXIT_USER_ERROR
    return 0


def inspect(run: RunDir, iteration: int, part: str, query: str | None, first: int) -> Iterator[str]:
    """The lines to print.

    Raises:
        RunDirectoryError: there is no such run.
        DataError: it has no such groups yet, or no such query.
    """
    if not run.config.exists():
        raise RunDirectoryError("run directory", run.root, "holds no config.yaml; give runs/NAME")
    file = run.groups(iteration) / f"{part}.jsonl"
    if not file.exists():
        raise DataError("groups", file, "no such file; the iteration is not there yet, or has no groups of this part")
    groups = [ContrastGroup.from_json(row) for row in read_jsonl(file)]
    chosen = [group for group in groups if query in (None, group.query.id)][:first]
    if not chosen:
        raise DataError("--query", query, f"not in {file}; the first is {groups[0].query.id}")
    decode = decoder(run)
    matrices = scores(run, iteration) if part == "evaluation" else {}
    for group in chosen:
        yield from describe(group, decode, matrices.get(group.query.id))


def decoder(run: RunDir) -> Any:
    """From ids to text, special tokens included."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(run.hf(0)), local_files_only=True)
    return lambda ids: tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)


def scores(run: RunDir, iteration: int) -> dict[str, list[list[float]]]:
    """Log-prob matrices by query, if the iteration is evaluated."""
    file = run.evaluation(iteration) / "groups.jsonl"
    return {row["query_id"]: row["logprobs"] for row in read_jsonl(file)} if file.exists() else {}


def describe(group: ContrastGroup, decode: Any, matrix: list[list[float]] | None) -> Iterator[str]:
    """One group."""
    yield f"=== {group.query.id}: {group.query.text}"
    for index, constitution in enumerate(group.constitutions):
        prompt, response = group.prompt_ids[index], group.response_ids[index]
        # Position p predicts token p + 1, so the first counted position is the prompt's last.
        counted = f"{len(prompt) - 1} to {len(prompt) + len(response) - 2}"
        yield f"\n--- {index}: {constitution.id} | prompt {len(prompt)} + response {len(response)} tokens"
        yield f"    the loss counts positions {counted}, those that predict what stands between >>> and <<<"
        yield f"{decode(prompt)}>>>{decode(response)}<<<"
    if matrix is not None:
        yield f"\nlog-prob per token of response (column) under constitution (row), bound {bound(matrix):.3f} nats:"
        for row, constitution in zip(matrix, group.constitutions, strict=True):
            yield "  ".join(f"{value:8.3f}" for value in row) + f"   {constitution.id}"
    yield ""


if __name__ == "__main__":
    sys.exit(main())
