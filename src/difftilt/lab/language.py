"""What a lab proposes: how it is read, told apart and learned from. Sequences of letters, or molecules.

Points are rows of whole numbers that stand for texts: the tokens of a sequence, or the counts of a molecule's
fingerprint.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from difftilt.data.assay import Assay, BadRows, read_assay
from difftilt.data.chemistry import NoMoleculeError
from difftilt.data.columns import cell_of, cleaned, sequence_column
from difftilt.data.molecules import cleaned_smiles, read_molecule_assay
from difftilt.data.store import naming
from difftilt.data.tables import Table
from difftilt.data.vocabulary import END, Letters, Vocabulary, split
from difftilt.experiment.fit_reward import learner_of
from difftilt.lab.edits import apart
from difftilt.rewards.ensemble import Ensemble, EnsembleNetwork
from difftilt.rewards.learned import Belief, Prediction
from difftilt.rewards.molecule import read_or_none
from difftilt.rewards.molecule_prints import prints
from difftilt.shapes import Sample, Sequences

WORST = 4.0  # standard deviations below the mean of all labels, that what is no molecule is worth
Saved = Letters | Literal["smiles"]  # in the file of a lab


@runtime_checkable
class Language(Protocol):
    """What a lab needs to know of texts.

    Attributes:
        unit: Of distances, which are whole numbers.
        near: The distance in which any two of a batch differ, unless another one is asked for.
        kind: The ending of the files that list texts.
    """

    unit: str
    near: int
    kind: str

    def saved(self) -> Any:
        """For the file of a lab; see `language_of`."""
        ...

    def measured(self, path: Path, column: str | None, score: str | None, bad_rows: BadRows) -> Assay:
        """What a table says of texts that can be learned from."""
        ...

    def column(self, header: list[str], body: Table, asked: str | None) -> int:
        """Which column of a table holds texts."""
        ...

    def cleaned(self, cell: str) -> str:
        """A cell as the lab writes that text; anything else if it is none."""
        ...

    def writes(self, text: str) -> bool:
        """Whether a text may be one of the lab's."""
        ...

    def read(self, texts: Sequence[str]) -> Sequences:
        """The points of texts."""
        ...

    def drawn(self, sample: Sequences) -> tuple[Sequences, Sequences]:
        """The points of what a chain draws, and the draws themselves, without those that are no text."""
        ...

    def same(self, points: Sequences) -> list[Sequences]:
        """All points that stand for the same: these, and their like."""
        ...

    def apart(self, x: Sequences, y: Sequences) -> Tensor:
        """How far each point of x is from each of y, as (x, y)."""
        ...

    def learner(self, **settings: int) -> Ensemble:
        """What learns from points."""
        ...

    def belief(self, network: EnsembleNetwork, scale: float) -> Belief:
        """What a learned network says of what a chain draws."""
        ...

    def listed(self, named: Sequence[tuple[str, str]]) -> str:
        """The file that lists texts with their names."""
        ...


@dataclass(frozen=True)
class SequenceLanguage:
    """Sequences of letters; far is how many differ: substitutions where all have one length, else edits.

    Args:
        both_strands: A sequence and its reverse complement, of DNA in the order A, C, G, T, are the same.
    """

    vocabulary: Vocabulary
    both_strands: bool = False
    unit = "letters"
    near = 2
    kind = "fasta"

    def saved(self) -> Any:
        return asdict(self.vocabulary)

    def measured(self, path: Path, column: str | None, score: str | None, bad_rows: BadRows) -> Assay:
        assay = read_assay(path, column, score, self.vocabulary.letters, bad_rows)
        with naming(path):
            return _writable(assay, self.vocabulary, bad_rows)

    def column(self, header: list[str], body: Table, asked: str | None) -> int:
        return sequence_column(header, body, asked, self.vocabulary.letters)

    def cleaned(self, cell: str) -> str:
        return cleaned(cell, self.vocabulary.letters)

    def writes(self, text: str) -> bool:
        found = split(text, self.vocabulary.letters)
        return found is not None and self.vocabulary.shortest <= len(found) <= self.vocabulary.longest

    def read(self, texts: Sequence[str]) -> Sequences:
        return self.vocabulary.encode(texts)

    def drawn(self, sample: Sequences) -> tuple[Sequences, Sequences]:
        return sample, sample

    def same(self, points: Sequences) -> list[Sequences]:
        mirrored = (len(self.vocabulary.letters) - 1 - points).flip(1)
        return [points, mirrored] if self.both_strands else [points]

    def apart(self, x: Sequences, y: Sequences) -> Tensor:
        end = len(self.vocabulary.letters) if END in self.vocabulary.alphabet else None
        return torch.stack([apart(x, other, end) for other in self.same(y)]).amin(0)

    def learner(self, **settings: int) -> Ensemble:
        return learner_of(self.vocabulary, None, self.both_strands, **settings)

    def belief(self, network: EnsembleNetwork, scale: float) -> Belief:
        return network.belief(scale)

    def listed(self, named: Sequence[tuple[str, str]]) -> str:
        return "".join(f">{name}\n{text}\n" for name, text in named)


@dataclass(frozen=True)
class MoleculeLanguage:
    """Molecules as SMILES without stereochemistry; far is the Tanimoto distance of fingerprints, in percent.

    Args:
        spell: Writes what a chain draws; needed where one draws.
    """

    spell: Callable[[Sample], list[str]] | None = None
    unit = "percent of Tanimoto distance"
    near = 30
    kind = "smi"

    def saved(self) -> Any:
        return "smiles"

    def measured(self, path: Path, column: str | None, score: str | None, bad_rows: BadRows) -> Assay:
        return read_molecule_assay(path, column, score, bad_rows)

    def column(self, header: list[str], body: Table, asked: str | None) -> int:
        if asked in header:
            return header.index(asked or "")
        held = [
            sum(self.writes(self.cleaned(cell_of(row, place))) for row in body.rows)
            for place in range(len(header))
        ]
        if asked is not None or not any(held):
            raise ValueError(f"no column holds SMILES ({', '.join(header)[:200]}): name it with --sequence")
        return held.index(max(held))

    def cleaned(self, cell: str) -> str:
        try:
            return cleaned_smiles(cell)
        except NoMoleculeError:
            return cell

    def writes(self, text: str) -> bool:
        return read_or_none(text) is not None

    def read(self, texts: Sequence[str]) -> Sequences:
        return prints(texts)

    def drawn(self, sample: Sequences) -> tuple[Sequences, Sequences]:
        texts = self.spell(sample) if self.spell is not None else []
        rows = [row for row, text in enumerate(texts) if self.writes(text)]
        return prints([texts[row] for row in rows]), sample[torch.tensor(rows, dtype=torch.long)]

    def same(self, points: Sequences) -> list[Sequences]:
        return [points]

    def apart(self, x: Sequences, y: Sequences) -> Tensor:
        total = x.sum(1)[:, None] + y.sum(1)
        different = torch.cdist(x.float(), y.float(), p=1)  # as max = (total + different) / 2
        return (200 * different / (total + different).clamp(min=1)).round().long()

    def learner(self, **settings: int) -> Ensemble:
        return learner_of(None, None, False, **settings)

    def belief(self, network: EnsembleNetwork, scale: float) -> Belief:
        """What is no molecule is believed to be `WORST`, and surely so."""

        def predict(sample: Sample) -> Prediction:
            texts = self.spell(sample) if self.spell is not None else []
            fit = [self.writes(text) for text in texts]
            # what is none is predicted as any other, and then replaced
            named = [text if fits else "C" for text, fits in zip(texts, fit, strict=True)]
            found, valid = network.predict(prints(named)), torch.tensor(fit, dtype=torch.bool)
            worst, none = network.shift - WORST * network.unit, torch.zeros_like(found.std)
            return Prediction(
                torch.where(valid, found.mean, worst),
                torch.where(valid, found.std, none),
                torch.where(valid, found.noise, none),
                torch.where(valid, found.members, worst),
            )

        return Belief(predict, scale, len(network.mean))

    def listed(self, named: Sequence[tuple[str, str]]) -> str:
        return "".join(f"{text}\t{name}\n" for name, text in named)


def language_of(saved: Saved, both_strands: bool) -> Language:
    """The language that the file of a lab names.

    Raises:
        ValueError: If its letters make no vocabulary.
    """
    if isinstance(saved, str):
        return MoleculeLanguage()
    return SequenceLanguage(Vocabulary.of(saved), both_strands)


def _writable(assay: Assay, vocabulary: Vocabulary, bad_rows: BadRows) -> Assay:
    """The part of an assay that a model can write.

    Raises:
        ValueError: If that is not all, and nothing is to be dropped.
    """
    sizes = [len(split(text, vocabulary.letters) or "") for text in assay.sequences]
    fits = [vocabulary.shortest <= size <= vocabulary.longest for size in sizes]
    if all(fits):
        return assay
    if bad_rows == "stop":
        raise ValueError(
            f"{fits.count(False):,} of {len(fits):,} sequences have other lengths than the model writes,"
            f" {vocabulary.shortest} to {vocabulary.longest}, first"
            f" {assay.sequences[fits.index(False)][:60]}. Pretrain the model on"
            " them, too, or leave them out with --bad-rows drop"
        )
    rows = torch.tensor(fits)
    kept = [text for text, fit in zip(assay.sequences, fits, strict=True) if fit]
    numbers = {name: getattr(assay, name)[rows] for name in ("score", "error", "count")}
    return dataclasses.replace(assay, sequences=kept, **numbers)
