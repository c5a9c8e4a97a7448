"""The figures of a report: what each shows, as data, and how it is drawn with matplotlib.

A chart is made from results, or is None when they hold nothing for it. `draw` gives a figure for PNG files; `svg` gives
the same as SVG that takes its colours from the page (CSS variables), so that it follows light and dark.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from sami_nemo.report.run_data import Estimate, Iteration, Matrix, Measures, Results, RunData, Step, WinRate

# Okabe and Ito's colours, which people with any colour vision tell apart; the weakest on white come last.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P")
LINES = ("-", (0, (6, 1.5)), (0, (4, 1.5, 1, 1.5)), (0, (1.5, 1)), (0, (8, 2, 1, 2, 1, 2)), (0, (3, 1)))
INK, FAINT, GRID = "#20242b", "#858b95", "#e2e5e9"
# On cells of the heat map, whose colours are the same in light and dark.
ON_LIGHT, ON_DARK = "#101216", "#fdfdfd"
STYLE = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.titlepad": 9,
    "font.size": 9.5,
    "font.family": "DejaVu Sans",
    "text.color": INK,
    # Names of runs and constitutions may hold a dollar sign.
    "text.parse_math": False,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.7,
    "lines.markersize": 5.5,
    "legend.frameon": False,
    "svg.fonttype": "none",
    # Without it ids are drawn anew each time.
    "svg.hashsalt": "sami-nemo",
}
CSS_VARIABLES = {INK: "ink", FAINT: "faint", GRID: "grid", **{c: f"s{i}" for i, c in enumerate(SERIES, start=1)}}
# A column of the page; on a phone the figure keeps almost its natural size, and its letters are readable.
WIDTH = 5.0
HEIGHT = 3.1
LEGEND_ROW = 0.24
# Above it numbers no longer fit the cells.
MOST_NUMBERED = 9


@dataclass(frozen=True)
class Point:
    x: int
    value: float
    sem: float | None = None
    n: int | None = None


@dataclass(frozen=True)
class Series:
    label: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Reference:
    """A horizontal line."""

    label: str
    value: float
    dashed: bool = False
    series: int | None = None
    """Of which series, if it is of one."""


@dataclass(frozen=True)
class LineChart:
    name: str
    """Of its files."""
    title: str
    caption: str
    x: str
    y: str
    series: tuple[Series, ...]
    references: tuple[Reference, ...] = ()
    lowest: float | None = None
    """Shown whatever the values."""
    highest: float | None = None

    @property
    def description(self) -> str:
        """For those who do not see it."""
        lines = (f"{s.label}: " + ", ".join(f"{p.value:.3g} at {p.x}" for p in s.points) for s in self.series)
        references = (f"{reference.label}: {reference.value:.3g}" for reference in self.references)
        return f"{self.title}. {self.y} by {self.x}. " + "; ".join([*lines, *references])

    def rows(self) -> list[list[Any]]:
        """As a table, with a header; references have no x."""
        header = ["series", "x", "value", "sem", "n"]
        points = [[s.label, p.x, p.value, p.sem, p.n] for s in self.series for p in s.points]
        return [header, *points, *([r.label, None, r.value, None, None] for r in self.references)]

    def figure(self) -> Figure:
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        axes = figure.add_subplot()
        for index, reference in enumerate(self.references):
            self._draw_reference(axes, index, reference)
        for index, series in enumerate(self.series):
            self._draw_series(axes, index, series)
        axes.set(title=self.title, xlabel=self.x, ylabel=self.y)
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        numbers = [point.x for series in self.series for point in series.points]
        axes.set_xlim(min(numbers) - 0.35, max(numbers) + 0.35)
        self._limit(axes)
        handles, labels = axes.get_legend_handles_labels()
        if len(handles) > 1:
            columns = 1 if max(map(len, labels)) > 26 else min(len(handles), 2)
            figure.set_figheight(HEIGHT + LEGEND_ROW * -(-len(handles) // columns))
            figure.legend(handles, labels, loc="outside lower center", ncols=columns, handlelength=3)
        return figure

    def _limit(self, axes: Axes) -> None:
        low, high = axes.get_ylim()
        room = 0.04 * (high - low)
        if self.lowest is not None:
            axes.set_ylim(bottom=self.lowest if low >= self.lowest - room else low)
        if self.highest is not None:
            axes.set_ylim(top=max(self.highest, high))

    def _draw_series(self, axes: Axes, index: int, series: Series) -> None:
        colour, marker, line = (choices[index % len(SERIES)] for choices in (SERIES, MARKERS, LINES))
        errors = [point.sem for point in series.points]
        # Beside one another, so that error bars of several lines can be told apart.
        shift = 0.05 * (index - (len(self.series) - 1) / 2) if None not in errors else 0.0
        axes.errorbar(
            [point.x + shift for point in series.points],
            [point.value for point in series.points],
            yerr=None if None in errors else errors,
            color=colour,
            marker=marker,
            linestyle=line,
            capsize=3,
            elinewidth=1.2,
            label=series.label,
        )

    def _draw_reference(self, axes: Axes, index: int, reference: Reference) -> None:
        colour = FAINT if reference.series is None else SERIES[reference.series % len(SERIES)]
        style: Any = (0, (5, 3)) if reference.dashed else (0, (1, 2))
        axes.axhline(reference.value, color=colour, linestyle=style, linewidth=1.2, label=reference.label)


@dataclass(frozen=True)
class HeatMap:
    name: str
    title: str
    caption: str
    matrix: Matrix
    lowest: float
    """Of the colour scale, shared by the maps that are compared."""
    highest: float

    @property
    def description(self) -> str:
        size = len(self.matrix.constitutions)
        return f"{self.title}. Mean log-prob in nats per token of responses under {size} constitutions, as a heat map."

    def rows(self) -> list[list[Any]]:
        header = ["constitution", "response_sampled_under", "nats_per_token", "n"]
        return [header, *([scored, sampled, e.mean, e.n] for (scored, sampled), e in self.matrix.cells.items())]

    def figure(self) -> Figure:
        names = self.matrix.constitutions
        figure = Figure(figsize=(WIDTH, max(HEIGHT, 2.0 + 0.5 * len(names))), layout="constrained")
        axes = figure.add_subplot()
        scale = Normalize(self.lowest, max(self.highest, self.lowest + 1e-6))
        colours = matplotlib.colormaps["cividis"]
        for row, scored in enumerate(names):
            for column, sampled in enumerate(names):
                if (cell := self.matrix.cells.get((scored, sampled))) is None:
                    continue
                shade = float(scale(cell.mean))
                axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=colours(shade), edgecolor="none"))
                if len(names) <= MOST_NUMBERED:
                    ink = ON_LIGHT if shade > 0.55 else ON_DARK
                    size = 9 if len(names) <= 5 else 6.5
                    axes.text(column, row, f"{cell.mean:.2f}", ha="center", va="center", color=ink, fontsize=size)
        labels = [name.replace("+", " +\n") for name in names]
        axes.set(
            title=self.title,
            xlim=(-0.5, len(names) - 0.5),
            ylim=(len(names) - 0.5, -0.5),
            xlabel="response sampled under",
            ylabel="scored under",
        )
        axes.set_xticks(range(len(names)), labels, fontsize=8, rotation=35, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(names)), labels, fontsize=8)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        return figure


Chart = LineChart | HeatMap


def draw(chart: Chart) -> Figure:
    """The figure of a chart."""
    with matplotlib.rc_context(STYLE):
        return chart.figure()


def png(chart: Chart) -> bytes:
    """On white, 150 dpi."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        chart.figure().savefig(buffer, format="png", dpi=150, facecolor="white")
    return buffer.getvalue()


def svg(chart: Chart) -> str:
    """A file of its own, in the colours of the light page."""
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        chart.figure().savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def inline_svg(chart: Chart) -> str:
    """An element for a page: colours are CSS variables, ids begin with the chart's name, fonts are the page's."""
    text = svg(chart)
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # It would hold for the whole page, which has its own.
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{chart.name}-", text)
    text = re.sub(r"'DejaVu Sans'(, [^;\"]*)?", "inherit", text)
    for colour, variable in CSS_VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    return text
