"""What is measured of a model of molecules, and its card."""

import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from difftilt.conditions import unconditional
from difftilt.data.chemistry import canonical
from difftilt.domains.card import command, shown
from difftilt.domains.molecules.model import chain_of, free_chain, load_molecules
from difftilt.domains.molecules.view import (
    PROPERTIES,
    internal_diversity,
    properties,
    wasserstein,
)
from difftilt.domains.sequences.pretrain import bound, independent
from difftilt.evaluation.estimate import Estimate, mean
from difftilt.networks.bundle import Numbers
from difftilt.policy import rollout
from difftilt.processes.masked import MaskedPolicy
from difftilt.rewards.molecule import molecule, readable, scaffold
from difftilt.shapes import PerSample, Sequences

PART = 200  # molecules drawn at a time
SCAFFOLDS = 50_000  # molecules learned from whose scaffolds are known


def quality(
    folder: Path, held_out: Sequences, learned: Sequences, data: set[str], drawn: int, seed: int = 0
) -> Numbers:
    """What the model card states, each number with its standard error where it has one.

    Args:
        learned: Rows of tokens that the model learned from.
        data: The SMILES that the model could learn from, as RDKit writes them.
        drawn: Molecules to draw.
    """
    torch.manual_seed(seed)
    network, writing = load_molecules(folder)
    chain, free = chain_of(network, writing), free_chain(network, writing)
    busy = time.process_time()
    texts = writing.spell(drawn_in_parts(chain, drawn))
    speed = drawn / (time.process_time() - busy)
    found, alone = readable(texts), readable(writing.spell(drawn_in_parts(free, drawn)))
    written, outside = [canonical(one) for one in found], [molecule(text) for text in writing.spell(held_out)]
    known = {scaffold(molecule(text)) for text in sorted(data)[:: max(1, len(data) // SCAFFOLDS)]}
    scaffolds = {scaffold(one) for one in found}
    expected, values = properties(outside), properties(found)
    sets = {"held out": expected, "drawn": values, "free": properties(alone)}
    return {
        "held_out": len(held_out),
        "drawn": drawn,
        "samples_per_second": round(speed, 1),
        "bound": mean(-_bound(chain, held_out, seed)),
        "bound_free": mean(-_bound(free, held_out, seed)),
        "independent": mean(-independent(held_out, learned, len(writing.alphabet))),
        "valid": _share(len(found), drawn),
        "valid_free": _share(len(alone), drawn),
        "unique": len(set(written)) / max(len(written), 1),
        "new": sum(text not in data for text in set(written)) / max(len(set(written)), 1),
        "scaffolds": len(scaffolds),
        "known_scaffolds": len(known),
        "new_scaffolds": len(scaffolds - known) / max(len(scaffolds), 1),
        "diversity": {"held out": internal_diversity(outside), "drawn": internal_diversity(found)},
        "means": {name: {key: mean(x[name]) for key, x in sets.items()} for name in PROPERTIES},
        "wasserstein": {
            name: {
                "held out": wasserstein(expected[name][::2], expected[name][1::2]),
                "drawn": wasserstein(values[name], expected[name]),
            }
            for name in PROPERTIES
        },
    }


def drawn_in_parts(chain: MaskedPolicy, count: int) -> Sequences:
    """Samples, drawn some at a time."""
    return torch.cat([rollout(chain, unconditional(PART)).sample for _ in range(-(-count // PART))])[:count]


def _bound(chain: MaskedPolicy, x: Sequences, seed: int) -> PerSample:
    """The bound of each molecule, by the same draws of noise whichever the chain is."""
    torch.manual_seed(seed)
    return bound(chain, x)


def _share(hits: int, count: int) -> Estimate:
    return mean((torch.arange(count) < hits).double())


def card(understood: Sequence[str], source: Sequence[str], about: Numbers, found: Numbers) -> str:
    """The model card, in Markdown.

    Args:
        source: Options of pretraining that say which data it learned from.
    """
    seen = shown(found)
    rows = "\n".join(
        f"| {label} | {' | '.join(seen['means'][name][key] for key in ('held out', 'drawn', 'free'))} |"
        f" {_distance(found['wasserstein'][name]['drawn'])} |"
        f" {_distance(found['wasserstein'][name]['held out'])} |"
        for name, (label, _) in PROPERTIES.items()
    )
    shares = {name: f"{found[name]:.1%}" for name in ("unique", "new", "new_scaffolds")}
    return CARD.format(
        understood="\n".join(f"- {line}" for line in understood), rows=rows, **about, **(seen | shares),
        command=command(["molecules", *source], about),
        inside="{:.3f}".format(found["diversity"]["drawn"]),
        inside_held="{:.3f}".format(found["diversity"]["held out"]),
    )  # fmt: skip


def _distance(x: float) -> str:
    return "none" if math.isnan(x) else f"{x:.3g}"


CARD = """# Molecules: a masked diffusion model

{understood}

`model.safetensors` holds the network, float16 on disk and float32 in memory; `measured.safetensors` the
tokens of the molecules held out (`held_out`), and of some that were learned from (`known`), to compare with.

## How it was made

    {command}

{processor_seconds} s of processor time, CPU threads: {threads}, torch {torch}.

## How good it is

Measured on {held_out} molecules held out, from which nothing was learned. Errors are standard errors.
The evidence lower bound of the chain, which keeps to the grammar it knows, says at most {bound} nats per
molecule, and without the grammar {bound_free}; tokens that do not know of each other, with the shares that
they have at each position, say {independent}. A molecule has several SMILES, so these are bounds of the
molecule's own information, too.

{drawn} samples were drawn at temperature 1, {samples_per_second} a second of processor time. A share of
{valid} of **all** of them are molecules that RDKit reads. Of these, {unique} are unique, and {new} of the
unique ones do not stand in the data. They have {scaffolds} different scaffolds, of which {new_scaffolds} are
none of the {known_scaffolds} scaffolds of molecules learned from that were looked at.
Their mean Tanimoto distance from each other is {inside}; held out it is {inside_held}.

As many drawn without the grammar are molecules in a share of {valid_free}: the grammar completes what would
have been none, which is more often a molecule than one like those of the data.

| property | held out | drawn | drawn without grammar | Wasserstein distance | of two halves held out |
| --- | --- | --- | --- | --- | --- |
{rows}
"""
