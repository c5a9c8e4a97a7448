"""The figures of a report: what each shows, as data (a chart), and how it is drawn with matplotlib.

Charts are made from the results of one run or, to compare them, of several; where these hold nothing there is no chart.
"""

from __future__ import annotations

import functools
import io
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from sami_nemo.report.run_data import Estimate, Matrix, Measures, Results, RunData, Step, WinRate, opponents_of

# Okabe and Ito's colours, which people with any colour vision tell apart; the weakest on white come last.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P")
LINES = ("-", (0, (6, 1.5)), (0, (4, 1.5, 1, 1.5)), (0, (1.5, 1)), (0, (8, 2, 1, 2, 1, 2)), (0, (3, 1)))
INK, FAINT, GRID = "#20242b", "#858b95", "#e2e5e9"
# On cells of the heat map, whose colours are the same in light and dark.
ON_LIGHT, ON_DARK = "#101216", "#fdfdfd"
STYLE: dict[Any, Any] = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
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
# A column of the page; on a phone the figure keeps almost its natural size, and its letters are readable.
WIDTH = 4.6
HEIGHT = 2.9
LEGEND_ROW = 0.24
LONGEST_TITLE = 46
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
    style: int
    """Colour, marker and line: the same for the same run in all figures."""


@dataclass(frozen=True)
class Reference:
    """A horizontal line."""

    label: str
    value: float
    dashed: bool = False
    style: int | None = None
    """Of the series that it belongs to, if it does."""


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
        for place, series in enumerate(self.series):
            self._draw_series(axes, place, series)
        for reference in self.references:
            self._draw_reference(axes, reference)
        _title(figure, self.title)
        axes.set(xlabel=self.x, ylabel=self.y)
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        numbers = [point.x for series in self.series for point in series.points]
        axes.set_xlim(min(numbers) - 0.35, max(numbers) + 0.35)
        self._limit(axes)
        self._add_legend(figure, axes)
        return figure

    def _add_legend(self, figure: Figure, axes: Axes) -> None:
        """Below, where it hides nothing; matplotlib would name plain lines before those with error bars."""
        handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        labels = [*(series.label for series in self.series), *(reference.label for reference in self.references)]
        if len(labels) > 1:
            columns = 1 if max(map(len, labels)) > 22 else 2
            figure.set_figheight(HEIGHT + LEGEND_ROW * math.ceil(len(labels) / columns))
            shown = [handles[label] for label in labels]
            figure.legend(shown, labels, loc="outside lower center", ncols=columns, handlelength=3)

    def _limit(self, axes: Axes) -> None:
        low, high = axes.get_ylim()
        if self.lowest is not None:
            low = low if axes.dataLim.ymin < self.lowest else self.lowest
            high += 0.04 * (high - low)
        if self.highest is not None:
            high = max(self.highest, axes.dataLim.ymax)
        axes.set_ylim(low, high)

    def _draw_series(self, axes: Axes, place: int, series: Series) -> None:
        colour, marker, line = (choices[series.style % len(SERIES)] for choices in (SERIES, MARKERS, LINES))
        errors = [point.sem for point in series.points if point.sem is not None]
        # Beside one another, so that error bars of several lines can be told apart.
        shift = 0.05 * (place - (len(self.series) - 1) / 2) if errors else 0.0
        axes.errorbar(
            [point.x + shift for point in series.points],
            [point.value for point in series.points],
            yerr=errors or None,
            color=colour,
            marker=marker,
            linestyle=line,
            capsize=3,
            elinewidth=1.2,
            label=series.label,
        )

    def _draw_reference(self, axes: Axes, reference: Reference) -> None:
        colour = FAINT if reference.style is None else SERIES[reference.style % len(SERIES)]
        style: Any = (0, (5, 3)) if reference.dashed else (0, (1, 2))
        axes.axhline(reference.value, color=colour, linestyle=style, linewidth=1.2, zorder=1, label=reference.label)


@dataclass(frozen=True, eq=False)
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
                    axes.text(
                        column,
                        row,
                        f"{cell.mean:.2f}".replace("-", "−"),
                        ha="center",
                        va="center",
                        color=ink,
                        fontsize=size,
                    )
        _title(figure, self.title)
        labels = [name.replace("+", " +\n") for name in names]
        axes.set(
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


def _title(figure: Figure, title: str) -> None:
    """From the figure's left edge: those of win rates are too long to begin at the axes'."""
    lines = textwrap.fill(title.replace("PMI proxy", "PMI\u00a0proxy"), LONGEST_TITLE).replace("\u00a0", " ")
    figure.suptitle(lines, x=0.012, ha="left", fontsize=10.5, fontweight="bold")


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


# Drawn once, for its file and for the page.
@functools.lru_cache(maxsize=64)
def svg(chart: Chart) -> str:
    """A file of its own, in the colours of the light page."""
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        chart.figure().savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue().replace("'DejaVu Sans'", "'DejaVu Sans', sans-serif")


def comparable_charts(runs: Sequence[Results]) -> list[Chart]:
    """Bound, lengths and win rates: of one run with its sources, or one line for each of several runs."""
    opponents = opponents_of(runs)
    # Two opponents are two lines of one run, but as many figures of several.
    shown = [opponents] if len(runs) == 1 else [[opponent] for opponent in opponents]
    charts = [bound(runs), lengths(runs)]
    charts += [win_rates(runs, some, corrected) for some in shown for corrected in (True, False)]
    return [chart for chart in charts if chart is not None]


def charts_of(run: RunData) -> list[Chart]:
    """Every chart that the run has values for."""
    return [*comparable_charts([run.results]), *training(run.steps), *log_probs(run)]


def bound(runs: Sequence[Results]) -> Chart | None:
    """The bound by iteration, and where it saturates."""
    maxima = dict.fromkeys(iteration.total.maximum for run in runs for iteration in run.iterations)
    caption = "On held-out queries, mean ± standard error. The estimate cannot exceed log C, C constitutions per query."
    return _by_iteration(
        runs,
        LineChart("bound", "Mutual-information bound", caption, "iteration", "bound (nats)", (), lowest=0.0),
        lambda measures: measures.bound,
        tuple(Reference(f"maximum, log C = {maximum:.3f}", maximum) for maximum in maxima),
    )


def lengths(runs: Sequence[Results]) -> Chart | None:
    """Mean response length by iteration."""
    caption = "Responses to held-out queries, mean ± standard error."
    chart = LineChart("lengths", "Response length", caption, "iteration", "response length (tokens)", (), lowest=0.0)
    return _by_iteration(runs, chart, lambda measures: measures.tokens)


def _by_iteration(
    runs: Sequence[Results],
    chart: LineChart,
    value: Callable[[Measures], Estimate | None],
    references: tuple[Reference, ...] = (),
) -> Chart | None:
    lines = []
    for style, run in enumerate(runs):
        one = len(runs) == 1
        sources = list(dict.fromkeys(s for i in run.iterations for s in i.by_source)) if one else []
        name = run.name if not one else "all sources" if sources else "trained model"
        lines.append(_line(name, {i.number: value(i.total) for i in run.iterations}, style))
        for source in sources:
            by_source = {i.number: value(i.by_source[source]) for i in run.iterations if source in i.by_source}
            lines.append(_line(source, by_source, len(lines)))
        if run.instruct and (baseline := value(run.instruct)):
            label = "instruct baseline" if one else f"{run.name}: instruct"
            references += (Reference(label, baseline.mean, dashed=True, style=None if one else style),)
    return _with_lines(chart, lines, references)


def win_rates(runs: Sequence[Results], opponents: Sequence[str], corrected: bool) -> Chart | None:
    """Win rates by iteration: against each opponent for one run, against the only opponent for each of several."""

    def value(rate: WinRate) -> Estimate | None:
        return rate.corrected if corrected else rate.raw

    judges = dict.fromkeys(run.judge.label for run in runs if run.judge)
    lines: list[Series] = []
    for place, run in enumerate(runs):
        for opponent in opponents:
            rates = {i.number: i.win_rates[opponent] for i in run.iterations if opponent in i.win_rates}
            name = f"against {opponent}" if len(runs) == 1 else run.name
            if len(judges) > 1 and run.judge:
                name += f" ({run.judge.label})"
            style = len(lines) if len(runs) == 1 else place
            lines.append(_line(name, {number: value(rate) for number, rate in rates.items()}, style))
            for source in dict.fromkeys(s for rate in rates.values() for s in rate.by_source) if len(runs) == 1 else []:
                by_source = {n: value(rate.by_source[source]) for n, rate in rates.items() if source in rate.by_source}
                lines.append(_line(f"{name}, {source}", by_source, len(lines)))
    kind = "length-corrected" if corrected else "uncorrected"
    caption = f"Share of held-out queries won ({', '.join(judges)}), mean ± standard error; 0.5 is a draw."
    if corrected:
        caption += (
            " The mean over queries with a longer and with no longer response; absent where there are none of one."
        )
    name = "_".join(["win_rate", *(opponents if len(runs) > 1 else []), *([] if corrected else ["uncorrected"])])
    title = "Win rate" + (f" against {opponents[0]}" if len(runs) > 1 and opponents else "") + f", {kind}"
    if len(judges) == 1 and any(run.judge and run.judge.proxy for run in runs):
        title += " (PMI proxy)"
    even = Reference("even, 0.5", 0.5)
    return _with_lines(
        LineChart(name, title, caption, "iteration", "win rate (fraction)", (), lowest=0.0, highest=1.0), lines, (even,)
    )


def training(steps: Mapping[int, Sequence[Step]]) -> list[Chart]:
    """Loss and gradient norm of every iteration."""
    x, fresh = "gradient step, counted over all iterations", "Each iteration starts again from the base model."
    loss = LineChart("loss", "Training loss", fresh, x, "loss (nats)", ())
    norm = LineChart("grad_norm", "Gradient norm", f"Before clipping. {fresh}", x, "gradient norm", (), lowest=0.0)
    curves = [_by_step(loss, steps, lambda step: step.loss), _by_step(norm, steps, lambda step: step.grad_norm)]
    return [curve for curve in curves if curve is not None]


def _by_step(chart: LineChart, steps: Mapping[int, Sequence[Step]], value: Callable[[Step], float]) -> Chart | None:
    lines: list[Series] = []
    before = 0
    for iteration, taken in steps.items():
        points = tuple(Point(number, value(step)) for number, step in enumerate(taken, start=before + 1))
        lines.append(Series(f"iteration {iteration}", points, len(lines)))
        before += len(taken)
    return _with_lines(chart, lines)


def log_probs(run: RunData) -> list[Chart]:
    """Heat maps of the base model and of the last iteration, in the same colours."""
    values = [cell.mean for matrix in run.matrices.values() for cell in matrix.cells.values()]
    caption = (
        "Mean over held-out queries of log p(response | constitution), nats per token. Training raises the diagonal "
        "over its row and column."
    )
    charts: list[Chart] = []
    for iteration, matrix in run.matrices.items():
        when, model = ("before", "base model") if iteration == 0 else ("after", f"iteration {iteration}")
        title = f"Log-probs {when} training: {model}"
        charts.append(HeatMap(f"logprobs_{when}", title, caption, matrix, min(values), max(values)))
    return charts


def _line(label: str, values: Mapping[int, Estimate | None], style: int) -> Series:
    points = (Point(x, value.mean, value.sem, value.n) for x, value in values.items() if value is not None)
    return Series(label, tuple(points), style)


def _with_lines(chart: LineChart, lines: Sequence[Series], references: tuple[Reference, ...] = ()) -> Chart | None:
    drawn = tuple(line for line in lines if line.points)
    return replace(chart, series=drawn, references=references) if drawn else None
