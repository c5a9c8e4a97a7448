"""What a label says of its statement: which principle, and whether the principle itself or its antithesis.

A label is understood only as a whole. "Helpful", "Helpfulness", "Not being helpful", "Unhelpful (antithesis)" and
"Antithesis of 1" are; "In brief" says nothing of a principle named brief, nor does "Political" of one named polite.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

# An adjective's ending and that of its noun: honest, honesty; concise, concision; curious, curiosity; brief, brevity.
NOUN_ENDINGS = (
    *(("", "ness"), ("y", "iness"), ("", "ity"), ("e", "ity"), ("", "ty"), ("", "y"), ("ous", "osity"), ("", "ism")),
    *(("ent", "ence"), ("ent", "ency"), ("ant", "ance"), ("ant", "ancy"), ("ate", "acy"), ("ise", "ision")),
    *(("ous", "on"), ("ing", "ement"), ("", "th"), ("ble", "ility")),
    *(("le", "ility"), ("ple", "plicity"), ("ear", "arity"), ("ief", "evity"), ("etic", "y"), ("ic", "icity")),
)
NEGATING_PREFIXES = ("un", "in", "im", "ir", "il", "dis", "non", "anti")
# "intense" is no negation of "tense"; what is left of a word without its prefix has at least these letters.
LEAST_STEM = 5
OPPOSITE_ENDINGS = {"less": "ful", "ful": "less"}

PRINCIPLE = re.compile(r"princip\w*|thes[ie]s|positive|desir(?:ed|able)|rules?|guidelines?|tenets?|virtues?")
ANTITHESIS = re.compile(
    r"ant+i?thes\w*|antithetic(?:al)?|undesir(?:ed|able)|counterparts?|anti?tesi\w*|antiprincip\w*|counter(?:princip\w*)?|opposites?|opposing|contrast\w*"
    r"|contrar\w*|negat\w*|invers\w*|reversed?|antonyms?"
)
PLURAL = re.compile(r"\w*(?:theses|principles|principes|prompts|opposites|definitions|statements|negations)")
NEGATIONS = {
    "not",
    "non",
    "anti",
    "never",
    "no",
    "avoid",
    "avoids",
    "avoiding",
    "lack",
    "lacks",
    "lacking",
    "without",
    "absence",
}
CONTRACTED = re.compile(r"(?:is|are|should|must|do|does|shall|need|wo|ca)n['’]?t")
# They add nothing to what a label says.
ARTICLES = {"the", "a", "an", "and", "its", "their", "each"}
NEUTRAL = {
    *("definition", "definitions", "description", "meaning", "prompt", "prompts", "statement", "statements"),
    *("constitution", "part", "section", "name", "title", "label", "text", "content", "value", "trait", "pair"),
    "set",
}
SENTENCE = {
    *("be", "being", "is", "are", "should", "must", "shall", "will", "response", "responses", "reply", "replies"),
    *("answer", "answers", "summary", "summaries", "assistant", "ai", "model", "output", "it", "reddit", "posts"),
    *("do", "does", "behavior", "behaviour", "agent", "bot", "chatbot", "system", "style", "tone", "version"),
}
LINKS = {"of", "to", "for", "de", "du", "von", "del", "di"}
ORDINALS = {"one": "1", "first": "1", "1st": "1", "i": "1", "two": "2", "second": "2", "2nd": "2", "ii": "2"}
BRACKET = re.compile(r"\(([^()]*)\)")
MOST_WORDS_BEFORE_BRACKET = 4
PARTS = re.compile(r"[()\[\]{}:,;/|→⇒=]|\s[-–]+\s|—|–")
AGAINST = re.compile(r"\s(?:vs\.?|versus)\s|\s*(?:⟷|↔|<->|<=>)\s*", re.IGNORECASE)
HYPHENATED = re.compile(r"\b(?:un|in|im|ir|il|dis|non|anti)[-\u2010\u2011](?=\w)")


@dataclass(frozen=True)
class Claim:
    """What a label, or several behind one another, say of a statement.

    Args:
        names: the principles that are mentioned, by number, each once.
        negations: how often the name is negated by each mention: "helpful" 0, "unhelpful" 1, "not unhelpful" 2.
        kind: 1 is called a principle, -1 an antithesis, 0 neither.
        keys: numbers and letters that tie it to a principle: "1" in "Antithesis 1".
        plural: speaks of several, as a heading does.
        neutral: holds a word such as "definition".
        exact: holds no words beyond these, such as "being" or "the response should be".
        against: for "Formal vs. Casual", what stands on the other side.
        doubly: the antithesis of a negation, which may mean either.
    """

    names: tuple[int, ...] = ()
    negations: frozenset[int] = frozenset()
    kind: int = 0
    keys: frozenset[str] = frozenset()
    plural: bool = False
    neutral: bool = False
    exact: bool = True
    against: str = ""
    doubly: bool = False

    def and_(self, other: Claim) -> Claim:
        """Both together; "antithesis" outweighs "principle", as in "antithesis of principle 1"."""
        return Claim(
            tuple(dict.fromkeys((*self.names, *other.names))),
            self.negations | other.negations,
            min(self.kind, other.kind) or max(self.kind, other.kind),
            self.keys | other.keys,
            self.plural or other.plural,
            self.neutral or other.neutral,
            self.exact and other.exact,
            self.against or other.against,
            self.doubly or other.doubly,
        )

    @property
    def sign(self) -> int:
        """-1 an antithesis, 1 a principle, 0 not said."""
        if self.kind < 0 or (1 in self.negations and 0 not in self.negations):
            return -1
        return 1 if self.kind > 0 or 2 in self.negations else 0

    @property
    def of_pair(self) -> bool:
        """Speaks of a principle and its antithesis at once: "Helpful vs. Unhelpful"."""
        return bool(self.against) or (self.kind >= 0 and {0, 1} <= self.negations)


class LabelReader:
    """Understands labels that hold forms of these names."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = [_words(name) for name in names]
        self._joined = [re.sub(r"[\W_]", "", plain_label(name)) for name in names]

    def read(self, label: str, within_sentence: bool = False) -> Claim | None:
        """What a label says; None if it is not understood.

        Args:
            within_sentence: pass over words that are not understood, as in "Now here are the antitheses".
        """
        sides = AGAINST.split(label)
        if len(sides) == 2:
            left, right = (self.read(side, within_sentence) for side in sides)
            if left is not None and left.names:
                return left.and_(Claim(right.names if right else (), against=plain_label(sides[1])))
        # A bracket may hold what is not understood. A bracket at the end may tell alone: "Verbose (not concise)".
        brackets = BRACKET.findall(label)
        outside = [part for part in PARTS.split(BRACKET.sub(" ", label)) if part.strip()]
        found = [self._read_part(part, within_sentence) for part in outside]
        within = [claim for part in brackets if (claim := self._read_part(part, within_sentence)) is not None]
        if not all(found):
            long = len(" ".join(outside).split()) > MOST_WORDS_BEFORE_BRACKET
            if any(found) or not within or long or not label.rstrip(" *_]").endswith(")"):
                return None
            found = [Claim(exact=False)]
        whole = Claim()
        for claim in [*found, *within]:
            whole = whole.and_(claim or Claim())
        return whole if whole.names or whole.kind or whole.plural or whole.neutral else None

    def _read_part(self, part: str, within_sentence: bool) -> Claim | None:
        words = _words(part)
        if len(words) == 1 and (words[0].isdigit() or re.fullmatch("[a-d]", words[0])):
            return Claim(keys=frozenset(words))
        claim, negated, linked, both, position = Claim(), 0, False, False, 0
        while position < len(words):
            word, before = words[position], words[max(0, position - 2) : position]
            said, named, width = _kind(word), self._name_at(words, position), 1
            if named is not None:
                number, forms, width = named
                doubly = claim.kind < 0 and linked and negated + forms > 0
                claim = claim.and_(Claim((number,), frozenset({min(negated + forms, 2)}), doubly=doubly))
                negated = 0
            elif word in NEGATIONS or CONTRACTED.fullmatch(word):
                negated += 1
            elif said is not None:
                if negated and said.kind > 0:
                    said, negated = replace(said, kind=-1), 0
                both |= (
                    claim.kind * said.kind < 0 and not linked and bool({"and", "with", "their"} & set(words[:position]))
                )
                claim = claim.and_(said)
            elif claim.kind and _key(word, last=position == len(words) - 1) and _ties(before):
                claim = claim.and_(Claim(keys=frozenset({_key(word, last=True)})))
            elif word in LINKS and (claim.kind or negated or (position == 0 and word in ("for", "of"))):
                linked = True
            elif word in NEUTRAL:
                claim = claim.and_(Claim(neutral=True, plural=bool(PLURAL.fullmatch(word))))
            elif word in SENTENCE or within_sentence:
                claim = claim.and_(Claim(exact=False))
            elif not (word in ARTICLES or word in ORDINALS or word.isdigit() or word == "#"):
                return None
            position += width
        if negated and not within_sentence:
            return None
        if claim.kind and words[0] in ORDINALS:
            claim = claim.and_(Claim(keys=frozenset({ORDINALS[words[0]]})))
        if both:
            return Claim(claim.names, plural=True, exact=False)
        return replace(claim, keys=frozenset()) if claim.plural else claim

    def _name_at(self, words: list[str], position: int) -> tuple[int, int, int] | None:
        """The name that stands there: its number, how often the form negates it, of how many words."""
        for number, name in enumerate(self._names):
            stand = words[position : position + len(name)]
            forms = [_negations(word, base) for word, base in zip(stand, name, strict=False)]
            if len(forms) == len(name) and all(form is not None for form in forms):
                return number, sum(form or 0 for form in forms), len(name)
            if len(name) > 1 and (joined := _negations(words[position], self._joined[number])) is not None:
                return number, joined, 1
        return None


def plain_label(label: str) -> str:
    """A label for comparison: small letters, no accents, blanks for underscores and between joined words."""
    label = re.sub(r"(?<=[a-z])(?=[A-Z][a-z])|_", " ", label)
    folded = unicodedata.normalize("NFKD", label).lower()
    return " ".join("".join(letter for letter in folded if not unicodedata.combining(letter)).split()).strip(" .:*\"'")


def _words(text: str) -> list[str]:
    text = HYPHENATED.sub("not ", plain_label(text)).replace("’", "'")
    return [word.removesuffix("'s") for word in re.findall(r"[^\W_]+(?:'[^\W_]+)?|#", text)]


def _kind(word: str) -> Claim | None:
    if ANTITHESIS.fullmatch(word):
        return Claim(kind=-1, plural=bool(PLURAL.fullmatch(word)))
    return Claim(kind=1, plural=bool(PLURAL.fullmatch(word))) if PRINCIPLE.fullmatch(word) else None


def _key(word: str, last: bool) -> str:
    if word in ORDINALS or word.isdigit():
        return ORDINALS.get(word, word)
    return word if last and re.fullmatch("[a-d]", word) else ""


def _ties(before: list[str]) -> bool:
    """Whether a number behind these words is a principle's: "antithesis 1", "antithesis of the first"."""
    return bool(before) and (
        _kind(before[-1]) is not None or before[-1] in LINKS | {"#"} or (before[-1] in ARTICLES and before[0] in LINKS)
    )


def _forms(base: str) -> Iterator[str]:
    yield base
    for adjective, noun in NOUN_ENDINGS:
        if base.endswith(adjective):
            yield base.removesuffix(adjective) + noun
        if base.endswith(noun) and len(base) > len(noun) + 2:
            yield base.removesuffix(noun) + adjective


def _negations(word: str, base: str) -> int | None:
    """How often a word negates a name's word, None if it is no form of it."""
    forms = set(_forms(base))
    if word in forms:
        return 0
    for prefix in NEGATING_PREFIXES:
        if word.startswith(prefix) and word.removeprefix(prefix) in forms:
            return 1
        stem = base.removeprefix(prefix)
        if base.startswith(prefix) and len(stem) >= LEAST_STEM and word in set(_forms(stem)):
            return 1
    for ending, other in OPPOSITE_ENDINGS.items():
        if base.endswith(ending) and word in set(_forms(base.removesuffix(ending) + other)):
            return 1
    return None
