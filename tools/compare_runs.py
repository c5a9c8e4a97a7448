"""Compare runs on one page: bound, lengths and win rates with a line for each run, and the final numbers.

.venv/train/bin/python tools/compare_runs.py runs/a runs/b [--output compare/index.html]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sami_nemo.errors import EXIT_USER_ERROR, RunDirectoryError, UserError
from sami_nemo.report.figures import comparable_charts
from sami_nemo.report.page import ABSENT, Page, Table, render, results_header, results_row
from sami_nemo.report.run_data import Results, opponents_of, read_results
from sami_nemo.run_dir import RunDir, write_text


def read_runs(directories: Sequence[Path]) -> list[Results]:
    """Results of every run, under names that tell them apart.

    Raises:
        RunDirectoryError: a run without results.
    """
    runs = [read_results(RunDir(directory)) for directory in directories]
    for directory, run in zip(directories, runs, strict=True):
        if not run.iterations:
            raise RunDirectoryError("run", directory, "no iteration is evaluated yet; wait for the first")
    if len({run.name for run in runs}) == len(runs):
        return runs
    return [replace(run, name=str(directory)) for directory, run in zip(directories, runs, strict=True)]


def comparison(runs: Sequence[Results]) -> Page:
    """The page; without files beside it."""
    opponents = opponents_of(runs)
    # A column holds rates of several judges, so the proxy is named in each row.
    header = ["run", "recipe", "seed", "win rates by", "iteration", *results_header(opponents, proxy=False)]
    rows = []
    for run in runs:
        last = run.iterations[-1]
        by = run.judge.label if run.judge and last.win_rates else ABSENT
        rows.append([run.name, run.recipe, str(run.seed), by, str(last.number), *results_row(last, opponents)])
    note = "Means ± standard errors over held-out queries, after the last iteration of each run."
    return Page(
        title=f"{len(runs)} runs",
        kind="SAMI comparison",
        facts={"runs": ", ".join(run.name for run in runs)},
        tiles=(),
        charts=comparable_charts(runs),
        results=Table("Final numbers", header, rows, note),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN_DIR", help="directory of a run, e.g. runs/NAME")
    parser.add_argument("--output", type=Path, default=Path("compare/index.html"), help="page to write")
    arguments = parser.parse_args()
    try:
        page = comparison(read_runs(arguments.runs))
    except UserError as error:
        print(error, file=sys.stderr)
        return EXIT_USER_ERROR
    write_text(arguments.output, render(page))
    print(arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
