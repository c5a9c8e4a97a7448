"""Stage `report_n`: metrics.json and the run in figures, from whatever of it is finished.

Writes into report/, anew after every iteration:

    figures/NAME.png, .svg    each figure on its own
    data/NAME.csv             its values
    index.html                all of it on one page, which opens offline and needs no other file
    model_card_<n>.md         the model card of iteration n with its numbers
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

from sami_nemo import stage_entry
from sami_nemo.config.schema import Config
from sami_nemo.evaluate.metrics import write_metrics
from sami_nemo.report.card import write_cards
from sami_nemo.report.figures import Chart, charts_of, png, svg
from sami_nemo.report.page import render, report_page
from sami_nemo.report.run_data import read_run
from sami_nemo.run_dir import RunDir, write_bytes, write_text


def main(config: Config, run: RunDir, iteration: int) -> None:
    write_metrics(config, run)
    write_report(run)
    write_cards(config, run)
    print(f"report after iteration {iteration}: {run.report / 'index.html'}")


def write_report(run: RunDir) -> None:
    """Write or rewrite the report; the page comes last, so that what it links to is there."""
    data = read_run(run)
    charts = charts_of(data)
    written = set()
    for chart in charts:
        written |= set(_write_chart(run.report, chart))
    write_text(run.report / "index.html", render(report_page(data)))
    for name in ("figures", "data"):
        for path in (run.report / name).glob("*"):
            if path not in written:
                # Of a report before this one: the run no longer has values for it.
                path.unlink()


def _write_chart(directory: Path, chart: Chart) -> list[Path]:
    paths = [directory / "figures" / f"{chart.name}.{kind}" for kind in ("png", "svg")]
    table = directory / "data" / f"{chart.name}.csv"
    write_bytes(paths[0], png(chart))
    write_text(paths[1], svg(chart))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(chart.rows())
    write_text(table, text.getvalue())
    return [*paths, table]


if __name__ == "__main__":
    stage_entry.run(main, "train")
