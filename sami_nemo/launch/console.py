"""What a person sees of a run: a live table on a terminal, plain lines elsewhere, and a table of results at the end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Column, Table

from sami_nemo.config.schema import Config
from sami_nemo.launch.stages import Stage
from sami_nemo.progress import duration
from sami_nemo.run_dir import RunDir, read_json

# Often enough to see that it lives, seldom enough for a log.
SECONDS_BETWEEN_LINES = 15.0
REFRESHES_PER_SECOND = 4
# Of an event; all others are values to show.
EVENT_FIELDS = ("time", "done", "total", "unit")
STYLES = {"waits": "dim", "finished before": "dim", "failed": "bold red", "stopped": "bold"}
# Whom responses are compared with, in the order of the columns.
OPPONENTS = ("base", "instruct")
# Header, elapsed time, and the line below.
LINES_BESIDE_STAGES = 3


class View(Protocol):
    """Told by the runner what happens."""

    def skipped(self, stage: Stage) -> None: ...

    def started(self, stage: Stage, resumed: bool) -> None: ...

    def progress(self, stage: Stage, event: dict[str, Any]) -> None: ...

    def finished(self, stage: Stage, seconds: float, split: dict[str, float]) -> None: ...

    def failed(self, stage: Stage, how: str) -> None:
        """`how` is "failed" or "stopped"."""

    def refresh(self) -> None:
        """Called several times a second while a stage runs."""


@dataclass
class Progress:
    """The latest event of a stage, and the first of its unit, from which the time left is told."""

    started: float = field(default_factory=time.time)
    first: dict[str, Any] = field(default_factory=dict)
    last: dict[str, Any] = field(default_factory=dict)

    def add(self, event: dict[str, Any]) -> None:
        if event.get("unit") != self.last.get("unit"):
            self.first = event
        self.last = event

    def count(self) -> str:
        return f"{self.last['done']}/{self.last['total']} {self.last['unit']}" if self.last else ""

    def values(self) -> str:
        """Loss, bound, tokens/s and whatever else the stage reports."""
        shown = ((key, value) for key, value in self.last.items() if key not in EVENT_FIELDS)
        return ", ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in shown)

    def seconds_left(self) -> float | None:
        """At the pace since the first event; null before the second, and after the last."""
        if not self.last or self.last["done"] <= self.first["done"] or self.last["done"] >= self.last["total"]:
            return None
        pace = (self.last["time"] - self.first["time"]) / (self.last["done"] - self.first["done"])
        return max(0.0, pace * (self.last["total"] - self.last["done"]) - (time.time() - self.last["time"]))

    def line(self) -> str:
        left = self.seconds_left()
        parts = [self.count(), self.values(), "" if left is None else f"{duration(left)} left"]
        return ", ".join(part for part in parts if part)


class PlainView:
    """One line per event that matters, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: dict[str, Progress] = {}
        self._printed: dict[str, float] = {}

    def skipped(self, stage: Stage) -> None:
        self._line(stage, "finished before")

    def started(self, stage: Stage, resumed: bool) -> None:
        self._progress[stage.name] = Progress()
        self._printed[stage.name] = time.monotonic()
        self._line(stage, "goes on" if resumed else "starts")

    def progress(self, stage: Stage, event: dict[str, Any]) -> None:
        progress = self._progress[stage.name]
        progress.add(event)
        now = time.monotonic()
        if now - self._printed[stage.name] >= SECONDS_BETWEEN_LINES or event["done"] == event["total"]:
            self._printed[stage.name] = now
            self._line(stage, progress.line())

    def finished(self, stage: Stage, seconds: float, split: dict[str, float]) -> None:
        self._line(stage, f"finished in {duration(seconds)}{_split(split)}")

    def failed(self, stage: Stage, how: str) -> None:
        self._line(stage, how)

    def refresh(self) -> None:
        pass

    def _line(self, stage: Stage, text: str) -> None:
        self._console.print(f"{stage.name}: {text}", markup=False, highlight=False, soft_wrap=True)


class LiveView:
    """A table of all stages that is redrawn in place. Use as a context manager."""

    def __init__(self, console: Console, stages: Sequence[Stage]) -> None:
        self._states = {stage.name: "waits" for stage in stages}
        self._progress: dict[str, Progress] = {}
        self._seconds: dict[str, float] = {}
        self._started = time.monotonic()
        self._refreshed = 0.0
        self._console = console
        self._current = 0
        # No thread of rich's own: the launcher forks.
        self._live = Live(console=console, auto_refresh=False, get_renderable=self._render)

    def __enter__(self) -> LiveView:
        self._live.start(refresh=True)
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.refresh()
        self._live.stop()

    def skipped(self, stage: Stage) -> None:
        self._set(stage, "finished before")

    def started(self, stage: Stage, resumed: bool) -> None:
        self._progress[stage.name] = Progress()
        self._set(stage, "runs (resumed)" if resumed else "runs")

    def progress(self, stage: Stage, event: dict[str, Any]) -> None:
        self._progress[stage.name].add(event)

    def finished(self, stage: Stage, seconds: float, split: dict[str, float]) -> None:
        self._seconds[stage.name] = seconds
        self._set(stage, "finished")

    def failed(self, stage: Stage, how: str) -> None:
        self._seconds[stage.name] = time.time() - self._progress[stage.name].started
        self._set(stage, how)

    def refresh(self) -> None:
        now = time.monotonic()
        if now - self._refreshed >= 1 / REFRESHES_PER_SECOND:
            self._refreshed = now
            self._live.refresh()

    def _set(self, stage: Stage, state: str) -> None:
        self._states[stage.name] = state
        self._current = list(self._states).index(stage.name)
        self._live.refresh()

    def _render(self) -> RenderableType:
        table = Table("stage", "state", "progress", "values", "left", "time", box=None, pad_edge=False)
        for name, state in self._window():
            runs = state.startswith("runs")
            progress = self._progress.get(name, Progress())
            left = progress.seconds_left() if runs else None
            seconds = time.time() - progress.started if runs else self._seconds.get(name)
            table.add_row(
                name,
                state,
                progress.count(),
                progress.values(),
                "" if left is None else duration(left),
                "" if seconds is None else duration(seconds),
                style="bold" if runs else STYLES.get(state, ""),
            )
        return Group(table, f"elapsed {duration(time.monotonic() - self._started)}")

    def _window(self) -> list[tuple[str, str]]:
        """As many stages as the terminal has lines for, around the current one."""
        lines = max(1, self._console.height - LINES_BESIDE_STAGES)
        first = max(0, min(self._current - lines // 2, len(self._states) - lines))
        return list(self._states.items())[first : first + lines]


def _split(seconds: dict[str, float]) -> str:
    """{"start_up": 14.2, "work": 46.0, "saving": 0.1} -> " (start-up 0:14, work 0:46)"; nothing if it is all one."""
    parts = [f"{name.replace('_', '-')} {duration(part)}" for name, part in seconds.items() if round(part)]
    return f" ({', '.join(parts)})" if len(parts) > 1 else ""


def print_results(console: Console, config: Config) -> None:
    """The table of iterations, and where things are."""
    run = RunDir(config.run_dir)
    metrics = read_json(run.metrics)
    entries = metrics["iterations"]
    opponents = [name for name in OPPONENTS if any(name in entry.get("win_rate", {}) for entry in entries)]
    # Nobody is to take the offline measure for a judge.
    judge = "PMI proxy" if metrics.get("judge", {}).get("proxy") else "win rate"
    headers = ["iter-\nation", "bound\n(nats)", "gain\nover 0", "response\ntokens"]
    # Narrow headers, and no lines between columns: it fits 80 characters with both baselines.
    headers += [f"{judge}\nvs {name}" for name in opponents]
    columns = [Column(header, no_wrap=True) for header in headers]
    table = Table(*columns, title=config.name, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for entry in entries:
        bound, tokens, gain = entry["mi_bound"], entry["response_tokens"], entry.get("mi_bound_gain")
        rates = [entry.get("win_rate", {}).get(name, {}) for name in opponents]
        table.add_row(
            str(entry["iteration"]),
            _mean_sem(bound, 3),
            _mean_sem(gain, 3) if gain else "",
            _mean_sem(tokens, 1),
            *(_mean_sem(rate, 2) if "mean" in rate else "" for rate in rates),
        )
    n, largest = entries[-1]["mi_bound"]["n"], entries[-1]["mi_bound"]["max"]
    table.caption = f"± one standard error over {n} queries; the bound is at most {largest:.3f}"
    console.print(table)
    places = {
        "results": run.metrics,
        f"model of iteration {config.iterations}": run.hf(config.iterations),
        "logs": run.log("x").parent,
        "report": (run.report / "index.html").resolve().as_uri(),
    }
    for name, place in places.items():
        console.print(f"{name}: {place}", markup=False, highlight=False, soft_wrap=True)


def _mean_sem(values: dict[str, float], digits: int) -> str:
    return f"{values['mean']:.{digits}f} ± {values['sem']:.{digits}f}"
