"""Makes what the recipe `sequences` starts from: a model of the sequences in an assay file."""

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import annotated_types as at
import torch
from torch.optim import Adam

from difftilt.conditions import unconditional
from difftilt.data.assay import Assay, BadRows, read_assay
from difftilt.data.vocabulary import Vocabulary, listed
from difftilt.domains.card import command, made, said, shown
from difftilt.domains.sequences.model import bare, build, chain_of, load_sequences, network_for
from difftilt.domains.sequences.view import diversity, kmer_correlation, shares, word_length
from difftilt.evaluation.estimate import mean
from difftilt.networks.bundle import Numbers, save_bundle, user_folder
from difftilt.policy import rollout
from difftilt.processes.likelihood import elbo
from difftilt.processes.masked import MaskedPolicy
from difftilt.rewards.held_out import nearest as share_apart
from difftilt.settings import Count, Natural, Rate, Threads
from difftilt.shapes import PerSample, Sequences, Some
from difftilt.training.pretrain import explain
from difftilt.training.unfinished import Unfinished

FEWEST = 30  # different sequences; of fewer, too few are held out to say anything
PART = 10  # one sequence in so many is held out, and as many choose the best step
MOST = 2000  # sequences of either
TIMES = 20  # that the bound is measured while training
DRAWS = 500  # of noise, over which a bound is averaged
BEST = 0.1  # share of the sequences with a score that are called the best


def pretrain_sequences(
    data: Path,
    out: Path | None = None,
    sequence: str | None = None,
    score: str | None = None,
    alphabet: str | None = None,
    bad_rows: BadRows = "stop",
    steps: Annotated[int, at.Ge(TIMES)] = 1000,
    batch: Count = 256,
    learning_rate: Rate = 3e-3,
    width: Count | None = None,
    threads: Threads = 1,
    seed: Natural = 0,
) -> None:
    """Trains a model of the sequences in a table or FASTA file, and measures it on sequences held out.

    Commas, semicolons, tabs or blanks separate cells; the file may be packed by gzip, bzip2, xz or zip.
    Sequences may differ in length. Scores are not learned here, and may be missing.

    Args:
        data: The file.
        out: The folder to write; an existing one is replaced once all is done. By default the one that the
            recipe reads, ~/.cache/difftilt/models/sequences.
        sequence: Column of the sequences; found by its name or by what it holds if not given.
        score: Column of the scores; found likewise.
        alphabet: dna, rna, protein, or a file of tokens with blanks between them; found likewise.
        bad_rows: What to do if rows cannot be used: stop and tell of all, or drop them.
        steps: Gradient steps, at least 20; the weights of the step that explains sequences best from which
            nothing was learned are kept.
        batch: Sequences per gradient step.
        learning_rate: The highest of the schedule.
        width: Units per layer of the network; by default 64, or 32 for sequences of more than 20 tokens.
        threads: CPU threads of torch; a second one costs more than it brings if the other core is busy.
        seed: Of weights and training; the split of the data is always the same.
    """
    torch.set_num_threads(threads)
    assay = _read(data, sequence, score, alphabet, bad_rows)
    vocabulary = assay.vocabulary()
    x = vocabulary.encode(assay.sequences)
    held_out, checked, learned = split_rows(x)
    network = network_for(vocabulary, width)
    torch.manual_seed(seed)
    settings = {
        **said(sequence=sequence, score=score, alphabet=alphabet, bad_rows=bad_rows, width=width),
        **said(steps=steps, batch=batch, learning_rate=learning_rate, seed=seed),
    }
    out = out or user_folder("sequences")
    kept = Unfinished(out, settings, {"learned": learned, "checked": checked})
    chain = chain_of(build(network, vocabulary), vocabulary)
    train(chain, learned, checked, Adam(chain.parameters(), learning_rate), steps, batch, kept, seed=seed)
    about = made(settings, kept.seconds(), threads, torch.__version__)
    config = {"vocabulary": dataclasses.asdict(vocabulary), "network": network, "made": about}

    def judge(folder: Path) -> tuple[Numbers, str]:
        found = quality(folder, held_out, torch.cat([learned, checked]))
        return found, card(assay, vocabulary, str(data), about, found)

    compared = {"all": held_out, **best(assay, x)}
    save_bundle(out, {"model": bare(chain)}, config, judge, {"measured": compact(compared)})
    kept.remove()
    print(f"model, and its card README.md: {out}")


def _read(data: Path, *given: Any) -> Assay:
    """Reads data, says what was understood, and refuses those of which too little could be held out."""
    assay = read_assay(data, *given)
    print(*assay.understood, sep="\n")
    if len(assay.sequences) < FEWEST:
        raise ValueError(
            f"{data} holds {len(assay.sequences)} different sequences, but at least {FEWEST} are needed, some"
            " of which are held out"
        )
    return assay


def compact(rows: Mapping[str, Sequences]) -> dict[str, Sequences]:
    """Tokens as they are kept beside a model."""
    return {name: x.to(torch.int16) for name, x in rows.items()}


def split_rows(x: Sequences) -> Iterator[Sequences]:
    """What is held out, what chooses the best step, and what is learned from."""
    part = min(max(len(x) // PART, 3), MOST)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return (x[rows] for rows in order.split([part, part, len(x) - 2 * part]))


def best(assay: Assay, x: Sequences) -> dict[str, Sequences]:
    """The sequences with the highest scores, if enough have any."""
    rows = (assay.count > 0).nonzero()[:, 0]
    order = rows[assay.score[rows].argsort(descending=True)][: round(BEST * len(rows))]
    return {"best": x[order[:MOST]]} if len(order) >= 3 else {}


class _Best:
    """The weights of a chain with which it explained sequences best."""

    def __init__(self, chain: MaskedPolicy):
        self._chain, self._lowest, self._weights = chain, float("inf"), copy.deepcopy(chain.state_dict())

    def look(self, missing: float) -> None:
        """Keeps the weights that the chain has now if it misses fewer nats than before."""
        if missing < self._lowest:
            self._lowest, self._weights = missing, copy.deepcopy(self._chain.state_dict())

    def state_dict(self) -> dict[str, Any]:
        return {"lowest": self._lowest, "weights": self._weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._lowest, self._weights = state["lowest"], state["weights"]


def train(
    chain: MaskedPolicy,
    data: Sequences,
    checked: Sequences,
    optimizer: torch.optim.Optimizer,
    steps: int,
    batch: int,
    kept: Unfinished,
    *,
    even: bool = False,
    seed: int = 0,
) -> None:
    """Teaches a chain to explain the data, and leaves it as it explained other sequences best.

    Args:
        even: As for `explain`.
    """
    best, cond = _Best(chain), unconditional(len(data))
    loop = partial(explain, chain, data, cond, batch=batch, even=even, seed=seed)
    for row in kept.rows("model", loop, optimizer, steps, chain=chain, best=best):
        if (int(row["step"]) + 1) % (steps // TIMES) == 0:
            torch.manual_seed(seed)
            best.look(-bound(chain, checked).mean().item())
    chain.load_state_dict(best.state_dict()["weights"])


@torch.no_grad()
def bound(chain: MaskedPolicy, x: Sequences) -> PerSample:
    """The evidence lower bound of each sequence in nats, averaged over draws of the noise."""
    times = max(1, DRAWS // len(x))
    every = x.repeat_interleave(times, 0)
    found = [elbo(chain, part, unconditional(len(part))) for part in every.split(500)]
    return torch.cat(found).view(len(x), times).mean(1)


@torch.no_grad()
def quality(folder: Path, held_out: Sequences, data: Sequences, seed: int = 0) -> Numbers:
    """What the model card states, measured on sequences held out. Each with its standard error.

    Args:
        data: All other sequences.
    """
    torch.manual_seed(seed)
    network, vocabulary = load_sequences(folder)
    chain, count = chain_of(network, vocabulary), len(vocabulary.alphabet)
    drawn = rollout(chain, unconditional(max(min(len(held_out), 500), 100))).sample
    known = set(vocabulary.spell(data))
    sets = {"held out": held_out, "drawn": drawn}
    k, letters, end = word_length(vocabulary), len(vocabulary.letters), count > len(vocabulary.letters)
    return {
        "held_out": len(held_out),
        "drawn": len(drawn),
        "k": k,
        "bound": mean(-bound(chain, held_out)),
        "independent": mean(-independent(held_out, data, count)),
        "words": {name: kmer_correlation(x, data, letters, k, end) for name, x in sets.items()},
        "nearest": {name: mean(nearest(x, data, count)) for name, x in sets.items()},
        "diversity": {name: diversity(x) for name, x in sets.items()},
        "length": {name: mean((x < letters).double().sum(1)) for name, x in sets.items()},
        "new": sum(text not in known for text in vocabulary.spell(drawn)) / len(drawn),
    }


def independent(x: Sequences, data: Sequences, categories: int) -> Some:
    """log p of sequences in nats if positions do not know of each other, by the shares in the data.

    Each token counts half a time more than it occurs, so that none is impossible.
    """
    n = len(data)
    log_p = ((n * shares(data, categories) + 0.5) / (n + 0.5 * categories)).log()
    return log_p.expand(len(x), -1, -1).gather(2, x[..., None])[..., 0].sum(1)


def nearest(x: Sequences, data: Sequences, categories: int) -> Some:
    """At how many positions each sequence differs from the nearest one of the data."""
    return (x.shape[1] * share_apart(x, data, categories)).round().double()


def card(assay: Assay, vocabulary: Vocabulary, data: str, about: Numbers, found: Numbers) -> str:
    """The model card, in Markdown."""
    seen = shown(found)
    rows = (
        f"| {label.format(**found)} | {seen[key]['held out']} | {seen[key]['drawn']} |"
        for label, key in TABLE
    )
    understood = "\n".join(f"- {line}" for line in assay.understood)
    return CARD.format(
        understood=understood, letters=listed(vocabulary.letters), rows="\n".join(rows), **about, **seen,
        command=command(["sequences", "--data", data], about), new_share=f"{found['new']:.0%}",
    )  # fmt: skip


TABLE = (
    ("correlation of {k}-mers with the data", "words"),
    ("positions that differ from the nearest sequence of the data", "nearest"),
    ("share of positions at which two sequences differ", "diversity"),
    ("letters", "length"),
)
CARD = """# Sequences: a masked diffusion model

{understood}
- letters: {letters}

`model.safetensors` holds the network, float16 on disk and float32 in memory; `measured.safetensors` the
sequences that were held out (`all`), and the tenth with the highest scores (`best`), to compare with.

## How it was made

    {command}

{processor_seconds} s of processor time, CPU threads: {threads}, torch {torch}.

## How good it is

Measured on {held_out} sequences held out, from which nothing was learned. Errors are standard errors.
The model's evidence lower bound says at most {bound} nats per sequence; letters that do not know of each
other, with the shares that they have at each position of the data, say {independent}.

{drawn} sequences were drawn; {new_share} of them do not stand in the data.

| | held out | drawn |
| --- | --- | --- |
{rows}

Sequences that are nearer to the data than those held out, or that stand in it more often, were learned by
heart; such that are farther, or whose words differ, were learned badly.
"""
