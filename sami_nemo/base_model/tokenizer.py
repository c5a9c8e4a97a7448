"""A checkpoint's tokenizer in one form that transformers 4, transformers 5 and vLLM load alike.

Checkpoints say what their tokenizer does in up to six files and by a class name, and the versions of transformers read
these differently: `add_prefix_space`, `legacy`, `extra_special_tokens` and the class itself change ids in one and not
in the other. Here tokenizer.json decides how a text is cut; the other files name special tokens and a chat template.
What they say is written into tokenizer.json, for the plain class, which adds nothing of its own.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sami_nemo.base_model import sentencepiece_model
from sami_nemo.config_json import read_config
from sami_nemo.errors import CheckpointError
from sami_nemo.run_dir import write_json, write_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
# An EOS is never guessed: with the wrong one no response ends.
LLAMA = {"bos_token": "<s>", "unk_token": "<unk>"}
GIT_LFS = b"version https://git-lfs"
# What transformers puts in for `fix_mistral_regex`: Mistral's own way to cut words, which conversions got wrong once.
MISTRAL_WORDS = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def write_tokenizer(checkpoint: Path, directory: Path, source: str) -> None:
    """Write tokenizer.json, tokenizer_config.json and, if there is a chat template, chat_template.jinja.

    Args:
        checkpoint: a Hugging Face checkpoint with a tokenizer.json, or else a sentencepiece tokenizer.model.
        directory: where the files are written.
        source: the configuration key that `checkpoint` comes from, for errors.

    Raises:
        CheckpointError: there is no tokenizer, a file is damaged, no token ends a text, or tokens are beyond the
            vocabulary of the model.
    """
    files = _Files(checkpoint, source)
    tokenizer = _load(files)
    _add_stated_tokens(tokenizer, files)
    named = _named_tokens(tokenizer, files)
    stated = [*named.values(), *_further_special(files.settings)]
    tokenizer.add_special_tokens(_missing(tokenizer, stated))
    if files.sentencepiece:
        _put_bos_and_eos(tokenizer, named, files.settings)
    state = _canonical(tokenizer, files, {_text(token) for token in stated})
    _check_ids(tokenizer, files)

    special = [token["content"] for token in state["added_tokens"] if token["special"]]
    names = {name: _text(token) for name, token in named.items()}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **names,
        # Both versions read this name; version 4 fails on a list under version 5's.
        "additional_special_tokens": [token for token in special if token not in names.values()],
    }
    if _is_byte_level(state):
        # Version 4 sets it to false in tokenizer.json where it is not stated.
        settings["add_prefix_space"] = state["pre_tokenizer"]["add_prefix_space"]
    template = _chat_template(files)
    if template is not None:
        write_text(directory / "chat_template.jinja", template)
    write_json(directory / "tokenizer_config.json", settings)
    write_text(directory / "tokenizer.json", json.dumps(state, ensure_ascii=False))


@dataclass
class _Files:
    """What a checkpoint says of its tokenizer, besides how it cuts a text."""

    checkpoint: Path
    source: str
    settings: dict[str, Any] = field(init=False)
    """tokenizer_config.json, with the special tokens of special_tokens_map.json."""
    model: dict[str, Any] = field(init=False)
    """config.json."""
    generation: dict[str, Any] = field(init=False)
    added: dict[str, int] = field(init=False)
    """added_tokens.json, of older checkpoints."""
    sentencepiece: dict[str, str] = field(default_factory=dict)
    """Special tokens that a sentencepiece model names."""

    def __post_init__(self) -> None:
        settings, special = self._object("tokenizer_config.json"), self._object("special_tokens_map.json")
        # As transformers has it: the older file counts where the newer one does not list its tokens itself.
        first, then = (settings, special) if "added_tokens_decoder" in settings else (special, settings)
        stated = {key: value for key, value in first.items() if value is not None}
        self.settings = {**settings, **special, **then, **stated}
        for token in (*(self.settings.get(name) or "" for name in NAMED), *_further_special(self.settings)):
            if not isinstance(token["content"] if isinstance(token, dict) and "content" in token else token, str):
                raise self.error(f"its tokenizer_config.json has {token!r} in the place of a token's text; correct it")
        self.model = read_config(self.checkpoint, self.source)
        self.generation, self.added = self._object("generation_config.json"), self._object("added_tokens.json")

    def error(self, remedy: str) -> CheckpointError:
        return CheckpointError(self.source, self.checkpoint, remedy)

    def text(self, name: str) -> str:
        """The content of a file of text.

        Raises:
            CheckpointError: it cannot be read, is empty, or only points to where it is.
        """
        try:
            content = (self.checkpoint / name).read_bytes()
            if content.startswith(GIT_LFS):
                raise self.error(f"its {name} is a Git LFS pointer; fetch the file (`git lfs pull` or `hf download`)")
            text = content.decode("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise self.error(f"its {name} cannot be read ({error}); fetch it again") from None
        if not text.strip():
            raise self.error(f"its {name} is empty; fetch it again")
        return text

    def json(self, name: str) -> dict[str, Any]:
        """The content of a JSON file.

        Raises:
            CheckpointError: it is no JSON object, or cannot be read.
        """
        try:
            value = json.loads(self.text(name))
        except ValueError as error:
            raise self.error(f"its {name} is damaged or cut off ({error}); fetch it again") from None
        if not isinstance(value, dict):
            raise self.error(f"its {name} is not a JSON object; fetch it again")
        return value

    def _object(self, name: str) -> dict[str, Any]:
        return self.json(name) if (self.checkpoint / name).is_file() else {}


def _text(token: Any) -> str:
    """Tokens are strings, or objects with their `content`."""
    return token["content"] if isinstance(token, dict) else token


def _load(files: _Files) -> Tokenizer:
    from tokenizers import Tokenizer

    if (files.checkpoint / "tokenizer.json").is_file():
        stated = files.json("tokenizer.json")
        try:
            tokenizer = Tokenizer.from_str(json.dumps(stated))
        except Exception as error:  # the library raises nothing more special
            raise files.error(f"its tokenizer.json is no tokenizer ({error}); fetch it again") from None
        for token in stated.get("added_tokens") or []:
            _check_place(tokenizer, token["content"], token["id"], "tokenizer.json", files)
        return tokenizer
    if (files.checkpoint / "tokenizer.model").is_file():
        return _from_sentencepiece(files)
    tekken = (files.checkpoint / "tekken.json").is_file()
    found = "only tekken.json, which is Mistral's own format" if tekken else "none"
    raise files.error(f"needs a tokenizer.json or tokenizer.model, and has {found}; copy the model's tokenizer.json")


def _from_sentencepiece(files: _Files) -> Tokenizer:
    """As transformers' class for Llama and Mistral has it, which older checkpoints mean."""
    legacy, prefix = (files.settings.get(name) in (None, True) for name in ("legacy", "add_prefix_space"))
    tokenizer, files.sentencepiece = sentencepiece_model.convert(
        files.checkpoint / "tokenizer.model", files.source, prefix, prefix_every_part=legacy
    )
    return tokenizer


def _put_bos_and_eos(tokenizer: Tokenizer, named: dict[str, Any], settings: dict[str, Any]) -> None:
    """Around a text, where it is encoded with special tokens. Llama's class adds a BOS unless it is told otherwise."""
    from tokenizers import processors

    before = [named["bos_token"]] if "bos_token" in named and settings.get("add_bos_token") in (None, True) else []
    after = [named["eos_token"]] if settings.get("add_eos_token") is True else []
    template = [*map(_text, before), "$A", *map(_text, after)]
    ids = [(token, tokenizer.token_to_id(token)) for token in template if token != "$A"]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)


def _check_place(tokenizer: Tokenizer, token: str, place: int, file: str, files: _Files) -> None:
    found = tokenizer.token_to_id(token)
    if found != place:
        remedy = f"its {file} gives {token!r} the id {place}, and its vocabulary has it at {found}; fetch them again"
        raise files.error(remedy)


def _added_token(token: Any, special: bool) -> Any:
    from tokenizers import AddedToken

    # Stated by its text alone, a token is looked for in the text as it is, which sentencepiece's normalisation changes.
    options = {"normalized": False} if isinstance(token, str) else token
    names = ("lstrip", "rstrip", "single_word", "normalized")
    return AddedToken(_text(token), special=special, **{name: options[name] for name in names if name in options})


def _missing(tokenizer: Tokenizer, tokens: list[Any]) -> list[Any]:
    there = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    return [_added_token(token, special=True) for token in tokens if _text(token) not in there]


def _add_stated_tokens(tokenizer: Tokenizer, files: _Files) -> None:
    """Add tokens that stand beside the vocabulary with their ids: version 4's listing, and added_tokens.json."""
    special = {_text(files.settings[name]) for name in NAMED if files.settings.get(name)}
    special.update(map(_text, _further_special(files.settings)))
    listed = files.settings.get("added_tokens_decoder") or {}
    stated = {int(place): token for place, token in listed.items()}
    stated = {place: content for content, place in files.added.items()} | stated
    for place, token in sorted(stated.items()):
        text = _text(token)
        there = {each.content for each in tokenizer.get_added_tokens_decoder().values()}
        if text not in there:
            is_special = text in special or (isinstance(token, dict) and bool(token.get("special")))
            tokenizer.add_tokens([_added_token(token, is_special)])
            _check_place(tokenizer, text, place, "list of added tokens", files)


def _further_special(settings: dict[str, Any]) -> list[Any]:
    """Special tokens without one of the common names: a list under either version's name, or by names of their own."""
    tokens = list(settings.get("additional_special_tokens") or [])
    extra = settings.get("extra_special_tokens") or []
    tokens += extra.values() if isinstance(extra, dict) else extra
    own = (key for key in settings if key.endswith("_token") and key not in NAMED)
    return tokens + [settings[key] for key in own if isinstance(settings[key], str)]


def _named_tokens(tokenizer: Tokenizer, files: _Files) -> dict[str, Any]:
    """BOS, EOS and the like, by name.

    Raises:
        CheckpointError: there is no EOS, or a token is not in the vocabulary.
    """
    named: dict[str, Any] = {}
    for name in NAMED:
        token = files.settings.get(name)
        # A null says that there is none. But every text has an end.
        if token is None and (name not in files.settings or name == "eos_token"):
            token = files.sentencepiece.get(name) or _by_id(f"{name}_id", tokenizer, files)
            token = token or _by_default(name, tokenizer, files.settings)
        if token is None:
            continue
        if tokenizer.token_to_id(_text(token)) is None:
            raise files.error(f"its {name} {_text(token)!r} is not in the vocabulary; correct tokenizer_config.json")
        named[name] = token
    if "eos_token" not in named:
        places = "eos_token in tokenizer_config.json, or eos_token_id in config.json"
        raise files.error(f"names no token that ends a text; give {places}")
    return named


def _by_id(key: str, tokenizer: Tokenizer, files: _Files) -> str | None:
    """The token that config.json or generation_config.json gives the id of, or several ids.

    It has to be an added token: transformers writes ids that no tokenizer means, 1 and 2, where nothing is known.
    """
    added = tokenizer.get_added_tokens_decoder()
    for stated in (files.model.get(key), files.generation.get(key)):
        for place in stated if isinstance(stated, list) else [stated]:
            if place in added:
                return str(added[place].content)
    return None


def _by_default(name: str, tokenizer: Tokenizer, settings: dict[str, Any]) -> str | None:
    """What Llama's class takes, which transformers 4 takes for a Mistral without a class, too."""
    token = LLAMA.get(name)
    special = {added.content for added in tokenizer.get_added_tokens_decoder().values() if added.special}
    of_llama = (settings.get("tokenizer_class") or "Llama").startswith("Llama")
    return token if of_llama and token in special else None


def _is_byte_level(state: dict[str, Any]) -> bool:
    return (state["pre_tokenizer"] or {}).get("type") == "ByteLevel"


def _canonical(tokenizer: Tokenizer, files: _Files, special: set[str]) -> dict[str, Any]:
    """tokenizer.json, with the settings of other files in it.

    Args:
        special: texts of named special tokens.
    """
    from tokenizers import Regex, pre_tokenizers

    # Left over from the tokenizer's training or use: prompts are not cut, filled up or cut into words at random.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if files.settings.get("fix_mistral_regex") is True and isinstance(tokenizer.pre_tokenizer, pre_tokenizers.Sequence):
        tokenizer.pre_tokenizer[0] = pre_tokenizers.Split(Regex(MISTRAL_WORDS), "isolated")
    state: dict[str, Any] = json.loads(tokenizer.to_str())
    if "dropout" in state["model"]:
        state["model"]["dropout"] = None
    for token in state["added_tokens"]:
        token["special"] = token["special"] or token["content"] in special
    stated = files.settings.get("add_prefix_space")
    if _is_byte_level(state) and isinstance(stated, bool):
        state["pre_tokenizer"]["add_prefix_space"] = stated
    return state


def _check_ids(tokenizer: Tokenizer, files: _Files) -> None:
    size = files.model.get("vocab_size")
    token, last = max(tokenizer.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1])
    if isinstance(size, int) and last >= size:
        found = f"its tokenizer has the id {last} ({token!r}), and its config.json a vocab_size of {size}"
        raise files.error(f"{found}; give the tokenizer that the model was trained with")


def _chat_template(files: _Files) -> str | None:
    """The template that is taken where none is asked for by name."""
    if (files.checkpoint / "chat_template.jinja").is_file():
        return files.text("chat_template.jinja")
    template = files.settings.get("chat_template")
    if isinstance(template, list) and all(isinstance(each, dict) for each in template):
        template = next((each.get("template") for each in template if each.get("name") == "default"), None)
    if template is not None and not isinstance(template, str):
        raise files.error("its chat_template is neither text nor a list of named texts; correct tokenizer_config.json")
    return template
