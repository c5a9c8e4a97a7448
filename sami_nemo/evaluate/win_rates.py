"""Win rates with and without length correction (paper, section 5 and appendix A.4). Pure Python.

    win rate    mean over queries of the score: 1 won, 0 lost, 1/2 when the two orders disagree
    sem         sample standard deviation / sqrt(n)
    corrected   (w_longer + w_rest) / 2, where "longer" are the queries on which the judged response has more tokens
                than the opponent's, and "rest" all others; sem = sqrt(sem_longer^2 + sem_rest^2) / 2

Replies that could not be read are counted, and questions that the judge's endpoint refused by their reasons; neither are
wins or losses.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from sami_nemo.evaluate.mean_sem import mean_sem

STRATA = ("longer", "not_longer")
# Half of the corrected rate hangs on a stratum, however small. A single comparison has no standard error, and would
# lend the rate one that is far too small.
LEAST_OF_STRATUM = 2


def win_rates(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Win rate against each opponent, from rows of judge/verdicts.jsonl; with several sources also for each."""
    rates: dict[str, Any] = {}
    for opponent in dict.fromkeys(row["opponent"] for row in rows):
        mine = [row for row in rows if row["opponent"] == opponent]
        rates[opponent] = win_rate(mine)
        sources = list(dict.fromkeys(row["source"] for row in mine))
        if len(sources) > 1:
            rates[opponent]["by_source"] = {
                source: win_rate([row for row in mine if row["source"] == source]) for source in sources
            }
    return rates


def win_rate(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Uncorrected and length-corrected win rate of one set of comparisons.

    Returns:
        mean, sem, n of the verdicts that could be read; `unparsed`, how many could not; `refused`, how many were not given
        by reason, absent without any; `strata`; `corrected`, absent if a stratum has too few comparisons, which
        `small_stratum` then names.
    """
    read = [row for row in rows if row["score"] is not None]
    refused = Counter(row["refused"] for row in rows if row.get("refused"))
    result: dict[str, Any] = {"n": len(read), "unparsed": len(rows) - len(read) - refused.total()}
    if refused:
        result["refused"] = dict(refused.most_common())
    if not read:
        return result
    longer = [row["response_tokens"] > row["opponent_tokens"] for row in read]
    scores = {
        "longer": [row["score"] for row, is_longer in zip(read, longer, strict=True) if is_longer],
        "not_longer": [row["score"] for row, is_longer in zip(read, longer, strict=True) if not is_longer],
    }
    result |= mean_sem([row["score"] for row in read])
    result["strata"] = {name: mean_sem(scores[name]) if scores[name] else {"n": 0} for name in STRATA}
    small = [name for name in STRATA if len(scores[name]) < LEAST_OF_STRATUM]
    if small:
        result["small_stratum"] = small[0]
    else:
        means, sems = ([result["strata"][name][key] for name in STRATA] for key in ("mean", "sem"))
        result["corrected"] = {"mean": sum(means) / 2, "sem": math.hypot(*sems) / 2}
    return result
