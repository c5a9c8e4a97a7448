"""The page of a report or a comparison: what stands on it, and how that becomes one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from sami_nemo.progress import duration
from sami_nemo.report.figures import FAINT, GRID, INK, SERIES, Chart, charts_of, svg
from sami_nemo.report.run_data import Estimate, Iteration, Results, RunData, WinRate, opponents_of

TEMPLATE = "page.html.j2"
CSS_VARIABLES = {INK: "ink", FAINT: "faint", GRID: "grid", **{c: f"s{i}" for i, c in enumerate(SERIES, start=1)}}
# Responses are most of the page's size; at the paper's lengths these are a few megabytes.
MOST_BROWSED = 100
# Of a stage's wall time.
PHASES = ("start_up", "work", "saving")
ABSENT = "–"
# Of a reply, in a cell.
SHOWN_CHARACTERS = 300


@dataclass(frozen=True)
class Tile:
    """A headline number."""

    label: str
    value: str
    note: str


@dataclass(frozen=True)
class Table:
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Page:
    title: str
    kind: str
    facts: Mapping[str, str]
    tiles: Sequence[Tile]
    charts: Sequence[Chart]
    results: Table
    files: bool = False
    """Whether figures and their data are also files beside the page."""
    browser: Mapping[str, Any] | None = None
    """Responses, for the script on the page."""
    tables: Sequence[Table] = ()
    config: str = ""


def render(page: Page) -> str:
    """The HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        # By file name it would be off: the template's does not end in .html.
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"inline_svg": inline_svg, "script_data": script_data, "sha256": sha256}
    return environment.get_template(TEMPLATE).render(page=page)


def inline_svg(chart: Chart) -> Markup:
    """An element for a page: colours are CSS variables, ids begin with the chart's name, fonts are the page's."""
    text = svg(chart)
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # It would hold for the whole page, which has its own.
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{chart.name}-", text)
    text = re.sub(r"font-family: [^;\"]*", "font-family: inherit", text)
    # The page says how large.
    text = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", text, count=1)
    for colour, variable in CSS_VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    label = Markup('role="img" aria-label="{}"').format(chart.description)
    return Markup(text.replace("<svg", f"<svg {label}", 1))


def script_data(value: Any) -> Markup:
    """JSON inside a script element, which nothing in it can end."""
    return Markup(json.dumps(value, ensure_ascii=False).replace("<", "\\u003c"))


def sha256(script: str) -> str:
    """What the page's content security policy calls its only script."""
    return base64.b64encode(hashlib.sha256(str(script).encode()).digest()).decode()


def report_page(run: RunData) -> Page:
    """The page of one run."""
    results = run.results
    facts = {"recipe": results.recipe, "seed": str(results.seed)}
    if results.iterations:
        facts["iterations"] = f"{results.iterations[-1].number} finished"
    if results.judge:
        facts["win rates"] = results.judge.label
    if run.stages:
        facts["computed in"] = duration(sum(stage.seconds for stage in run.stages))
    tables = [
        *([unread_table(run)] if run.unread else []),
        filters_table(run),
        stages_table(run),
        versions_table(run),
        models_table(run),
    ]
    return Page(
        title=results.name,
        kind="SAMI run",
        facts=facts,
        tiles=tiles(results),
        charts=charts_of(run),
        results=results_table(results),
        files=True,
        browser=browser(run),
        tables=[table for table in tables if table.rows],
        config=run.config,
    )


def plus_minus(estimate: Estimate | None, digits: int) -> str:
    """0.412 ± 0.029, which no line break tears apart."""
    return ABSENT if estimate is None else f"{estimate.mean:.{digits}f}\u00a0±\u00a0{estimate.sem:.{digits}f}"


def tiles(results: Results) -> list[Tile]:
    """The last iteration in a few numbers."""
    if not results.iterations:
        return []
    first, last = results.iterations[0], results.iterations[-1]
    note = f"of at most {last.total.maximum:.3f}"
    if last.gain:
        note = f"{first.total.bound.mean:.3f} at iteration {first.number}, gain {plus_minus(last.gain, 3)}; {note}"
    shown = [Tile(f"Bound, iteration {last.number} (nats)", plus_minus(last.total.bound, 3), note)]
    proxy = " (PMI proxy)" if results.judge and results.judge.proxy else ""
    for opponent, rate in sorted(last.win_rates.items()):
        if rate.raw:
            kind, best = ("length-corrected", rate.corrected) if rate.corrected else ("uncorrected", rate.raw)
            other = f"{plus_minus(rate.raw, 2)} uncorrected, " if rate.corrected else ""
            label = f"Win rate against {opponent}{proxy}"
            shown.append(Tile(label, plus_minus(best, 2), f"{kind}; {other}n\u00a0=\u00a0{rate.raw.n}"))
    if last.total.tokens:
        before = f"{first.total.tokens.mean:.1f} at iteration {first.number}" if first.total.tokens else ""
        shown.append(Tile("Mean response (tokens)", plus_minus(last.total.tokens, 1), before if last != first else ""))
    return shown


def results_header(opponents: Iterable[str], proxy: bool) -> list[str]:
    """Columns of `results_row`."""
    suffix = " (PMI proxy)" if proxy else ""
    rates = [f"win rate against {o}, {kind}{suffix}" for o in opponents for kind in ("corrected", "uncorrected")]
    return ["bound (nats)", "of at most", "gain over 0", "n", "response tokens", *rates]


def results_row(iteration: Iteration, opponents: Iterable[str]) -> list[str]:
    """The numbers of one iteration."""
    total = iteration.total
    none = WinRate(raw=None, corrected=None, unparsed=0)
    rates = [iteration.win_rates.get(opponent, none) for opponent in opponents]
    return [
        plus_minus(total.bound, 3),
        f"{total.maximum:.3f}",
        plus_minus(iteration.gain, 3),
        str(total.bound.n),
        plus_minus(total.tokens, 1),
        *(plus_minus(estimate, 3) for rate in rates for estimate in (rate.corrected, rate.raw)),
    ]


def results_table(results: Results) -> Table:
    opponents = opponents_of([results])
    rows = [[str(iteration.number), *results_row(iteration, opponents)] for iteration in results.iterations]
    if baseline := results.instruct:
        cells = [plus_minus(baseline.bound, 3), f"{baseline.maximum:.3f}", ABSENT, str(baseline.bound.n)]
        rows.append(["instruct", *cells, plus_minus(baseline.tokens, 1), *[ABSENT] * (2 * len(opponents))])
    header = ["iteration", *results_header(opponents, bool(results.judge and results.judge.proxy))]
    rates = [rate for iteration in results.iterations for rate in iteration.win_rates.values()]
    unread = sum(rate.unparsed for rate in rates)
    refused = sum((Counter(rate.refused) for rate in rates), Counter())
    note = "Means ± standard errors over held-out queries; the gain is over queries that iteration 0 answered, too."
    if unread:
        note += f" {unread} replies of the judge could not be read and are left out."
    if refused:
        counts = ", ".join(f"{reason} {count}" for reason, count in refused.most_common())
        note += f" {refused.total()} comparisons without a verdict are left out, by what the judge's endpoint said: {counts}."
    return Table("Results by iteration", header, rows, note)


def unread_table(run: RunData) -> Table:
    """What replies without a verdict look like."""
    rows = [[unread.model, unread.opponent, end_of(unread.reply)] for unread in run.unread]
    note = f"The first {len(rows)}, from their end. All replies are in the run's judge/verdicts.jsonl files."
    return Table("Replies of the judge without a verdict", ["responses of", "against", "reply"], rows, note)


def end_of(reply: str) -> str:
    """Where a verdict would stand."""
    text = " ".join(reply.split())
    return text if len(text) <= SHOWN_CHARACTERS else f"… {text[-SHOWN_CHARACTERS:]}"


def filters_table(run: RunData) -> Table:
    """What the filters dropped, by reason."""
    parts = [(model, part, counts) for model, found in run.filters.items() for part, counts in found.items()]
    reasons = list(dict.fromkeys(reason for *_, counts in parts for reason in counts["dropped_groups"]))
    rows = [
        [
            model,
            part,
            *(str(counts[key]) for key in ("queries", "too_long", "groups", "kept")),
            *(str(counts["dropped_groups"].get(reason, 0)) for reason in reasons),
            str(counts["human_tails_cut"]),
        ]
        for model, part, counts in parts
    ]
    dropped = [f"dropped: {reason.replace('_', ' ')}" for reason in reasons]
    header = ["answered by", "queries for", "queries", "too long", "groups", "kept", *dropped, "tails cut"]
    return Table("Filters", header, rows, "Contrast groups, one per query, by why they were dropped.")


def stages_table(run: RunData) -> Table:
    rows = []
    for stage in run.stages:
        split = [duration(stage.phases[part]) if part in stage.phases else ABSENT for part in PHASES]
        speed = ABSENT if stage.tokens_per_s is None else f"{stage.tokens_per_s:.1f}"
        rows.append([stage.name, duration(stage.seconds), *split, speed, stage.finished])
    return Table("Stages", ["stage", "wall time", "start-up", "work", "saving", "tokens/s", "finished"], rows)


def versions_table(run: RunData) -> Table:
    """Packages of all stages; those of sampling come from an environment of their own."""
    users: dict[tuple[str, str], list[str]] = {}
    for stage in run.stages:
        for package in stage.versions.items():
            kinds = users.setdefault(package, [])
            if (kind := stage.name.split("_")[0]) not in kinds:
                kinds.append(kind)
    rows = [[package, version, ", ".join(kinds)] for (package, version), kinds in sorted(users.items())]
    return Table("Versions", ["package", "version", "stages"], rows)


def models_table(run: RunData) -> Table:
    rows = [[name, found["sha256"], found["path"]] for name, found in run.models.items()]
    return Table("Models", ["answered by", "SHA-256", "path"], rows)


def browser(run: RunData) -> dict[str, Any] | None:
    """Queries, constitutions and what each model answered."""
    if not run.answers:
        return None
    queries, constitutions = list(run.queries)[:MOST_BROWSED], list(run.constitutions)
    return {
        "queries": [run.queries[query] for query in queries],
        "queries_in_all": len(run.queries),
        "constitutions": [{"id": c, "statements": run.constitutions[c]} for c in constitutions],
        "desired": constitutions.index(run.desired) if run.desired in constitutions else None,
        "judge": run.results.judge.label if run.results.judge else "judge",
        "models": [
            {
                "name": answers.model,
                "texts": [[answers.texts.get((query, c)) for c in constitutions] for query in queries],
                "verdicts": [answers.verdicts.get(query, {}) for query in queries],
            }
            for answers in run.answers
        ],
    }
