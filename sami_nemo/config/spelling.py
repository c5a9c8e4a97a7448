"""How texts are written where a number could be meant: in Hydra's grammar, and in a shell. Needs no Hydra."""

from __future__ import annotations

import re
import shlex
from typing import Any


def quoted(text: str) -> str:
    """In quotes that Hydra's grammar takes off: backslashes count only before a quote."""
    return '"' + re.sub(r'(\\*)("|\Z)', lambda end: end[1] * 2 + (end[2] and '\\"'), text) + '"'


def as_argument(key: str, value: str | list[str]) -> str:
    """`key=value` to be typed into a shell."""
    written = f"[{','.join(map(quoted, value))}]" if isinstance(value, list) else quoted(value)
    return shlex.quote(f"{key}={written}")


def as_text(value: Any) -> str:
    """Of a number, a truth or nothing, as YAML writes it."""
    return {None: "null", True: "true", False: "false"}[value] if isinstance(value, bool | None) else str(value)
