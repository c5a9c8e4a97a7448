"""Prompts and responses as token ids, alike in both environments. Needs no torch.

Sampling and training must see the same ids: a prompt is tokenised by itself and begins with the one BOS; what
follows it (a prefix of the response, the sampled tokens) is joined as ids, never as text.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sami_nemo.config.schema import Config
from sami_nemo.errors import CheckpointError
from sami_nemo.prompts import templates
from sami_nemo.records import Constitution, Query
from sami_nemo.run_dir import INSTRUCT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What a prompt ends with before a response prefix. Tokenised alone, " The post" would get a second space from
# sentencepiece tokenizers, which put one before every text. The others are for tokenizers that merge it with what follows.
ANCHORS = (":", ".", "x", "\n")


def uses_chat_template(config: Config, iteration: int) -> bool:
    """Whether the model of `iteration` is asked through its chat template: the instruct baseline always is."""
    return config.generate.chat_template or iteration == INSTRUCT


def special_texts(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """What is a special token wherever it stands in a chat template's text. Ordinary added tokens are words."""
    marked = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return tuple(dict.fromkeys([*marked, *tokenizer.all_special_tokens]))


class PromptTokenizer:
    """A model's tokenizer, applied to the prompts of one task.

    Args:
        tokenizer: of Hugging Face.
        task: which prompts are used.
        chat_template: wrap prompts as a user's message in the tokenizer's template (instruct models).

    Raises:
        CheckpointError: `chat_template` is asked for and the tokenizer has none.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, task: Literal["dialogue", "summary"], chat_template: bool
    ) -> None:
        if chat_template and not tokenizer.chat_template:
            remedy = "the tokenizer has no chat template; set generate.chat_template=false for base models"
            raise CheckpointError("generate.chat_template", True, remedy)
        self._tokenizer = tokenizer
        self._task = task
        self._chat_template = chat_template
        self.response_prefix = templates.response_prefix(task, chat_template)
        """Text that every response begins with and that is not sampled: " The post" for summaries by base models."""
        self.response_prefix_ids = self.encode_continuation(self.response_prefix)

    @classmethod
    def load(cls, directory: Path, task: Literal["dialogue", "summary"], chat_template: bool) -> PromptTokenizer:
        """The tokenizer of the Hugging Face checkpoint in `directory`. Uses no network."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
        return cls(tokenizer, task, chat_template)

    def encode_generation_prompt(self, constitution: Constitution, query: Query) -> tuple[int, ...]:
        """Ids that a response is sampled after: the prompt with the example block, and the response prefix."""
        text = templates.generation_prompt(self._task, constitution.text, query.text, self._chat_template)
        return (*self.encode_prompt(text.removesuffix(self.response_prefix)), *self.response_prefix_ids)

    def encode_training_prompt(self, constitution: Constitution, query: Query) -> tuple[int, ...]:
        """Ids that log-probs are conditioned on: without the example block, and without the response prefix."""
        text = templates.training_prompt(self._task, constitution.text, query.text, self._chat_template)
        return self.encode_prompt(text)

    def encode_prompt(self, text: str) -> tuple[int, ...]:
        """Ids of `text`, inside the chat template if there is one; the first is BOS if the tokenizer defines one."""
        if self._chat_template:
            message = [{"role": "user", "content": text}]
            ids = self._tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False)
        else:
            ids = self._encode(text)
        bos = self._tokenizer.bos_token_id
        if bos is not None and ids[:1] != [bos]:
            ids = [bos, *ids]
        return tuple(ids)

    def encode_continuation(self, text: str) -> tuple[int, ...]:
        """Ids of `text` where it follows a prompt: no BOS, and no space that is not in `text`.

        Raises:
            CheckpointError: the tokenizer merges it with any prompt.
        """
        for mark in ANCHORS:
            anchor, whole = self._encode(mark), self._encode(mark + text)
            if whole[: len(anchor)] == anchor:
                return tuple(whole[len(anchor) :])
        remedy = f"its tokenizer merges {text[:20]!r} with whatever stands before it; take another tokenizer"
        raise CheckpointError("model.path", self._tokenizer.name_or_path, remedy)

    def encode_response(self, text: str) -> tuple[int, ...]:
        """Ids of a response that another model gave, where it follows a prompt."""
        return tuple(self._encode(text)) if self._chat_template else self.encode_continuation(f" {text}")

    def count(self, text: str) -> int:
        """Length of a text in tokens."""
        return len(self._encode(text))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids` without special tokens."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def cut(self, ids: Sequence[int], text: str) -> tuple[int, ...]:
        """The prefix of `ids` that says as much of `text` as whole tokens can, in the fewest tokens; never empty.

        White space around the text does not count: a token may hold the full stop and the line break after it.

        Args:
            ids: a response.
            text: the beginning of what they decode to.
        """
        best = tuple(ids[:1])
        longest = 0
        for length in range(1, len(ids) + 1):
            prefix = self.decode(ids[:length]).strip()
            if len(prefix) > longest and text.strip().startswith(prefix):
                best, longest = tuple(ids[:length]), len(prefix)
        return best

    def _encode(self, text: str) -> list[int]:
        # Special tokens that a query spells out ("</s>") stay text: they must not end or restart the prompt.
        return self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
