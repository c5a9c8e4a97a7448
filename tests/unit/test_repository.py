"""What others meet first: continuous integration, issue forms, the citation, links between documents."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import sami_nemo

ROOT = Path(__file__).parents[2]
FORMS = ROOT / ".github" / "ISSUE_TEMPLATE"
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"""\]\(([^)\s]+)\)|\b(?:src|srcset|href)="([^"]+)\"""")


def read(path: Path) -> dict[Any, Any]:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def links(text: str) -> list[str]:
    """Relative links outside code blocks, without their anchors."""
    prose = re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)
    targets = (match[1] or match[2] for match in LINK.finditer(prose))
    return [target.partition("#")[0] for target in targets if not re.match(r"[a-z]+:|#", target)]


def newest_version(changelog: str) -> str | None:
    """The first numbered heading; one of unreleased changes may stand above it."""
    found = re.search(r"^## \[?v?(\d+\.\d+\.\d+)", changelog, flags=re.MULTILINE)
    return found and found[1]


def test_continuous_integration_runs_what_a_clone_runs() -> None:
    workflow = read(ROOT / ".github" / "workflows" / "ci.yml")
    # YAML 1.1 reads the key "on" as true.
    assert {"push", "pull_request"} <= set(workflow[True])
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]["cancel-in-progress"] is True
    (job,) = workflow["jobs"].values()
    assert job["runs-on"] == "ubuntu-latest" and job["timeout-minutes"] == 90
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    used = [step["uses"] for step in job["steps"] if "uses" in step]
    assert [name.partition("@")[0] for name in used] == ["actions/checkout", "actions/setup-python"]
    assert all(re.fullmatch(r"[\w/-]+@v\d+", name) for name in used)


@pytest.mark.parametrize("name", ["bug", "feature"])
def test_issue_forms_are_complete(name: str) -> None:
    form = read(FORMS / f"{name}.yml")
    assert form["name"] and form["description"]
    fields = form["body"]
    assert all(field["type"] == "textarea" and field["attributes"]["label"] for field in fields)
    identifiers = [field["id"] for field in fields]
    assert len(set(identifiers)) == len(identifiers)


def test_a_bug_report_asks_for_what_explains_it() -> None:
    fields = {field["id"]: field for field in read(FORMS / "bug.yml")["body"]}
    assert {"command", "status", "versions", "machine"} <= set(fields)
    assert "action=status" in fields["status"]["attributes"]["description"]
    assert "manifests/" in fields["versions"]["attributes"]["description"]
    assert "blank_issues_enabled" in read(FORMS / "config.yml")


def test_the_citation_names_the_paper() -> None:
    citation = read(ROOT / "CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert citation["title"] and citation["message"] and citation["authors"]
    paper = citation["preferred-citation"]
    assert {"type", "title", "authors", "year", "url"} <= set(paper)
    assert paper["url"].endswith("2404.14313") and paper["url"] in (ROOT / "README.md").read_text(encoding="utf-8")
    names = [author["family-names"] for author in paper["authors"]]
    assert names == ["Fränken", "Zelikman", "Rafailov", "Gandhi", "Gerstenberg", "Goodman"]


def test_there_is_one_version() -> None:
    assert read(ROOT / "CITATION.cff")["version"] == sami_nemo.__version__
    assert newest_version((ROOT / "CHANGELOG.md").read_text(encoding="utf-8")) == sami_nemo.__version__
    # The names of images in an example.
    cluster = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    assert set(re.findall(r"sami-nemo-\w+-(\d+\.\d+\.\d+)", cluster)) == {sami_nemo.__version__}


def test_the_newest_version_is_below_unreleased_changes() -> None:
    assert newest_version("# C\n\n## Unreleased\n\n## [1.2.0] - 2026-01-01\n\n## 1.1.0\n") == "1.2.0"
    assert newest_version("# C\n\n## Unreleased\n") is None


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(document: Path) -> None:
    broken = [
        target for target in links(document.read_text(encoding="utf-8")) if not (document.parent / target).exists()
    ]
    assert not broken


def test_links_are_found_in_markdown_and_html() -> None:
    text = 'a [b](c.md#d) <img src="e.svg"> <source srcset="f.svg"> [g](https://h) [i](#j)\n```\n[k](l)\n```\n'
    assert links(text) == ["c.md", "e.svg", "f.svg"]
