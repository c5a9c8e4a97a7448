"""The records that stages hand to one another, as JSON lines."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Query:
    """One prompt of a user, without any constitution."""

    id: str
    text: str
    source: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Constitution:
    """One statement per principle, in the order in which they are shown."""

    id: str
    """The same for the same statements in any order, e.g. "helpful+not harmless"."""
    statements: tuple[str, ...]

    @property
    def text(self) -> str:
        """The numbered list that prompts contain."""
        return "\n".join(f"{number}. {statement}" for number, statement in enumerate(self.statements, start=1))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Constitution:
        return cls(id=row["id"], statements=tuple(row["statements"]))


@dataclass(frozen=True)
class Response:
    """What a model answered to a query under a constitution (one line of responses/*.jsonl)."""

    query: Query
    constitution: Constitution
    text: str
    """As sampled, before any filter; without the special tokens."""
    token_ids: tuple[int, ...]
    """As sampled, without the end-of-sequence token."""
    finish_reason: str
    """vLLM's: "stop" or "length"."""
    prompt_tokens: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Response:
        return cls(
            query=Query(**row["query"]),
            constitution=Constitution.from_json(row["constitution"]),
            text=row["text"],
            token_ids=tuple(row["token_ids"]),
            finish_reason=row["finish_reason"],
            prompt_tokens=row["prompt_tokens"],
        )


@dataclass(frozen=True)
class ContrastGroup:
    """One query, N_c constitutions, and the N_c responses sampled under them.

    Response j was sampled under constitution j. Prompts and responses are tokenised apart and joined as
    ids, so that a response has the same ids under every constitution; a prompt begins with the one BOS.
    """

    query: Query
    constitutions: tuple[Constitution, ...]
    prompt_ids: tuple[tuple[int, ...], ...]
    """Training prompts (without the example block), one per constitution."""
    response_ids: tuple[tuple[int, ...], ...]
    """Never empty."""
    responses: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> ContrastGroup:
        return cls(
            query=Query(**row["query"]),
            constitutions=tuple(Constitution.from_json(c) for c in row["constitutions"]),
            prompt_ids=tuple(tuple(ids) for ids in row["prompt_ids"]),
            response_ids=tuple(tuple(ids) for ids in row["response_ids"]),
            responses=tuple(row["responses"]),
        )
