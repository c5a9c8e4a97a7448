"""Texts that some reader on the way may take for something else."""

from __future__ import annotations

LOOK_LIKE_NUMBERS = [
    *(
        "1.10",
        "2024_01_02",
        "1e-5",
        "010",
        "007",
        "1_000",
        "0x10",
        "12:30:00",
        "2024-01-02",
        ".5",
        "+1",
        "1.",
        "4",
        "-0",
    ),
    *("1e3", "yes", "True", "false", "off", "~", "inf", ".nan", "NaN", "0b1", "0o17", "?", "???", "nullable"),
]
AWKWARD = [
    *(
        "two words",
        " a  b ",
        "it's",
        'say "so"',
        "$HOME",
        "${HOME}",
        "${seed}",
        "${",
        "`id`",
        "$(id)",
        "a\\b",
        "a\\\\b",
        "\\",
    ),
    *(
        "100%",
        "%j",
        "é ß 日本 🙂",
        "a,b",
        "a=b",
        "a:b",
        "[a]",
        "[a",
        "{a: b}",
        "a#b",
        " # b",
        "a;b",
        "a&b",
        "a|b",
        "*",
        "!x",
    ),
    *("a\\,b", "range(1,3)", "choices(a,b)", "a'b\"c", "", "\t", "-x", "a\\'", "glob(*)", "@a", "=", "<<"),
]
# Of a directory.
ODD_NAME = "my runs (v2), é=1+[x]%j 'q' & #{y} $z"
