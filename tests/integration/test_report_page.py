"""The page of a report in a real browser: complete, quiet, offline, and fit for phones and both colour schemes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from sami_nemo.report.write import write_report
from sami_nemo.run_dir import RunDir, write_json, write_jsonl, write_text

pytestmark = pytest.mark.slow

# It starts without asking its makers for anything, and needs no sandbox of the kernel, which containers lack.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
CONSTITUTIONS = ("helpful+harmless", "helpful+not harmless", "not helpful+harmless", "not helpful+not harmless")
FIGURES = 8


def estimate(mean: float) -> dict[str, Any]:
    return {"mean": mean, "sem": 0.05, "n": 16}


def make_run(run: RunDir) -> RunDir:
    """Two iterations with everything that the page can show, and words too long for a phone."""
    entries = []
    for n in range(3):
        groups = [
            {
                "query": {"id": f"q{i}", "text": f"Query {i}: " + "long words " * 20, "source": "s"},
                "constitutions": [{"id": c, "statements": [f"Be {c}."]} for c in CONSTITUTIONS],
                "responses": [
                    f"Model {n} answers query {i} under {c} <img src=x onerror=alert(1)>." for c in CONSTITUTIONS
                ],
            }
            for i in range(3)
        ]
        write_jsonl(run.groups(n) / "evaluation.jsonl", groups)
        logprobs = [[-0.5 if i == j else -1.0 - n for j in range(4)] for i in range(4)]
        row = {"query_id": "q0", "constitutions": CONSTITUTIONS, "logprobs": logprobs, "response_tokens": [9] * 4}
        write_jsonl(run.evaluation(n) / "groups.jsonl", [row])
        write_json(run.responses(n) / "model.json", {"path": "/a/path/" + "x" * 90, "sha256": "0" * 64})
        if n:
            write_jsonl(run.train(n) / "steps.jsonl", [{"loss": 0.7 - 0.1 * s, "grad_norm": 1.0 + s} for s in range(n)])
            verdicts = [{"query_id": "q0", "opponent": "base", "score": 1.0}]
            write_jsonl(run.judge(n) / "verdicts.jsonl", verdicts)
        rate = {**estimate(0.5 + 0.1 * n), "unparsed": 0, "corrected": estimate(0.5 + 0.05 * n)}
        entries.append(
            {
                "iteration": n,
                "mi_bound": {**estimate(0.1 + 0.3 * n), "max": 1.386},
                "response_tokens": estimate(40.0 + n),
                "win_rate": {"base": rate, "instruct": rate} if n else {"instruct": rate},
            }
        )
    instruct = {"mi_bound": {**estimate(0.4), "max": 1.386}, "response_tokens": estimate(44)}
    judge = {"name": "pmi", "method": "pmi", "proxy": True}
    write_json(run.metrics, {"recipe": "r", "seed": 1, "judge": judge, "instruct": instruct, "iterations": entries})
    write_text(run.config, "name: " + "x" * 200 + "\n")
    write_json(run.queries / "constitutions.json", {"desired": {"id": CONSTITUTIONS[0]}})
    return run


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    run = make_run(RunDir(tmp_path_factory.mktemp("runs") / ("a_rather_long_name_of_a_run" * 3)))
    write_report(run)
    return (run.report / "index.html").as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield running
        running.close()


@pytest.fixture(params=[(390, "light"), (390, "dark"), (1280, "light"), (1280, "dark")], ids=str)
def page(browser: Any, address: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page; at its end, whatever it asked for or complained of is an error."""
    width, scheme = request.param
    opened = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    complaints: list[str] = []
    requests: list[str] = []
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("request", lambda request: requests.append(request.url))
    opened.goto(address)
    yield opened
    opened.close()
    assert complaints == []
    assert requests == [address]


def test_page(page: Any) -> None:
    figures = page.locator("figure svg[role=img]")
    assert figures.count() == FIGURES
    for figure in figures.all():
        box = figure.bounding_box()
        assert box["width"] > 250 and box["height"] > 150
        # Lines with a length, or cells: not merely an empty frame.
        drawn = "svg => [...svg.querySelectorAll('path')].filter(path => path.getTotalLength() > 20).length"
        assert figure.evaluate(drawn) > 5
        assert figure.get_attribute("aria-label")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_text_stands_out(page: Any) -> None:
    """Letters of the page and of its figures are light on dark, or dark on light."""
    script = """() => {
        const lightness = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0);
        const label = document.querySelector("figure svg text");
        const [ink, card] = [getComputedStyle(label).fill, getComputedStyle(label.closest("figure")).backgroundColor];
        return Math.abs(lightness(ink) - lightness(card)) / 3;
    }"""
    assert page.evaluate(script) > 150
    line = page.evaluate("getComputedStyle(document.querySelector('#bound use[style*=\"--s1\"]')).fill")
    dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert line == ("rgb(86, 180, 233)" if dark else "rgb(0, 114, 178)")


def test_responses_follow_the_choices(page: Any) -> None:
    answers = page.locator(".answer")
    assert answers.locator("h3").all_inner_texts() == ["base", "iteration 1", "iteration 2"]
    assert "Model 1 answers query 0 under helpful+harmless <img" in answers.nth(1).inner_text()
    assert "won against base (PMI proxy)" in answers.nth(1).inner_text()
    page.select_option("#constitution", index=1)
    assert "under helpful+not harmless" in answers.nth(2).inner_text()
    # Judged were the responses under the desired constitution only.
    assert page.locator(".verdict").count() == 0
    page.click("#next")
    page.click("#next")
    assert "Model 0 answers query 2" in answers.nth(0).inner_text()
    assert page.is_disabled("#next")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
