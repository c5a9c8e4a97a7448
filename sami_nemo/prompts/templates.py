"""The paper's prompts (appendices A.10 and A.11), filled in. The texts are beside this file, with their sources in its README.

Base models are sampled with an example block that training leaves out. Instruct models see the same content, without
an example, in both; their chat template goes around it elsewhere.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

Task = Literal["dialogue", "summary"]

# Tokens of a prompt besides its query. The longest of the paper's constitutions (Table 4) takes about 100, and so do the
# prompt with its example block and a chat template; the rest is for longer principles and smaller vocabularies. Prompts
# that are too long all the same are counted and left out while sampling.
PROMPT_ROOM = 300

_FOLDER = Path(__file__).parent
_QUERY_PLACE = {"dialogue": "query", "summary": "post"}


@functools.cache
def _template(name: str) -> str:
    # The file's last newline is not part of the prompt: the response follows the colon.
    return (_FOLDER / f"{name}.txt").read_text(encoding="utf-8").removesuffix("\n")


def _fill(template: str, values: dict[str, str]) -> str:
    """Fill all places at once, so that braces in a value stay as they are."""
    return re.sub(r"\{(\w+)\}", lambda place: values[place[1]], template)


def generation_prompt(task: Task, constitution_text: str, query_text: str, instruct: bool) -> str:
    """What a model is asked when responses are sampled."""
    if instruct:
        return training_prompt(task, constitution_text, query_text, instruct)
    # The dialogue prompt has a place for a turn of HH-RLHF, which begins with its speaker.
    query = f"Human: {query_text}" if task == "dialogue" else query_text
    return _fill(_template(f"{task}_generation"), {"constitution": constitution_text, _QUERY_PLACE[task]: query})


def training_prompt(task: Task, constitution_text: str, query_text: str, instruct: bool) -> str:
    """The prompt under which log-probs of a response are taken."""
    template = _template(f"{task}_{'instruct' if instruct else 'training'}")
    return _fill(template, {"constitution": constitution_text, _QUERY_PLACE[task]: query_text})


def response_prefix(task: Task, instruct: bool) -> str:
    """The beginning of a response that its generation prompt already contains ("Summary: The post")."""
    return " The post" if task == "summary" and not instruct else ""


def principle_writer_prompt(task: Task, purpose: str, names: Sequence[str]) -> str:
    """The seed prompt of the principle writer (section 4 for dialogue, appendix A.7 for summaries)."""
    first, second = names
    if task == "summary":
        # Appendix A.7 sets the two side by side; the commas of section 4 make a sentence of it.
        first, second = f"{first},", f"{second}."
    values = {"task": purpose, "principle_1": first, "principle_2": second}
    return _fill(_template(f"{task}_principle_writer"), values)


def judge_prompt(task: Task, constitution_text: str, query_text: str, response_a: str, response_b: str) -> str:
    """The paper's question which of two responses follows the constitution better (appendix A.12)."""
    kind = "response" if task == "dialogue" else "summary"
    values = {
        "constitution": constitution_text,
        _QUERY_PLACE[task]: query_text,
        f"{kind}_a": response_a,
        f"{kind}_b": response_b,
    }
    return _fill(_template(f"{task}_judge"), values)
