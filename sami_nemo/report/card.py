"""Model cards with numbers, beside the report: model_card_<n>.md of every iteration that is evaluated.

They are not written into an export, which its stage has recorded: another file there would make the stage unfinished.
"""

from __future__ import annotations

from pathlib import Path

from sami_nemo.config.schema import Config
from sami_nemo.constitution.principles import load_principles
from sami_nemo.model_card import Result, base_license, model_card
from sami_nemo.report.run_data import Estimate, Iteration, Judge, Results, read_results
from sami_nemo.run_dir import RunDir, read_json, write_text


def card_path(run: RunDir, iteration: int) -> Path:
    """Where the card with numbers of `iteration` is."""
    return run.report / f"model_card_{iteration}.md"


def write_cards(config: Config, run: RunDir) -> None:
    """Write or rewrite the cards with numbers; those of iterations without results go.

    Raises:
        RunDirectoryError: there are no results.
        DataError: the run's principles cannot be read.
    """
    written = set()
    results = read_results(run)
    for iteration in results.iterations:
        if iteration.number:
            write_text(card_path(run, iteration.number), card_with_numbers(config, run, results, iteration))
            written.add(card_path(run, iteration.number))
    for path in run.report.glob("model_card_*.md"):
        if path not in written:
            path.unlink()


def card_with_numbers(config: Config, run: RunDir, results: Results, iteration: Iteration) -> str:
    """The card of one of the iterations of `results`.

    Raises:
        DataError: the run's principles cannot be read.
    """
    principles, versions = load_principles(str(run.principles)), _versions(run, iteration.number)
    rows = result_rows(iteration, results.judge)
    return model_card(config, principles, iteration.number, base_license(run.hf(0)), versions, rows)


def result_rows(iteration: Iteration, judge: Judge | None) -> list[Result]:
    """Bound, gain, lengths and win rates of one iteration."""
    total = iteration.total
    found: list[tuple[str, Estimate | None, int | None, int]] = [
        (f"bound (nats, at most {total.maximum:.3f})", total.bound, total.bound.n, 3),
        ("gain over iteration 0 (nats)", iteration.gain, iteration.gain.n if iteration.gain else None, 3),
        ("response tokens", total.tokens, total.tokens.n if total.tokens else None, 1),
    ]
    label = judge.label if judge else "judge"
    for opponent, rate in sorted(iteration.win_rates.items()):
        count = rate.raw.n if rate.raw else None
        # The corrected rate is made of the same comparisons.
        found.append((f"win rate against {opponent}, length-corrected ({label})", rate.corrected, count, 3))
        found.append((f"win rate against {opponent}, uncorrected ({label})", rate.raw, count, 3))
    return [_row(name, estimate, n, digits) for name, estimate, n, digits in found if estimate is not None]


def _row(name: str, estimate: Estimate, n: int | None, digits: int) -> Result:
    return Result(name, f"{estimate.mean:.{digits}f}", f"{estimate.sem:.{digits}f}", str(n))


def _versions(run: RunDir, iteration: int) -> dict[str, str]:
    """Of the environment that trained, not of this one: the run may have moved."""
    manifest = run.manifest(f"train_{iteration}")
    return read_json(manifest).get("versions", {}) if manifest.exists() else {}
