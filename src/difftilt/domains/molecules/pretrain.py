"""Makes the model that the recipe `molecules` starts from: of drug-like molecules, or of your own."""

import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import annotated_types as at
import torch

from difftilt.data.assay import BadRows
from difftilt.data.libraries import load_moses
from difftilt.data.molecules import read_molecules
from difftilt.domains.card import made, said
from difftilt.domains.molecules.card import card, quality
from difftilt.domains.molecules.model import NETWORK, build, config_of, free_chain, load_molecules
from difftilt.domains.molecules.notation import Notation, Writing, written
from difftilt.domains.molecules.tokens import learn_pieces
from difftilt.domains.sequences.pretrain import FEWEST, TIMES, compact, split_rows, train
from difftilt.networks.bundle import Numbers, save_bundle
from difftilt.networks.constraint import accepted
from difftilt.networks.sequence import Transformer
from difftilt.settings import Count, Natural, Rate, Threads, UsageError
from difftilt.shapes import Sequences
from difftilt.training.muon import Muon
from difftilt.training.unfinished import Unfinished

ADAM_RATE = 3e-3  # of embeddings, biases and outputs
MOST = 500_000  # molecules that are learned from
CHECKED = 500  # that choose the best step
KEPT = 10_000  # molecules learned from that are kept beside the model, to find the nearest of
HELD_OUT = 2000
NAMES = {"kekule": "Kekulé SMILES", "aromatic": "aromatic SMILES", "selfies": "SELFIES"}
NESTED = 0.999  # share of the molecules whose branches are nested no deeper than the grammar allows


@dataclass(frozen=True)
class Data:
    """Rows of tokens, and what was understood of where they come from."""

    learned: Sequences
    checked: Sequences
    held_out: Sequences
    understood: tuple[str, ...]


def pretrain_molecules(
    out: Path = Path("models/molecules"),
    data: Path | None = None,
    start: Path | None = None,
    column: str | None = None,
    bad_rows: BadRows = "stop",
    stereo: bool = False,
    notation: Notation | None = None,
    merges: Natural = 256,
    steps: Annotated[int, at.Ge(TIMES)] = 1400,
    batch: Count = 128,
    learning_rate: Rate = 0.02,
    drawn: Annotated[int, at.Ge(100)] = 1000,
    threads: Threads = 1,
    seed: Natural = 0,
) -> None:
    """Trains a model of molecules, and measures it on molecules held out.

    The molecules are those of MOSES (difftilt data fetch moses), or your own. Of salts and mixtures the
    largest part is learned. What is no molecule is told, with the first row of each kind of fault.

    Args:
        out: The folder to write; an existing one is replaced once all is done.
        data: A table or a list of SMILES, with or without a header, packed or not; rows that a column such as
            SPLIT calls test are held out, or else a tenth of all.
        start: The folder of a model whose tokens and weights to begin with, of MOSES for your own molecules,
            or to train it for longer. Molecules that its tokens cannot spell are left out.
        column: Of the SMILES; found by its name or by what it holds if not given.
        bad_rows: What to do if rows are no molecules: stop and tell of all, or drop them.
        stereo: Keep what your data say of stereochemistry; MOSES says nothing.
        notation: How the model writes molecules: `kekule`, SMILES with all double bonds, the default;
            `aromatic`, SMILES as RDKit writes them, of which fewer samples are molecules; or `selfies`, of
            which all are, but which are harder to learn. Files and samples are SMILES, whichever it is.
        merges: Pairs of tokens that become one; more make molecules shorter, and each token rarer.
        steps: Gradient steps, at least 20; the weights of the step that explains molecules best from which
            nothing was learned are kept.
        batch: Molecules per gradient step.
        learning_rate: The highest of Muon's schedule, for the matrices; all else has Adam's, 3e-3.
        drawn: Molecules that are drawn to measure the model, at least 100.
        threads: CPU threads of torch; a second one costs more than it brings if the other core is busy.
        seed: Of weights and training; the split of the data is always the same.
    """
    torch.set_num_threads(threads)
    texts, held_out, understood = _molecules(data, column, bad_rows, stereo)
    torch.manual_seed(seed)
    network, writing, spelled = _begun(texts, notation, merges, start)
    rows = _rows(spelled, held_out, writing, understood)
    settings: Numbers = {
        **said(start=start, column=column, bad_rows=data and bad_rows, notation=writing.notation),
        **said(merges=merges, steps=steps, batch=batch, learning_rate=learning_rate, seed=seed),
    }
    kept = Unfinished(out, settings, {"learned": rows.learned, "checked": rows.checked})
    chain, optimizer = free_chain(network, writing), Muon(network, learning_rate, ADAM_RATE)
    train(chain, rows.learned, rows.checked, optimizer, steps, batch, kept, even=True, seed=seed)
    about = made(settings, kept.seconds(), threads, torch.__version__)
    source = [] if data is None else ["--data", str(data), *(["--stereo"] if stereo else [])]

    def judge(folder: Path) -> tuple[Numbers, str]:
        found = quality(folder, rows.held_out, rows.learned, set(texts), drawn)
        return found, card(rows.understood, source, about, found)

    tensors = {"measured": compact({"known": rows.learned[:KEPT], "held_out": rows.held_out})}
    save_bundle(out, {"model": network}, config_of(network, writing, about), judge, tensors)
    kept.remove()
    print(f"model, and its card README.md: {out}; tune it with difftilt finetune molecules --model {out}")


def _begun(
    texts: list[str], notation: Notation | None, merges: int, start: Path | None
) -> tuple[Transformer, Writing, list[str]]:
    """A network to train, how it writes, and the molecules in its notation."""
    if start is not None:
        network, writing = load_molecules(start)
        if notation not in (None, writing.notation):
            raise UsageError(
                f"the model in {start} writes {writing.notation}, but --notation is {notation}; leave one out"
            )
        return network, writing, written(texts[:MOST], writing.notation)
    spelled = written(texts[:MOST], notation or "kekule")
    writing = Writing(learn_pieces(spelled, merges), _deepest(spelled), notation or "kekule")
    return build(writing, NETWORK), writing, spelled


def _molecules(
    data: Path | None, column: str | None, bad_rows: BadRows, stereo: bool
) -> tuple[list[str], list[str], tuple[str, ...]]:
    """SMILES to learn from, in random order, those held out, and what was understood."""
    if data is not None:
        found = read_molecules(data, column, bad_rows, stereo)
        texts, held_out, understood = found.smiles, found.held_out, found.understood
    else:
        texts, held_out = load_moses("train"), load_moses("test")
        understood = (f"MOSES: {len(texts):,} molecules to learn from, {len(held_out):,} held out",)
    print(*understood, sep="\n")
    for part in (texts, held_out):
        random.Random(0).shuffle(part)
    return texts, held_out[:HELD_OUT], understood


def _rows(spelled: list[str], held_out: list[str], writing: Writing, understood: tuple[str, ...]) -> Data:
    """The molecules that can be written, as tokens.

    Args:
        spelled: Those to learn from, in the notation.
        held_out: As SMILES.
    """
    x = _obeying(spelled, writing)
    line = (
        f"{len(x):,} molecules in rows of {writing.longest} of {len(writing.alphabet)} tokens of"
        f" {NAMES[writing.notation]}; {len(spelled) - len(x):,} others are too long, or have rare symbols,"
        " deeply nested branches or unusual bonds"
    )
    print(line)
    if held_out:
        outside = _obeying(written(held_out, writing.notation), writing)
        checked, learned = x.tensor_split([min(CHECKED, max(len(x) // 10, 3))])
    else:
        outside, checked, learned = split_rows(x)
    if min(len(learned), 10 * len(outside)) < FEWEST:
        raise ValueError(
            f"{len(learned)} molecules remain to learn from, and {len(outside)} to be held out, but at least"
            f" {FEWEST} and {FEWEST // 10} are needed; {line}"
        )
    return Data(learned, checked, outside, (*understood, line))


def _obeying(spelled: list[str], writing: Writing) -> Sequences:
    """Rows of those that the tokens can write, and that obey the grammar."""
    x = writing.pieces.encode(spelled)[0]
    for rule in (writing.grammar, writing.valences):
        x = x if rule is None else x[accepted(rule, x)]
    return x


def _deepest(texts: list[str]) -> int:
    """How deep the grammar lets branches be nested, which suits nearly all."""
    depths = Counter(map(_depth, texts))
    return next(
        depth
        for depth in range(max(depths) + 1)
        if sum(n for d, n in depths.items() if d <= depth) >= NESTED * depths.total()
    )


def _depth(text: str) -> int:
    """The most branches of a SMILES that are open at once."""
    depth = most = 0
    for sign in text:
        depth += (sign == "(") - (sign == ")")
        most = max(most, depth)
    return most
