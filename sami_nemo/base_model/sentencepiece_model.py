"""A sentencepiece model as a tokenizer of the `tokenizers` library, proved against the sentencepiece library itself.

transformers has conversions of its own: version 4's asks for a protobuf that NeMo cannot have, version 5's gives other
ids. What is built here follows sentencepiece: normalise, put one "▁" before the text, keep user-defined symbols apart,
merge. A model is refused if any of the texts below, or of the pieces that are special to it, gets other ids.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sami_nemo.errors import CheckpointError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPACE = "▁"
# In many scripts, with what normalisations change, code, and special tokens spelled out.
SAMPLES = (
    "Summarize the post below: it was the best of times, it was the worst of times.",
    "How do I knead dough?\n\nHuman: Thanks!\n\nAssistant: You’re welcome; “café” costs €3.50 (½ off).",
    "Größe, naïve, Ελληνικά, Кириллица и ещё, עברית, العربية, हिन्दी, ไทย, 한국어, 日本語の文章、中文句子。",
    "👍🏽 emoji 👩‍👩‍👧 and 🇫🇷, e\u0301 combining, zero\u200bwidth, no\u00a0break, ﬁ ligature, ＡＢＣ ①②",
    "def f(x):\n\treturn {'a': [1, 22, 333], \"b\": x**2 - 3.14e-10}  # <comment> & </end>\r\n",
    "<s>[INST] <<SYS>> be brief <</SYS>> [/INST] </s><unk><pad><0x0A><|im_start|>user<|im_end|>",
    "https://example.org/a_b?c=d&e=%20#f CamelCase snake_case UPPER 1,234,567.89 aaaaaaaaa --------- ....",
    f"a{SPACE}b {SPACE} c{SPACE}",
)


def convert(model: Path, source: str, prefix: bool, prefix_every_part: bool) -> tuple[Tokenizer, dict[str, str]]:
    """The tokenizer of `model`, and its special tokens by transformers' names (bos_token and so on).

    Args:
        model: a tokenizer.model.
        source: the configuration key that the checkpoint comes from, for errors.
        prefix: put a space before a text, if the model says so, too.
        prefix_every_part: as well before each part of a text that follows a special token.

    Raises:
        CheckpointError: it is no sentencepiece model, or one that the `tokenizers` library cannot follow.
    """
    proto = _read(model, source)
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    normalizer.add_dummy_prefix = normalizer.add_dummy_prefix and prefix
    unlike = {
        # Of two ways to cut a text that are equally likely, the libraries take different ones.
        "it is no BPE model": trainer.model_type != trainer.BPE,
        "its spaces are suffixes": trainer.treat_whitespace_as_suffix,
        "its spaces are not escaped": not normalizer.escape_whitespaces,
        "some of its pieces are unused": any(piece.type == piece.UNUSED for piece in proto.pieces),
    }
    for reason, found in unlike.items():
        if found:
            raise _not_convertible(model, source, reason)
    tokenizer = _build(proto, prefix_every_part)
    _prove(tokenizer, proto, model, source)
    ids = {"bos": trainer.bos_id, "eos": trainer.eos_id, "unk": trainer.unk_id, "pad": trainer.pad_id}
    return tokenizer, {f"{name}_token": proto.pieces[i].piece for name, i in ids.items() if i >= 0}


def _not_convertible(model: Path, source: str, reason: str) -> CheckpointError:
    remedy = f"cannot be made into a tokenizer.json ({reason}); put the model's own tokenizer.json beside it"
    return CheckpointError(source, model, remedy)


def _read(model: Path, source: str) -> Any:
    # sentencepiece's own generated code asks for a newer protobuf than NeMo allows.
    from transformers.utils.sentencepiece_model_pb2_new import ModelProto

    try:
        proto = ModelProto.FromString(_processor(model.read_bytes()).serialized_model_proto())
    except (OSError, RuntimeError):
        proto = None
    # An empty file is a model without pieces.
    if proto is None or not proto.pieces:
        remedy = "is no sentencepiece model; fetch it again (`git lfs pull` or `hf download`), or give a tokenizer.json"
        raise CheckpointError(source, model, remedy)
    return proto


def _processor(serialized: bytes) -> Any:
    from sentencepiece import SentencePieceProcessor

    return SentencePieceProcessor(model_proto=serialized)


def _build(proto: Any, prefix_every_part: bool) -> Tokenizer:
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers

    symbols = [piece.piece for piece in proto.pieces if piece.type == piece.USER_DEFINED]
    tokenizer = Tokenizer(_bpe(proto, take_whole=bool(symbols)))
    spec = proto.normalizer_spec
    tokenizer.normalizer = _normalizer(spec, prefix_every_part)
    before = _prefix_once(spec) if spec.add_dummy_prefix and not prefix_every_part else []
    before += _keep_apart(proto, symbols) if symbols else []
    if before:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(before)
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps + [decoders.Strip(" ", 1, 0)] * spec.add_dummy_prefix)
    control = [piece.piece for piece in proto.pieces if piece.type in (piece.CONTROL, piece.UNKNOWN)]
    tokenizer.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in control])
    return tokenizer


def _bpe(proto: Any, take_whole: bool) -> Any:
    """Every way to make a piece of two others, best pieces first. Control pieces and bytes are made of nothing.

    Args:
        take_whole: a part of a text that is a piece becomes that piece, without merges.
    """
    from tokenizers import models

    ids = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    normal = [piece for piece in proto.pieces if piece.type == piece.NORMAL]
    usable = {piece.piece for piece in normal}
    merges: list[tuple[str, str]] = []
    for text in (piece.piece for piece in sorted(normal, key=lambda piece: -piece.score)):
        parts = [(text[:cut], text[cut:]) for cut in range(1, len(text))]
        merges += sorted(filter(usable.issuperset, parts), key=lambda part: (ids[part[0]], ids[part[1]]))
    return models.BPE(
        vocab=ids,
        merges=merges,
        unk_token=proto.pieces[proto.trainer_spec.unk_id].piece,
        fuse_unk=True,
        byte_fallback=proto.trainer_spec.byte_fallback,
        ignore_merges=take_whole,
    )


def _normalizer(spec: Any, prefix_every_part: bool) -> Any:
    from tokenizers import Regex, normalizers

    steps: list[Any] = [normalizers.Precompiled(spec.precompiled_charsmap)] if spec.precompiled_charsmap else []
    if spec.remove_extra_whitespaces:
        once = spec.add_dummy_prefix and not prefix_every_part
        # What `_prefix_once` finds at the beginning is the prefix.
        lead = (rf"\A(?={SPACE})", " ") if once else (r"\A +", "")
        for pattern, by in ((rf"[ {SPACE}]+\z", ""), (" +", " "), lead):
            steps.append(normalizers.Replace(Regex(pattern), by))
    steps.append(normalizers.Replace(" ", SPACE))
    if spec.add_dummy_prefix and prefix_every_part:
        steps.append(normalizers.Prepend(SPACE))
    return normalizers.Sequence(steps)


def _prefix_once(spec: Any) -> list[Any]:
    """Put one "▁" before a text."""
    from tokenizers.pre_tokenizers import Metaspace

    put = Metaspace(replacement=SPACE, prepend_scheme="first", split=False)
    if spec.remove_extra_whitespaces:
        return [put]
    # It puts none where there is one. So a plain space is put, with which no text begins by now.
    put.replacement = " "
    return [put, Metaspace(replacement=SPACE, prepend_scheme="never", split=False)]


def _keep_apart(proto: Any, symbols: list[str]) -> list[Any]:
    """Make each user-defined symbol a part of the text, and no other part one that is wrongly taken whole.

    A part that spells a piece is taken whole. Where sentencepiece would make several pieces of that spelling ("</s>" is
    no end of a text in it), the part is cut behind the first of those: no merge goes across there.
    """
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import Split

    bare = type(proto).FromString(proto.SerializeToString())
    bare.normalizer_spec.add_dummy_prefix = bare.normalizer_spec.remove_extra_whitespaces = False
    bare.normalizer_spec.precompiled_charsmap = b""
    spellings = [piece.piece for piece in proto.pieces if piece.type != piece.USER_DEFINED and len(piece.piece) > 1]
    cuts = []
    cut = _processor(bare.SerializeToString()).encode(spellings, out_type=str)
    for spelling, pieces in zip(spellings, cut, strict=True):
        if pieces != [spelling]:
            first = pieces[0] if spelling.startswith(pieces[0]) else spelling[0]
            cuts.append(f"{re.escape(first)}(?={re.escape(spelling[len(first) :])}\\z)")
    longest_first = sorted(symbols, key=len, reverse=True)
    return [
        Split(Regex("|".join(map(re.escape, longest_first))), "isolated"),
        Split(Regex(rf"\A(?:{'|'.join(cuts)})"), "isolated"),
    ]


def texts_to_prove(pieces: list[str], symbols: list[str]) -> Iterator[str]:
    """Texts in many scripts and spacings, and pieces alone, in words, and between user-defined symbols.

    Args:
        pieces: all that no text is made of, user-defined symbols, and some of the others.
    """
    for sample in SAMPLES:
        yield from (sample, f" {sample}", f"{sample} \n", sample.replace(" ", "  "), sample.upper(), sample[::-1])
        yield from sample.split()
    for run in (" ", "\n", "\t", SPACE, "a", "=", "-", "0", "é", "好", "🙂", "\n ", " \t"):
        yield from (run * count for count in (*range(1, 10), 15, 16, 17, 33, 64))
        yield f"x{run * 3}y{run * 5} z"
    for piece in pieces:
        text = piece.replace(SPACE, " ")
        yield from (text, f"{text}{text}", f"a {text} b", f"a{text}b")
        yield from (f"{symbol}{text}{symbol}" for symbol in symbols[:1])


def _prove(tokenizer: Tokenizer, proto: Any, model: Path, source: str) -> None:
    """The tokenizer gives the ids of sentencepiece.

    Raises:
        CheckpointError: other ids, with an example.
    """
    symbols = [piece.piece for piece in proto.pieces if piece.type == piece.USER_DEFINED]
    normal = [piece.piece for piece in proto.pieces if piece.type == piece.NORMAL]
    others = [piece.piece for piece in proto.pieces if piece.type != piece.NORMAL]
    some = normal if symbols else normal[:: max(1, len(normal) // 500)]
    texts = list(dict.fromkeys(texts_to_prove([*others, *some], symbols)))
    tokenizer.encode_special_tokens = True
    found = [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    tokenizer.encode_special_tokens = False
    right = _processor(proto.SerializeToString()).encode(texts)
    wrong = [text for text, ids, expected in zip(texts, found, right, strict=True) if ids != expected]
    if wrong:
        reason = f"{len(wrong)} of {len(texts)} texts get other ids than sentencepiece gives them, as {wrong[0]!r} does"
        raise _not_convertible(model, source, reason)
