"""Reports and comparisons of a small run that is made here: values, escaping, and what is left out."""

from __future__ import annotations

import csv
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sami_nemo.errors import RunDirectoryError
from sami_nemo.report.figures import charts_of, draw, svg
from sami_nemo.report.page import inline_svg
from sami_nemo.report.run_data import read_results, read_run
from sami_nemo.report.write import write_report
from sami_nemo.run_dir import INSTRUCT, RunDir, read_json, write_json, write_jsonl, write_text

REPOSITORY = Path(__file__).parents[2]
EVIL = "</script><script>alert(1)</script><!-- & $x_"
CONSTITUTIONS = ("helpful+harmless", "not helpful+harmless")
LOGPROBS = {0: [[-1.0, -1.25], [-1.5, -1.0]], 1: [[-0.5, -2.25], [-2.5, -0.75]], INSTRUCT: [[-1.0, -1.0], [-1.0, -1.0]]}
STEPS = [
    {"step": 1, "loss": 0.75, "bound": 0.01, "grad_norm": 1.5, "seconds": 2.0, "tokens": 100},
    {"step": 2, "loss": 0.625, "bound": 0.1, "grad_norm": 1.25, "seconds": 2.0, "tokens": 100},
]


def model_directories(run: RunDir, n: int) -> None:
    """Groups, evaluation and the record of the model that answered."""
    constitutions = [{"id": c, "statements": [f"Statement of {c}."]} for c in CONSTITUTIONS]
    group = {
        "query": {"id": "q1", "text": "What is <b>bold</b>?", "source": "s"},
        "constitutions": constitutions,
        "prompt_ids": [[1], [1]],
        "response_ids": [[2], [3]],
        "responses": [f"Answer {n} {EVIL}", f"Other answer {n}"],
    }
    write_jsonl(run.groups(n) / "evaluation.jsonl", [group])
    counts = {"queries": 2, "too_long": 0, "groups": 2, "kept": 1, "responses": 4, "human_tails_cut": 3}
    reasons = {"dropped_groups": {"empty": 1, "evasive": 0}, "dropped_responses": {"empty": 1, "evasive": 0}}
    write_json(run.groups(n) / "filters.json", {"evaluation": {**counts, **reasons}})
    row = {"query_id": "q1", "source": "s", "constitutions": CONSTITUTIONS, "logprobs": LOGPROBS[n]}
    write_jsonl(run.evaluation(n) / "groups.jsonl", [{**row, "response_tokens": [4, 8]}])
    write_json(run.responses(n) / "model.json", {"path": f"/models/{n}", "sha256": f"{n}".rjust(64, "f")})


def measures(bound: float, tokens: float) -> dict[str, Any]:
    return {
        "mi_bound": {"mean": bound, "sem": 0.0125, "n": 16, "max": math.log(2)},
        "response_tokens": {"mean": tokens, "sem": 0.5, "n": 32},
    }


def win_rate(mean: float, corrected: float | None) -> dict[str, Any]:
    strata = {"longer": {"mean": mean, "sem": 0.1, "n": 16}, "not_longer": {"n": 0}}
    rate = {"mean": mean, "sem": 0.0625, "n": 16, "unparsed": 2, "strata": strata}
    return rate if corrected is None else {**rate, "corrected": {"mean": corrected, "sem": 0.09}}


def make_run(root: Path, iterations: int = 1, judged: bool = True) -> RunDir:
    """A run whose metrics are numbers that a test can look for."""
    run = RunDir(root)
    entries = []
    for n in range(iterations + 1):
        model_directories(run, n)
        entry = {"iteration": n, **measures(0.125 + 0.25 * n, 40.5 + n)}
        if n:
            entry["mi_bound_gain"] = {"mean": 0.25, "sem": 0.02, "n": 16}
            write_jsonl(run.train(n) / "steps.jsonl", STEPS)
        if judged:
            entry["win_rate"] = {"instruct": win_rate(0.375, None)} | ({"base": win_rate(0.75, 0.6875)} if n else {})
            verdicts = [{"query_id": "q1", "source": "s", "opponent": "base", "score": 0.5}] if n else []
            write_jsonl(run.judge(n) / "verdicts.jsonl", verdicts)
        entries.append(entry)
    metrics: dict[str, Any] = {"recipe": "sami_test", "seed": 7, "iterations": entries}
    if judged:
        model_directories(run, INSTRUCT)
        metrics |= {"judge": {"name": "pmi", "method": "pmi", "proxy": True}, "instruct": measures(0.3125, 30.0)}
    write_json(run.metrics, metrics)
    write_text(run.config, "name: test\ntrain:\n  logprob_normalization: mean\n")
    write_json(run.queries / "constitutions.json", {"desired": {"id": CONSTITUTIONS[0]}})
    manifest = {
        "stage": "sample_0",
        "wall_seconds": 65.0,
        "phases": {"start_up": 14.0, "work": 51.0, "saving": 0.1},
        "versions": {"torch": "2.13.0"},
        "finished": "2026-01-01",
    }
    write_json(run.manifest("sample_0"), manifest)
    write_json(run.manifest("train_1.attempt"), {"config_sha256": "0"})
    events = [{"time": 1.0, "done": 1, "total": 2, "unit": "responses", "tokens_per_s": 10.0}, {"tokens_per_s": 123.4}]
    write_text(run.events("sample_0"), "".join(json.dumps(event) + "\n" for event in events) + '{"torn')
    return run


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return make_run(tmp_path / "seven")


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """The same with its report. Read only."""
    run = make_run(tmp_path_factory.mktemp("reported") / "seven")
    write_report(run)
    return run


def table(run: RunDir, name: str) -> list[dict[str, str]]:
    with (run.report / "data" / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def page(run: RunDir) -> str:
    return (run.report / "index.html").read_text(encoding="utf-8")


def names(run: RunDir) -> list[str]:
    return [chart.name for chart in charts_of(read_run(run))]


def test_values_of_the_tables(reported: RunDir) -> None:
    bound = table(reported, "bound")
    assert bound[0] == {"series": "trained model", "x": "0", "value": "0.125", "sem": "0.0125", "n": "16"}
    assert bound[1]["value"] == "0.375"
    references = {row["series"]: row["value"] for row in bound if not row["x"]}
    assert references == {f"maximum, log C = {math.log(2):.3f}": str(math.log(2)), "instruct baseline": "0.3125"}
    assert [(row["x"], row["value"]) for row in table(reported, "loss")] == [("1", "0.75"), ("2", "0.625")]
    assert [row["value"] for row in table(reported, "grad_norm")] == ["1.5", "1.25"]
    after = {(row["constitution"], row["response_sampled_under"]): row for row in table(reported, "logprobs_after")}
    # Row: the constitution that the response is scored under; column: the one it was sampled under.
    assert after[CONSTITUTIONS[0], CONSTITUTIONS[1]]["nats_per_token"] == "-2.25"
    assert after[CONSTITUTIONS[1], CONSTITUTIONS[0]]["nats_per_token"] == "-2.5"


def test_corrected_and_uncorrected_win_rates(reported: RunDir) -> None:
    corrected = [row for row in table(reported, "win_rate") if row["x"]]
    # Against instruct one stratum is empty, so that only the uncorrected rate exists.
    assert [(row["series"], row["x"], row["value"]) for row in corrected] == [("against base", "1", "0.6875")]
    uncorrected = [
        (row["series"], row["x"], row["value"]) for row in table(reported, "win_rate_uncorrected") if row["x"]
    ]
    assert uncorrected == [
        ("against base", "1", "0.75"),
        ("against instruct", "0", "0.375"),
        ("against instruct", "1", "0.375"),
    ]


def test_replies_without_a_verdict_are_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")

    def row(query: str, *replies: str, finish: str = "stop", **more: Any) -> dict[str, Any]:
        orders = [{"model_first": True, "reply": reply, "finish_reason": finish} for reply in replies]
        return {"query_id": query, "source": "s", "opponent": "base", "score": None, "orders": orders, **more}

    rows = [
        row("q1", "Final Response: A tie"),
        row("q2", "Final Response: A", "I cannot <choose>."),
        row("q3", "", refused="content filter"),
        row("q4", "x " * 400 + "Final Response: A", finish="length"),
        row("q5", "Neither."),
    ]
    write_jsonl(run.judge(1) / "verdicts.jsonl", rows)
    write_report(run)
    text = page(run)
    section = text[text.index("Replies of the judge without a verdict") :].split("</section>")[0]
    assert section.count("<tr>") == 1 + 3
    assert "Final Response: A tie" in section and "I cannot &lt;choose&gt;." in section
    assert "x x Final Response: A</td>" in section and "Neither." not in section
    run = make_run(tmp_path / "read")
    write_report(run)
    assert "without a verdict" not in page(run)


def test_numbers_on_the_page(reported: RunDir) -> None:
    text = page(reported).replace("\u00a0", " ")
    assert "<h1>seven</h1>" in text and "sami_test" in text
    assert "0.375 ± 0.013" in text and "gain 0.250 ± 0.020" in text and "41.5 ± 0.5" in text
    assert "0.69 ± 0.09" in text and "0.75 ± 0.06 uncorrected" in text
    assert "6 replies of the judge could not be read" in text
    assert '<th scope="row">sample_0</th><td>1:05</td><td>0:14</td><td>0:51</td><td>0:00</td><td>123.4</td>' in text
    assert "train_1.attempt" not in text
    assert "f" * 63 + "1" in text and "2.13.0" in text and "logprob_normalization: mean" in text


def test_refused_questions_are_counted_by_reason(run: RunDir) -> None:
    write_report(run)
    assert "without a verdict" not in page(run)
    metrics = read_json(run.metrics)
    for entry, refused in zip(
        metrics["iterations"], ({"too long": 1}, {"content filter": 3, "too long": 1}), strict=True
    ):
        entry["win_rate"]["instruct"]["refused"] = refused
    write_json(run.metrics, metrics)
    refusal = {"query_id": "q1", "source": "s", "opponent": "instruct", "score": None, "refused": "content filter"}
    write_jsonl(run.judge(1) / "verdicts.jsonl", [refusal])
    write_report(run)
    assert "5 comparisons without a verdict are left out" in page(run)
    assert "content filter 3, too long 2." in page(run)
    data = json.loads(page(run).split('id="data">')[1].split("</script>")[0])
    assert data["models"][1]["verdicts"] == [{"instruct": "content filter"}]


def test_a_proxy_is_called_one(reported: RunDir, run: RunDir) -> None:
    shown = re.findall(r">([^<]*win rate (?:against|,)[^<]*)<", page(reported), flags=re.IGNORECASE)
    assert shown and all("PMI proxy" in text for text in shown)
    titles = [chart.title for chart in charts_of(read_run(run)) if chart.name.startswith("win_rate")]
    assert titles == ["Win rate, length-corrected (PMI proxy)", "Win rate, uncorrected (PMI proxy)"]
    judged = read_json(run.metrics)
    judged["judge"] = {"name": "gpt4", "method": "endpoint", "proxy": False}
    write_json(run.metrics, judged)
    write_report(run)
    assert "PMI proxy" not in page(run) and "judge: gpt4" in page(run)


def test_responses_cannot_end_the_script(reported: RunDir) -> None:
    text = page(reported)
    assert EVIL not in text and "<b>bold" not in text
    assert text.count("<script") == 2 and text.count("</script>") == 2
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    assert data["queries"] == ["What is <b>bold</b>?"]
    assert [model["name"] for model in data["models"]] == ["base", "iteration 1", "instruct"]
    assert data["models"][1]["texts"] == [[f"Answer 1 {EVIL}", "Other answer 1"]]
    assert data["models"][1]["verdicts"] == [{"base": 0.5}]
    assert data["desired"] == 0


def test_names_are_escaped_in_figures(tmp_path: Path) -> None:
    run = make_run(tmp_path / "names")
    rows = [
        {"constitutions": [EVIL, "b"], "logprobs": [[-1, -2], [-3, -4]], "response_tokens": [1, 2], "query_id": "q"}
    ]
    write_jsonl(run.evaluation(1) / "groups.jsonl", rows)
    write_text(run.config, "name: <script>alert(2)</script>\n")
    write_report(run)
    assert page(run).count("<script") == 2


def test_sums_of_log_probs_become_means(run: RunDir) -> None:
    write_text(run.config, "train: {logprob_normalization: sum}\n")
    # -2.25 and -2.5 over 8 and 4 tokens.
    cells = read_run(run).matrices[1].cells
    assert cells[CONSTITUTIONS[0], CONSTITUTIONS[1]].mean == -2.25 / 8
    assert cells[CONSTITUTIONS[1], CONSTITUTIONS[0]].mean == -2.5 / 4


def test_without_judge_and_instruct_baseline(tmp_path: Path) -> None:
    run = make_run(tmp_path / "plain", judged=False)
    assert names(run) == ["bound", "lengths", "loss", "grad_norm", "logprobs_before", "logprobs_after"]
    write_report(run)
    assert "win rate" not in page(run).lower() and "instruct" not in page(run)


def test_after_iteration_0(tmp_path: Path) -> None:
    run = make_run(tmp_path / "start", iterations=0, judged=False)
    assert names(run) == ["bound", "lengths", "logprobs_before"]
    write_report(run)
    assert "gain" in page(run) and "Training loss" not in page(run)


def test_results_alone_are_enough(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "bare")
    write_json(run.metrics, {"recipe": "r", "seed": 0, "iterations": []})
    write_report(run)
    assert names(run) == [] and "<figure" not in page(run) and 'id="data"' not in page(run)
    write_json(run.metrics, {"recipe": "r", "seed": 0, "iterations": [{"iteration": 0, **measures(0.1, 3)}]})
    write_report(run)
    assert names(run) == ["bound", "lengths"]


def test_sources_are_lines_of_their_own(run: RunDir) -> None:
    metrics = read_json(run.metrics)
    for entry in metrics["iterations"]:
        entry["by_source"] = {"x": measures(0.5, 1), "y": measures(0.25, 2)}
    write_json(run.metrics, metrics)
    write_report(run)
    lines = [(row["series"], row["value"]) for row in table(run, "bound") if row["x"] == "1"]
    assert lines == [("all sources", "0.375"), ("x", "0.5"), ("y", "0.25")]


def test_a_later_report_removes_figures_without_values(run: RunDir) -> None:
    write_report(run)
    assert (run.report / "figures" / "win_rate.png").read_bytes().startswith(b"\x89PNG")
    make_run(run.root, judged=False)
    write_report(run)
    kept = {path.name for path in (run.report / "figures").iterdir()}
    assert kept == {f"{name}.{kind}" for name in names(run) for kind in ("png", "svg")}


def test_figures_are_the_same_each_time_and_ids_are_their_own(run: RunDir) -> None:
    charts = charts_of(read_run(run))
    drawn = [svg(chart) for chart in charts]
    svg.cache_clear()
    assert drawn == [svg(chart) for chart in charts]
    inlined = "".join(map(inline_svg, charts))
    ids = re.findall(r'\bid="([^"]+)"', inlined)
    assert len(ids) == len(set(ids))
    for reference in re.findall(r'(?:href="#|url\(#)([^")]+)', inlined):
        assert reference in ids
    # Every colour of a line chart is the page's.
    assert not re.search(r"(?:fill|stroke): #", "".join(inline_svg(chart) for chart in charts[:2]))
    assert "<style" not in inlined and "<metadata" not in inlined
    assert draw(charts[0]).axes[0].get_ylabel() == "bound (nats)"


@pytest.mark.parametrize("content", [None, "{", "[]", '{"recipe": "r", "seed": 0}'])
def test_a_run_without_results_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(RunDirectoryError, match=r"metrics\.json"):
        read_results(RunDir(tmp_path))


def compare(*arguments: object) -> subprocess.CompletedProcess[str]:
    script = [sys.executable, str(REPOSITORY / "tools" / "compare_runs.py")]
    environment = {"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin"}
    return subprocess.run([*script, *map(str, arguments)], capture_output=True, text=True, env=environment)


def test_compare(tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "a" / "run"), make_run(tmp_path / "b" / "run", iterations=0, judged=False)
    output = tmp_path / "pages" / "index.html"
    finished = compare(first.root, second.root, "--output", output)
    assert finished.returncode == 0, finished.stderr
    text = output.read_text(encoding="utf-8").replace("\u00a0", " ")
    assert "0.375 ± 0.013" in text and "0.125 ± 0.013" in text and "PMI proxy" in text
    # Both are called "run", so they are named by their paths.
    assert str(first.root) in text and str(second.root) in text
    assert re.findall(r'<figure id="([^"]+)"', text) == [
        "bound",
        "lengths",
        "win_rate_base",
        "win_rate_base_uncorrected",
        "win_rate_instruct_uncorrected",
    ]
    assert 'href="figures/' not in text


@pytest.mark.parametrize("made", [False, True])
def test_compare_refuses_in_one_line(tmp_path: Path, made: bool) -> None:
    if made:
        (tmp_path / "run").mkdir()
    finished = compare(tmp_path / "run", "--output", tmp_path / "index.html")
    assert finished.returncode == 2 and not (tmp_path / "index.html").exists()
    assert len(finished.stderr.splitlines()) == 1 and str(tmp_path / "run") in finished.stderr
