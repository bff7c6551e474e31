"""The best of what a tuned model drew, as text."""

import math
from collections import Counter
from dataclasses import dataclass

from difftilt.evaluation.run_folder import Run
from difftilt.evaluation.words import figures

SHOWN = 10  # different samples


@dataclass(frozen=True)
class Best:
    """The different samples of the highest rewards, best first.

    Args:
        names: What the scores are.
        rows: Of each sample its text, its scores, and how often each model drew it.
        drawn: How many samples each model drew: pretrained, tuned.
    """

    names: list[str]
    rows: list[tuple[str, list[str], int, int]]
    drawn: tuple[int, int]


def best_samples(run: Run) -> Best | None:
    """The best samples of a run, or None if its samples have no text."""
    scores, texts = run.samples["after"], run.texts["after"]
    rewards = scores.get("reward", [])
    if not texts or len(texts) != len(rewards):
        return None
    scored = [i for i, reward in enumerate(rewards) if math.isfinite(reward)]
    first: dict[str, int] = {}
    for i in sorted(scored, key=lambda i: -rewards[i]):
        first.setdefault(texts[i], i)
    before, after = Counter(run.texts["before"]), Counter(texts)
    rows = [
        (text, [figures(column[i]) for column in scores.values()], before[text], after[text])
        for text, i in list(first.items())[:SHOWN]
    ]
    return Best(list(scores), rows, (len(run.texts["before"]), len(texts)))
