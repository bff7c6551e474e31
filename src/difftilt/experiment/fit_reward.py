"""A reward of sequences or molecules is learned of measurements, and judged on such that it has not seen."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import annotated_types as at
import torch

from difftilt.data.assay import Assay, BadRows, read_assay
from difftilt.data.molecules import names_molecules, read_molecule_assay
from difftilt.data.store import naming
from difftilt.data.vocabulary import DNA, RNA, Vocabulary, listed
from difftilt.networks.bundle import Numbers
from difftilt.rewards.ensemble import Ensemble
from difftilt.rewards.held_out import Judgement, best_tenth, cross_validated, judge, most_remote_tenth
from difftilt.rewards.learned import Labels
from difftilt.rewards.molecule_prints import WIDE, prints
from difftilt.rewards.saved import LearnedReward, save_reward
from difftilt.settings import Natural, NonNegative, Threads, UsageError

SMILES = "smiles"  # the alphabet of molecules
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
    sequence: str | None = None,
    score: str | None = None,
    alphabet: str | None = None,
    bad_rows: BadRows = "stop",
    beta: NonNegative = 0.0,
    window: Natural | None = None,
    both_strands: bool = False,
    members: Annotated[int, at.Ge(2)] = 8,
    steps: Annotated[int, at.Ge(1)] = 250,
    seed: Natural = 0,
    threads: Threads = 1,
    anyway: bool = False,
) -> dict[str, Judgement]:
    """Learns a reward of sequences or molecules from a table of measurements, for --reward learned:DIR.

    Args:
        data: A table or FASTA, packed or not: sequences of any length, or SMILES, and what was measured of
            them, the higher the better. Measurements of one sequence are averaged; molecules are told apart
            without stereochemistry, and salts by their largest part.
        out: The folder to write.
        sequence: Column of the sequences, by name or number; found if not given.
        score: Column of the scores; found if not given.
        alphabet: `dna`, `rna`, `protein`, `smiles` for molecules, or a file of letters; found if not given,
            molecules by a column that is called SMILES.
        bad_rows: `stop` tells of all rows that cannot be used; `drop` leaves them out.
        beta: The reward is mean - beta std: 0 trusts the mean, 1 and more are careful where labels are few.
        window: Letters of the filters that find motifs wherever they are, 0 for none; by default 6 where
            sequences are longer than that.
        both_strands: A DNA sequence and its reverse complement share their reward; of one length only.
        members: Networks of the ensemble.
        steps: Of training.
        seed: Random seed, at least 0.
        threads: Of the processor.
        anyway: Write a reward also where the labels that were held out say that there is nothing to learn.
    """
    torch.set_num_threads(threads)
    assay = _assay(data, sequence, score, alphabet, bad_rows)
    print(*assay.understood, sep="\n")
    with naming(data):
        labels, vocabulary = read_labels(assay)
        learner = learner_of(vocabulary, window, both_strands, members=members, steps=steps, seed=seed)
        scale, at_random = cross_validated(learner, labels, seed)
    _refuse_noise(at_random, anyway)
    found = {"at random": at_random, **_elsewhere(learner, labels, scale)}
    own = vocabulary
    spelled = ("", 0, WIDE) if own is None else ("".join(own.letters), own.shortest, own.longest)
    best = labels.score.max().item()
    optimism = at_random.optimism
    reward = LearnedReward(learner.taught(labels), learner, *spelled, scale, beta, best, optimism)
    about = {
        "labels": len(labels),
        "data": data.name,
        "understood": list(assay.understood[1:]),
        "torch": torch.__version__,
    }
    measured = {name: dataclasses.asdict(row) for name, row in found.items()}
    save_reward(out, reward, about, lambda _: (measured, card(reward, about, found)))
    return found


def _assay(
    data: Path, sequence: str | None, score: str | None, alphabet: str | None, bad_rows: BadRows
) -> Assay:
    if alphabet == SMILES or (alphabet is None and names_molecules(data)):
        return read_molecule_assay(data, sequence, score, bad_rows)
    return read_assay(data, sequence, score, alphabet, bad_rows)


def _elsewhere(learner: Ensemble, labels: Labels, scale: float) -> dict[str, Judgement]:
    """How good a belief is of labels unlike those that it learned from."""
    remote = most_remote_tenth(labels, learner.categories)
    found = {}
    for name, (rest, held_out) in {"best tenth": best_tenth(labels), "most remote tenth": remote}.items():
        belief = dataclasses.replace(learner.fit(labels.take(rest)), scale=scale)
        found[name] = judge(belief, labels.take(held_out))
    return found


def learner_of(
    vocabulary: Vocabulary | None, window: int | None = None, both_strands: bool = False, **settings: int
) -> Ensemble:
    """The ensemble that suits sequences, or molecules.

    Args:
        vocabulary: Of the sequences; None for molecules as `prints`.
        window: As for `fit_reward`.
        both_strands: As for `fit_reward`.
        settings: Others of the ensemble.

    Raises:
        ValueError: If both strands cannot be read.
    """
    if vocabulary is None:
        if window or both_strands:
            raise UsageError("molecules have no motifs and no strands; leave these options out")
        return Ensemble(0, window=0, both_strands=False, **settings)
    if both_strands and vocabulary.alphabet != tuple(DNA):
        raise ValueError(
            f"both strands are read of DNA of one length, but got {vocabulary.shortest} to"
            f" {vocabulary.longest} letters of {listed(vocabulary.letters)}; leave that option out"
        )
    window = (WINDOW if vocabulary.longest > WINDOW else 0) if window is None else window
    return Ensemble(len(vocabulary.alphabet), window=window, both_strands=both_strands, **settings)


def read_labels(assay: Assay) -> tuple[Labels, Vocabulary | None]:
    """Measured sequences as tokens with their mean scores, and what spells them; DNA stands for RNA.

    Molecules are `prints`, and nothing spells them.

    Raises:
        ValueError: If tokens have several letters, or nothing was measured.
    """
    if "".join(assay.letters) in (DNA, RNA):
        assay = dataclasses.replace(
            assay, letters=tuple(DNA), sequences=[w.replace("U", "T") for w in assay.sequences]
        )
    if not all(len(letter) == 1 for letter in assay.letters):
        raise ValueError(
            f"a reward is learned of tokens of one letter, but got {listed(assay.letters)}; give --alphabet a"
            " file of single letters"
        )
    measured = assay.count > 0
    words = [word for word, known in zip(assay.sequences, measured.tolist(), strict=True) if known]
    if not words:
        raise ValueError("a reward is learned of scored sequences, but got no scores; name them with --score")
    score = assay.score[measured].float()
    if not assay.letters:
        return Labels(prints(words), score), None
    vocabulary = assay.vocabulary()
    return Labels(vocabulary.encode(words), score), vocabulary


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
        kind=_kind_of(reward),
        settings=json.dumps(dataclasses.asdict(reward.learner)),
        understood="; ".join(about["understood"]),
    )  # fmt: skip


def _kind_of(reward: LearnedReward) -> str:
    if not reward.alphabet:
        return f"molecules, as {reward.length} counts of Morgan fingerprints,"
    return f"{' to '.join(map(str, sorted({reward.shortest, reward.length})))} letters ({reward.alphabet})"


CARD = """# A learned reward

{about[labels]} labels of {kind} in {about[data]}
({understood}). The reward is {bound} of an ensemble:
`{settings}`, torch {about[torch]}.

{table}

{told}

Errors are root mean squares in units of the score. The standard deviations are scaled by {reward.scale:.3f},
so that 90 % intervals hold nine in ten of the labels that were held out at random; where the other two rows
hold fewer, the reward is surer than it should be of what was not measured.
"""
