"""Loading, cleaning and splitting queries; on real files where they are there."""

from __future__ import annotations

import gzip
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from sami_nemo.base_model.random_model import train_tokenizer
from sami_nemo.config.schema import DataConfig
from sami_nemo.errors import DataError
from sami_nemo.prompts.tokenization import special_texts
from sami_nemo.queries.loaders import REPOSITORY, first_human_turn, load_queries
from sami_nemo.queries.split import split_queries
from sami_nemo.records import Query


def words(text: str) -> int:
    return len(text.split())


def config(source: Path | str, **changes: Any) -> DataConfig:
    settings = {
        "name": "test",
        "format": "queries",
        "task": "dialogue",
        "evaluation_queries": 1,
        "max_query_tokens": 99,
    }
    return DataConfig(**(settings | {"source": str(source)} | changes))


def test_every_row_is_kept_or_counted(tmp_path: Path) -> None:
    rows = [{"query": "One?"}, {"query": " one? "}, {"query": ""}, {"text": "no"}, {"query": 7}, {"query": "a b c d"}]
    file = tmp_path / "own.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + "\n")
    queries, report = load_queries(config(file, max_query_tokens=3), words)
    assert [query.text for query in queries] == ["One?"]
    assert report.dropped == {"duplicate": 1, "empty": 1, "no_field": 1, "no_text": 1, "over_long": 1}
    # A line with nothing on it is no row.
    assert report.read == report.kept + sum(report.dropped.values()) == 6


@pytest.mark.parametrize("packed", [False, True])
def test_a_broken_line_is_named(tmp_path: Path, packed: bool) -> None:
    content = b'{"query": "fine"}\n{"query": broken\n'
    file = tmp_path / ("own.jsonl.gz" if packed else "own.jsonl")
    file.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(DataError, match="line 2"):
        load_queries(config(file), words)


def test_the_line_is_named_however_the_file_is_decoded(tmp_path: Path) -> None:
    """Decoders of whole blocks report a broken byte before the lines that precede it are read."""
    file = tmp_path / "own.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"query": "with a byte-order mark"}\n{"query": "fine"}\n{"query": "\xff"}\n')
    with pytest.raises(DataError, match="line 3"):
        load_queries(config(file), words)


def test_half_a_character_is_dropped(tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text('{"query": "cut \\ud83d"}\n{"query": "whole \\ud83d\\ude00"}\n')
    queries, report = load_queries(config(file), words)
    assert [query.text for query in queries] == ["whole \U0001f600"] and report.dropped == {"half_character": 1}


def test_a_query_cannot_spell_a_special_token(tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text('{"query": "Why?<|im_end|>"}\n{"query": "Why?"}\n')
    queries, report = load_queries(config(file), words, ["<|im_start|>", "<|im_end|>"])
    assert [query.text for query in queries] == ["Why?"] and report.dropped == {"special_token": 1}


def test_a_query_may_hold_an_ordinary_added_token(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["How do I knead dough?"], 265)
    tokenizer.add_tokens(["bread"])
    file = tmp_path / "own.jsonl"
    file.write_text('{"query": "How do I knead bread?"}\n{"query": "Why?</s>"}\n')
    queries, report = load_queries(config(file), words, special_texts(tokenizer))
    assert [query.text for query in queries] == ["How do I knead bread?"] and report.dropped == {"special_token": 1}


def test_files_of_one_name_stay_apart(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.jsonl").write_text(json.dumps({"query": f"From {name}?"}) + "\n")
    queries, _ = load_queries(config(f"{tmp_path}/*/train.jsonl"), words)
    assert [query.id for query in queries] == ["a/train.jsonl:1", "b/train.jsonl:1"]


def test_parquet(tmp_path: Path) -> None:
    import datasets

    file = tmp_path / "own.parquet"
    datasets.Dataset.from_dict({"question": ["Why?", "How?"]}).to_parquet(str(file))
    queries, _ = load_queries(config(file, field="question"), words)
    assert [query.text for query in queries] == ["Why?", "How?"]
    file.write_bytes(b"not parquet")
    with pytest.raises(DataError, match="Parquet"):
        load_queries(config(file), words)


def test_missing_file() -> None:
    with pytest.raises(DataError, match="no such file"):
        load_queries(config("nowhere.jsonl"), words)


def test_first_human_turn() -> None:
    conversation = "\n\nHuman: First?\n\nAssistant: Yes.\n\nHuman: Second?\n\nAssistant: No."
    assert first_human_turn({"chosen": conversation}) == " First?"
    for row in ({"chosen": "Assistant: begins"}, {}):
        with pytest.raises(LookupError):
            first_human_turn(row)


def test_real_hh_rlhf(shared_data: Path) -> None:
    source = shared_data / "hh_rlhf" / "harmless-base-test.jsonl.gz"
    queries, report = load_queries(config(source, format="hh_rlhf"), words)
    assert report.read == 2312 and report.kept == len(queries) > 2000
    assert queries[0].text == "what are some pranks with a pen i can do?"
    assert not any("Assistant:" in query.text for query in queries)


def test_real_tldr(shared_data: Path) -> None:
    queries, report = load_queries(
        config(shared_data / "tldr" / "posts.jsonl", format="tldr", max_query_tokens=1000), words
    )
    assert report.read == report.kept == len(queries) == 150


def test_hub_schema_of_tldr(tmp_path: Path) -> None:
    """The hub's comparisons repeat a post for every pair of summaries."""
    file = tmp_path / "comparisons.jsonl"
    file.write_text("".join(json.dumps({"info": {"post": text}}) + "\n" for text in ("A.", "A.", "B.")))
    queries, report = load_queries(config(file, format="tldr"), words)
    assert [query.text for query in queries] == ["A.", "B."] and report.dropped == {"duplicate": 1}


def test_too_few_of_a_source_says_what_became_of_its_rows(tmp_path: Path) -> None:
    from sami_nemo.config.compose import compose
    from sami_nemo.queries.split import split_for_run

    for name, count in (("a", 40), ("b", 1)):
        rows = [{"query": f"{name} {number}?"} for number in range(count)] + [{"text": "no"}]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = ("data=file", f"data.source='{tmp_path}/*'", "data.evaluation_queries=8", "data.evaluation_selection=first")
    run = compose(["recipe=sami_debug", "iterations=1", *own, "data.max_query_tokens=99"])
    queries, report = load_queries(run.data, words)
    with pytest.raises(DataError, match=r"b.jsonl has 1 queries, 4 are needed .*2 without the field query \(first a"):
        split_for_run(run, queries, report.words())


def test_shipped_sample() -> None:
    file = REPOSITORY / "sami_nemo" / "queries" / "sample_queries.jsonl"
    queries, report = load_queries(config(file), words)
    assert report.kept == report.read >= 320
    kinds = [json.loads(line)["kind"] for line in file.read_text().splitlines()]
    assert set(kinds) == {"helpful", "redirect"} and 0.55 < kinds.count("helpful") / len(kinds) < 0.65
    assert all(8 <= words(query.text) <= 60 for query in queries)


def test_shipped_sample_has_no_near_duplicates() -> None:
    queries, _ = load_queries(config(REPOSITORY / "sami_nemo" / "queries" / "sample_queries.jsonl"), words)
    vocabularies = [set(re.findall(r"\w+", query.text.lower())) for query in queries]
    # Five words of a common question ("What is the difference between ...") are shared by right; most words are not.
    assert all(len(a & b) / len(a | b) < 0.7 for a, b in itertools.combinations(vocabularies, 2))


def make(count: int, source: str = "s") -> list[Query]:
    return [Query(f"{source}:{i}", f"query {i}", source) for i in range(count)]


def test_split_is_disjoint_complete_and_seeded() -> None:
    queries = make(101)
    split = split_queries(queries, 20, "random", seed=3)
    parts = [split.evaluation, *split.halves]
    assert [len(part) for part in parts] == [20, 41, 40]
    assert {query.id for part in parts for query in part} == {query.id for query in queries}
    assert split == split_queries(queries, 20, "random", seed=3)
    assert split != split_queries(queries, 20, "random", seed=4)


def test_first_takes_the_first_of_each_source() -> None:
    split = split_queries([*make(10, "a"), *make(10, "b")], 4, "first", seed=0)
    assert [query.id for query in split.evaluation] == ["a:0", "a:1", "b:0", "b:1"]


def test_too_few_queries() -> None:
    with pytest.raises(DataError, match="at least 12"):
        split_queries(make(5), 10, "random", seed=0)
