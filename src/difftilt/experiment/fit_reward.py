"""A reward of sequences is learned from measurements, and judged on those that it has not seen."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import annotated_types as at
import torch

from difftilt.data.store import naming, numbers, read_table
from difftilt.data.vocabulary import DNA, PROTEIN, encode
from difftilt.networks.bundle import Numbers
from difftilt.rewards.ensemble import Ensemble
from difftilt.rewards.held_out import Judgement, best_tenth, cross_validated, judge, most_remote_tenth
from difftilt.rewards.learned import Labels
from difftilt.rewards.saved import LearnedReward, save_reward
from difftilt.settings import Natural, NonNegative, Threads

WINDOW = 6  # letters of a filter, where sequences are longer
LEAST_CORRELATION = 0.1  # on labels that were held out
SPLITS = {
    "at random": "labels like those that were measured",
    "best tenth": "what tuning asks for: scores above all that it learned from",
    "most remote tenth": "the labels whose nearest neighbour is farthest away",
}


def fit_reward(
    data: Path,
    out: Path = Path("runs/reward"),
    sequence: str = "sequence",
    score: str = "score",
    beta: NonNegative = 0.0,
    window: Natural | None = None,
    both_strands: bool = False,
    members: Annotated[int, at.Ge(2)] = 8,
    steps: Annotated[int, at.Ge(1)] = 250,
    seed: Natural = 0,
    threads: Threads = 1,
    anyway: bool = False,
) -> dict[str, Judgement]:
    """Learns a reward of sequences from a table of measurements, for --reward learned:DIR.

    Args:
        data: A table with a header: sequences of one length, each once, and what was measured of each, the
            higher the better.
        out: The folder to write.
        sequence: The column of sequences, in letters of DNA or RNA, or else of amino acids.
        score: The column of scores.
        beta: The reward is mean - beta std: 0 trusts the mean, 1 and more are careful where labels are few.
        window: Letters of the filters that find motifs wherever they are, 0 for none; by default 6 where
            sequences are longer than that.
        both_strands: A sequence and its reverse complement share their reward.
        members: Networks of the ensemble.
        steps: Of training.
        seed: Random seed, at least 0.
        threads: Of the processor.
        anyway: Write a reward also where the labels that were held out say that there is nothing to learn.
    """
    torch.set_num_threads(threads)
    labels, alphabet = read_labels(data, sequence, score)
    length = labels.sample.shape[1]
    window = (WINDOW if length > WINDOW else 0) if window is None else window
    learner = Ensemble(
        len(alphabet), members=members, window=window, both_strands=both_strands, steps=steps, seed=seed
    )
    scale, at_random = cross_validated(learner, labels, seed)
    found = {"at random": at_random}
    _refuse_noise(at_random, anyway)
    remote = most_remote_tenth(labels, len(alphabet))
    for name, (rest, held_out) in {"best tenth": best_tenth(labels), "most remote tenth": remote}.items():
        belief = dataclasses.replace(learner.fit(labels.take(rest)), scale=scale)
        found[name] = judge(belief, labels.take(held_out))
    reward = LearnedReward(learner.taught(labels), learner, alphabet, length, scale, beta)
    about = {
        "labels": len(labels),
        "data": data.name,
        "columns": [sequence, score],
        "torch": torch.__version__,
    }
    measured = {name: dataclasses.asdict(row) for name, row in found.items()}
    save_reward(out, reward, about, lambda _: (measured, card(reward, about, found)))
    return found


def read_labels(data: Path, sequence: str, score: str) -> tuple[Labels, str]:
    """Sequences as tokens with their scores, and the alphabet: DNA, U read as T, or else amino acids."""
    with naming(data):
        words, cells = read_table(data, (sequence, score))
        words = [word.upper() for word in words]
        nucleic = set("".join(words)) <= set("ACGTU")
        alphabet = DNA if nucleic else PROTEIN
        words = [word.replace("U", "T") for word in words] if nucleic else words
        tokens = encode(words, alphabet, unique=True, first=2)
        return Labels(tokens, torch.tensor(numbers(cells, score))), alphabet


def _refuse_noise(found: Judgement, anyway: bool) -> None:
    sure = max(LEAST_CORRELATION, 2 * found.correlation_se)
    if not anyway and not found.correlation >= sure:
        raise ValueError(
            f"of {found.count} labels that were held out, predictions and measurements correlate by"
            f" {found.correlation:.2f} ± {found.correlation_se:.2f}, but at least {sure:.2f} is needed to"
            " learn a reward; measure more or other sequences, or go on regardless with --anyway"
        )


def rows(found: dict[str, Judgement]) -> list[list[str]]:
    """What was measured, as cells: what was held out, how many, correlation, error and coverage."""
    return [
        [
            name,
            str(row.count),
            f"{row.correlation:.2f} ± {row.correlation_se:.2f}",
            f"{row.error:.3g}",
            f"{row.coverage:.2f}",
        ]
        for name, row in found.items()
    ]


HEAD = ["held out", "labels", "correlation", "error", "in 90 % intervals"]


def card(reward: LearnedReward, about: Numbers, found: dict[str, Judgement]) -> str:
    """The card of a learned reward, in Markdown."""
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in [HEAD, ["---"] * len(HEAD), *rows(found)])
    told = "\n".join(f"- *{name}*: {what}." for name, what in SPLITS.items())
    bound = f"mean - {reward.beta:g} std" if reward.beta else "the mean"
    return CARD.format(
        about=about, reward=reward, bound=bound, table=table, told=told,
        settings=json.dumps(dataclasses.asdict(reward.learner)),
    )  # fmt: skip


CARD = """# A learned reward

{about[labels]} labels of {reward.length} letters ({reward.alphabet}) in {about[data]}, columns
{about[columns][0]} and {about[columns][1]}. The reward is {bound} of an ensemble:
`{settings}`, torch {about[torch]}.

{table}

{told}

Errors are root mean squares in units of the score. The standard deviations are scaled by {reward.scale:.3f},
so that 90 % intervals hold nine in ten of the labels that were held out at random; where the other two rows
hold fewer, the reward is surer than it should be of what was not measured.
"""
