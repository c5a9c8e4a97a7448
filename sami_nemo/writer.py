"""Stage `principles`: what constitutions are drawn from, as a file that a person can read and edit.

The principles are copied from a file, or written by a model (paper, section 4 and appendix A.7): one behind an
endpoint, or a local instruct model that this stage serves for as long as it asks. Writes

    principles.yaml           see principles.py
    principles_writer.json    every question and reply, if a model was asked
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from sami_nemo.base_model.locate import download
from sami_nemo.config.schema import Config, PrinciplesConfig
from sami_nemo.constitution.principles import (
    Principle,
    PrincipleSet,
    Statement,
    dump_principles,
    find_principles,
    load_principles,
)
from sami_nemo.constitution.reply import Pair, UnusableReply, parse_reply
from sami_nemo.errors import DataError, EndpointError
from sami_nemo.progress import report_phase
from sami_nemo.prompts.templates import Task, principle_writer_prompt
from sami_nemo.run_dir import RunDir, partial, write_json, write_text

if TYPE_CHECKING:
    from sami_nemo.endpoint import Endpoint, Message

# What the seed prompt says the constitution is for, in the grammar of each form, and the paper's two principles.
PURPOSES: dict[Task, str] = {
    "dialogue": "an assistant that responds to human requests",
    "summary": "summarize Reddit posts",
}
NAMES: dict[Task, tuple[str, str]] = {"dialogue": ("helpful", "harmless"), "summary": ("concise", "comprehensive")}
# A writer thinks for a while about a thousand tokens; a local one on the CPU longer.
TIMEOUT_SECONDS = 600.0
RETRIES = 8
# Of a reply, in an error's one line.
SHOWN_CHARACTERS = 400
OTHER_PRINCIPLES = "use another principles.model, or write a principles file (principles=file principles.file=PATH)"


def main(config: Config, run: RunDir, iteration: int) -> None:
    principles = config.principles
    log: list[dict[str, Any]] = []
    if principles.source == "file":
        assert principles.file is not None
        adopted = load_principles(principles.file)
        text = find_principles(principles.file).read_text(encoding="utf-8")
    else:
        try:
            with open_writer(config) as writer:
                adopted = write_principles(principles, config.data.task, writer, log)
                text = dump_principles(adopted)
        finally:
            for entry in log:
                print(f"{entry['reply']}\n({entry['problem'] or 'usable'})\n", flush=True)
    for principle in adopted.principles:
        for statement in principle.statements:
            kind = "antithesis" if statement.antithesis else "principle"
            print(f"{principle.name}, {kind}: {statement.text}", flush=True)
    write_json(partial(run.principles_writer), {"model": principles.model, "replies": log})
    write_text(partial(run.principles), text)


@contextlib.contextmanager
def open_writer(config: Config) -> Iterator[Endpoint]:
    """The writer's endpoint: its own, or that of a server on this machine that ends with the context."""
    # Half a second of imports, which principles from a file do without.
    from sami_nemo.endpoint import Endpoint

    principles = config.principles
    assert principles.model is not None

    def endpoint(model: str, base_url: str | None) -> Endpoint:
        variable, request = principles.api_key_variable, principles.request
        return Endpoint("principles", model, base_url, variable, TIMEOUT_SECONDS, RETRIES, request=request)

    if principles.source == "endpoint":
        yield endpoint(principles.model, principles.base_url)
        return
    from sami_nemo.serving.server import serve

    with serve(download(principles.model, field="principles.model"), config) as (base_url, name):
        report_phase("work")
        yield endpoint(name, base_url)


def write_principles(
    principles: PrinciplesConfig, task: Task, writer: Endpoint, log: list[dict[str, Any]]
) -> PrincipleSet:
    """Ask until a reply can be used, each time with the problem of the one before.

    Args:
        log: gets every question, reply and problem.

    Raises:
        DataError: none of `principles.attempts` replies can be used; it shows the last.
        EndpointError: the writer cannot be asked, or refuses to answer.
    """
    names = tuple(principles.names or NAMES[task])
    prompt = principle_writer_prompt(task, principles.task or PURPOSES[task], names)
    messages: list[Message] = [{"role": "user", "content": prompt}]
    for _ in range(principles.attempts):
        reply = writer.ask(messages, principles.max_tokens)
        entry = {
            "messages": list(messages),
            "reply": reply.text,
            "finish_reason": reply.finish_reason,
            "problem": reply.refusal,
        }
        log.append(entry)
        if reply.refusal:
            remedy = f"gives no answer ({reply.refusal}: {reply.detail}); {OTHER_PRINCIPLES}"
            raise EndpointError("principles.model", principles.model, remedy)
        try:
            return principle_set(parse_reply(reply.text, names, reply.finish_reason), str(principles.model), prompt)
        except UnusableReply as problem:
            entry["problem"] = str(problem)
            told = complaint(problem, names)
            messages += [{"role": "assistant", "content": reply.text}, {"role": "user", "content": told}]
    shown = reply.text if len(reply.text) <= SHOWN_CHARACTERS else reply.text[:SHOWN_CHARACTERS] + " …"
    remedy = f"{entry['problem']} in the last of {principles.attempts} replies; {OTHER_PRINCIPLES}. The reply: {shown}"
    raise DataError("principles.model", principles.model, remedy)


def complaint(problem: UnusableReply, names: Sequence[str]) -> str:
    """What the writer is told about a reply that cannot be used."""
    labels = [name.capitalize() for name in names] + [f"Not {name}" for name in names]
    lines = "\n".join(f"{number}. {label}: ..." for number, label in enumerate(labels, start=1))
    return (
        f"I cannot use this reply: {problem}. Give exactly these {len(labels)} lines and nothing else, each label as it "
        f"stands here and one or two sentences behind it:\n{lines}"
    )


def principle_set(pairs: tuple[Pair, ...], writer: str, prompt: str) -> PrincipleSet:
    """Each principle with its antithesis, labelled like the paper's."""
    principles = tuple(
        Principle(
            pair.name,
            (
                Statement(pair.name, pair.principle),
                Statement(f"not {pair.name}", pair.antithesis, antithesis=True),
            ),
        )
        for pair in pairs
    )
    return PrincipleSet(f"Written by {writer}, asked: {prompt}", writer, principles)


if __name__ == "__main__":
    from sami_nemo import stage_entry

    stage_entry.run(main, "generate")
