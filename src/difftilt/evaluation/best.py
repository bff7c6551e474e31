"""The best of what a tuned model drew, as text."""

import math
from collections import Counter
from dataclasses import dataclass

from difftilt.evaluation.run_folder import Run
from difftilt.evaluation.words import figures

SHOWN = 10  # different samples


@dataclass(frozen=True)
class Best:
    """The different samples of the highest rewards, best first; where there are clusters, one of each.

    Args:
        names: What the scores are.
        rows: Of each sample its text, its scores, and how often it was drawn by the pretrained model, and,
            with all of its cluster, by the tuned one.
        drawn: How many samples each model drew: pretrained, tuned.
    """

    names: list[str]
    rows: list[tuple[str, list[str], int, int]]
    drawn: tuple[int, int]
    clustered: bool


def best_samples(run: Run) -> Best | None:
    """The best samples of a run, or None if its samples have no text."""
    scores, texts = run.samples["after"], run.texts["after"]
    rewards = scores.get("reward", [])
    if not texts or len(texts) != len(rewards):
        return None
    kinds = run.clusters if len(run.clusters) == len(texts) else texts
    scored = [i for i, reward in enumerate(rewards) if math.isfinite(reward) and kinds[i]]
    first: dict[str, int] = {}
    for i in sorted(scored, key=lambda i: -rewards[i]):
        first.setdefault(kinds[i], i)
    if not first:
        return None
    before, after = Counter(run.texts["before"]), Counter(kinds)
    rows = [
        (texts[i], [figures(column[i]) for column in scores.values()], before[texts[i]], after[kind])
        for kind, i in list(first.items())[:SHOWN]
    ]
    return Best(list(scores), rows, (len(run.texts["before"]), len(texts)), kinds is run.clusters)
