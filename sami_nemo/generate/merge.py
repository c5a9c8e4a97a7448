"""Stage `merge_n`: the responses of several engines, put together as if one had given them.

Every engine answered its share of the requests (requests.py). Nothing may be missing, double, or from another model.
Writes what sample.py writes, into iteration_<n>/responses/.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from sami_nemo.config.schema import Config
from sami_nemo.errors import DataError
from sami_nemo.generate.requests import Request, RequestPlan, requests_sha256, share
from sami_nemo.generate.sample import plan_stage, write_report
from sami_nemo.run_dir import RunDir, partial, read_json, read_jsonl, write_json, write_jsonl


def main(config: Config, run_dir: RunDir, iteration: int) -> None:
    plans = plan_stage(config, run_dir, iteration, run_dir.hf(iteration))
    engines = [run_dir.engine_responses(iteration, k) for k in range(config.generate.engines)]
    output = partial(run_dir.responses(iteration))
    shutil.rmtree(output, ignore_errors=True)
    records: list[dict[str, Any]] = []
    for k, engine in enumerate(engines):
        shares = {name: share(plan, k, len(engines)) for name, plan in plans.items()}
        records.append(check_record(engine, shares, records))
    for name, plan in plans.items():
        rows = [row for engine in engines for row in read_jsonl(engine / f"{name}.jsonl")]
        check_responses(run_dir.iteration(iteration), name, plan.requests, rows)
        write_jsonl(output / f"{name}.jsonl", rows)
        print(f"{name}: {len(rows)} responses of {len(engines)} engines")
    requests = {name: requests_sha256(plan.requests) for name, plan in plans.items()}
    # Engines that derive limits find each its own.
    limits = [record["limits"] for record in records]
    asked = {"requests_sha256": requests, "limits": limits, "engines": len(engines)}
    write_json(output / "model.json", {**records[0], **asked})
    write_report(output, plans)


def check_record(engine: Path, shares: dict[str, RequestPlan], others: list[dict[str, Any]]) -> dict[str, Any]:
    """model.json of an engine, which was asked its share, and asked the same model as the others.

    Raises:
        DataError: it was not.
    """
    record = read_json(engine / "model.json")
    asked = {name: requests_sha256(plan.requests) for name, plan in shares.items()}
    if record["requests_sha256"] != asked:
        raise DataError(str(engine), "(other requests)", "its engine was asked something else; remove it")
    if others and record["sha256"] != others[0]["sha256"]:
        raise DataError(str(engine), record["path"], "another model answered than in the other engines; remove it")
    return record


def check_responses(directory: Path, name: str, requests: tuple[Request, ...], rows: list[dict[str, Any]]) -> None:
    """Every request has one response, in order.

    Raises:
        DataError: naming the first request without its response.
    """
    asked = [(request.query.id, request.constitution.id) for request in requests]
    answered = [(row["query"]["id"], row["constitution"]["id"]) for row in rows]
    if asked == answered:
        return
    pairs = enumerate(zip(asked, answered, strict=False))
    index = next((index for index, (one, other) in pairs if one != other), min(len(asked), len(answered)))
    query, constitution = [*asked, ("(none)", "(none)")][index]
    remedy = (
        f"{len(answered)} responses to {len(asked)} requests; the first that is missing or double is that to query "
        f"{query} under {constitution}; remove the directories engine_* and run it again"
    )
    raise DataError(str(directory), name, remedy)


if __name__ == "__main__":
    from sami_nemo import stage_entry

    stage_entry.run(main, "generate")
