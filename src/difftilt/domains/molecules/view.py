"""Molecules as people read them, and what sets of them are judged by."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from difftilt.data.atomic import atomic_file
from difftilt.data.chemistry import canonical, rdkit
from difftilt.domains.molecules.notation import Writing
from difftilt.evaluation.estimate import jackknife, mean
from difftilt.evaluation.evaluate import ScoredSamples
from difftilt.experiment.job import View
from difftilt.rewards import molecule as scores
from difftilt.rewards.molecule import read_or_none
from difftilt.shapes import Cond, PerSample, Sequences, Some, State
from difftilt.transition import tokens

PROPERTIES: Mapping[str, tuple[str, Callable[[Any], float]]] = {
    "qed": ("QED", scores.qed),
    "sa": ("synthetic accessibility", scores.accessibility),
    "logp": ("logP", scores.logp),
    "mw": ("molecular weight", scores.weight),
    "rings": ("rings", scores.rings),
    "atoms": ("heavy atoms", scores.atoms),
}
RINGS: Mapping[str, Callable[[Any], float]] = {
    "aromatic rings": scores.aromatic_rings,
    "rings of neither 5 nor 6 atoms": scores.odd_rings,
}
COMPARED = 400  # molecules, between which distances are measured
PARTS = 10  # of a set, that the jackknife leaves out in turn
DRAWN, COLUMNS = 12, 4  # structures of a picture
WIDTH, HEIGHT = 220, 180  # of one of them, in pixels
NOTE = (
    "Wasserstein distances are between a property of the molecules among the samples and of the data,"
    " molecules that nothing was learned from; 0 for equal distributions. Shares are of all samples; those of"
    " unique ones and scaffolds, of the molecules among them. Samples that are no molecule count as such, and"
    " nowhere else."
)
KL_NOTE = (
    "It is that of the chains. Several texts are one molecule, and each can be drawn in many orders, so"
    " between the distributions of molecules the KL is at most this, and J with it at least the one shown."
)


@dataclass(frozen=True)
class Molecules:
    """How rows of tokens look as molecules.

    Args:
        known: Rows of molecules that the model learned from, among which the nearest one is looked for.
        held_out: Rows of such that it did not, whose properties are compared.
    """

    writing: Writing
    known: Sequences
    held_out: Sequences

    def view(self) -> View:
        """For a job."""
        return View(
            spell=self.spell,
            vocabulary="smiles",
            alike=scores.molecules_alike(self.spell),
            draw=self.draw,
            diversity=lambda sample: internal_diversity(self.read(sample)),
            distances=self.distances,
            distances_note=NOTE,
            family=self.family,
            kl_note=KL_NOTE,
        )

    def spell(self, sample: State) -> list[str]:
        """Each sample as SMILES, those of molecules as RDKit writes them."""
        return self.writing.spell(tokens(sample))

    def read(self, sample: State) -> list[Any]:
        """The molecules among the samples."""
        return [one for one in map(read_or_none, self.spell(sample)) if one is not None]

    def valid(self, sample: State, cond: Cond) -> PerSample:
        """1 for each sample that is a molecule, else 0."""
        return torch.tensor([float(read_or_none(text) is not None) for text in self.spell(sample)])

    def distances(self, sample: State) -> dict[str, tuple[float, float]]:
        """How the samples' molecules differ from the data, each number with its standard error."""
        found = self.read(sample)
        different, frames = len(set(map(canonical, found))), len(set(map(scores.scaffold, found)))
        shares = {
            "molecules": (len(found), len(sample)),
            "unique molecules": (different, len(found)),
            "scaffolds per molecule": (frames, len(found)),
        }
        rows = {name: _share(*counts) for name, counts in shares.items()}
        if len(found) < PARTS:
            return rows
        values = statistics(found)
        for name, expected in self.statistics.items():
            rows[f"mean {name} ({expected.mean():.3g} in the data)"] = mean(values[name])
        for title, _ in PROPERTIES.values():
            own, data = values[title], self.statistics[title]
            part = torch.arange(len(own)) % PARTS
            without = [wasserstein(own[part != one], data) for one in range(PARTS)]
            error = jackknife(torch.tensor(without)).sqrt().item()
            rows[f"Wasserstein distance of {title}"] = (wasserstein(own, data), error)
        return rows

    def family(self, sample: State) -> tuple[str, float, float] | None:
        """The scaffold that most of the samples' molecules have, their share of them, and its error."""
        found = largest_family(self.read(sample))
        return found and (f"molecules {_of(found[0])}", *_share(*found[1:]))

    @cached_property
    def statistics(self) -> dict[str, Some]:
        """Of the molecules held out."""
        return statistics(self.read(self.held_out))

    @cached_property
    def neighbours(self) -> list[str]:
        """The known molecules."""
        return [text for text in self.spell(self.known) if read_or_none(text) is not None]

    def draw(self, seen: ScoredSamples, path: Path) -> None:
        """Writes SMILES, an SDF file, structures, the best of each cluster, and histograms of properties."""
        texts, reward = self.spell(seen.sample), seen.reward.tolist()
        found = [read_or_none(text) for text in texts]
        rows = [row for row, one in enumerate(found) if one is not None]
        _write(path.with_suffix(".smi"), "".join(f"{texts[i]}\t{i + 1}\n" for i in rows))
        _write(path.with_suffix(".sdf"), sdf([found[i] for i in rows], [(i + 1, reward[i]) for i in rows]))
        legends = [
            f"{r:.3g}" if one is not None else "no molecule" for one, r in zip(found, reward, strict=True)
        ]
        _write(path.with_suffix(".svg"), structures(found[:DRAWN], legends[:DRAWN]))
        if len(rows) >= 2:
            scored = [(reward[i], found[i]) for i in rows]
            _write(path.with_name(f"{path.name}-best-of-each-cluster.svg"), self._best(scored))
            _write(path.with_name(f"{path.name}-largest-family.svg"), family(scored))
            self._histograms(path.with_name(f"{path.name}-properties.png"), [found[i] for i in rows])

    def _best(self, scored: Sequence[tuple[float, Any]]) -> str:
        """The best molecule of each cluster, and below each the nearest one of the data."""
        shown, legends, known = [], [], self.neighbours
        best = clusters(scored, 2 * COLUMNS)
        for row in range(0, len(best), COLUMNS):
            part = [*best[row : row + COLUMNS]] + [None] * max(row + COLUMNS - len(best), 0)
            shown += [one and one[1] for one in part]
            legends += [f"reward {one[0]:.3g}" if one else "" for one in part]
            for one in part:
                if one is None or not known:
                    shown.append(None)
                    legends.append("")
                    continue
                alike, place = scores.nearest(one[1], known)
                shown.append(scores.molecule(known[place]))
                legends.append(f"nearest known, {alike:.2f}")
        return structures(shown, legends)

    def _histograms(self, path: Path, found: Sequence[Any]) -> None:
        figure = Figure(figsize=(9, 4.6), layout="constrained")
        for number, (name, values) in enumerate(properties(found).items(), 1):
            title = PROPERTIES[name][0]
            axes, data = figure.add_subplot(2, 3, number), self.statistics[title]
            both = torch.cat([values, data])
            bins = torch.linspace(both.min().item(), both.max().item(), 26).tolist()
            for x, colour, label in ((data, "#b0b0b0", "data"), (values, "#2060c0", "samples")):
                axes.hist(x.tolist(), bins, density=True, alpha=0.6, color=colour, label=label)
            axes.set_xlabel(title)
            axes.set_yticks([])
        figure.axes[0].legend(frameon=False, fontsize="small")
        with atomic_file(path) as file:
            figure.savefig(file, format="png", dpi=110)


def clusters(scored: Sequence[tuple[float, Any]], most: int) -> list[tuple[float, Any]]:
    """Molecules with their rewards, best first, of which each is apart from all better ones shown."""
    best, prints = [], []
    for reward, one in sorted(scored, key=lambda pair: -pair[0]):
        own = scores.fingerprint(one)
        if len(best) < most and all(
            s <= 1 - scores.APART for s in rdkit("DataStructs").BulkTanimotoSimilarity(own, prints)
        ):
            best.append((reward, one))
            prints.append(own)
    return best


def largest_family(molecules: Sequence[Any]) -> tuple[str, int, int] | None:
    """The scaffold of most molecules, how many have it, and how many molecules there are; None of none."""
    counts = Counter(map(scores.scaffold, molecules)).most_common(1)
    return (*counts[0], len(molecules)) if counts else None


def family(scored: Sequence[tuple[float, Any]]) -> str:
    """The scaffold of the largest family, and different molecules of it, best first, as SVG."""
    found = largest_family([one for _, one in scored])
    kept, count, total = found or ("", 0, 0)
    members = {canonical(one): (r, one) for r, one in scored if scores.scaffold(one) == kept}
    best = sorted(members.values(), key=lambda pair: -pair[0])[: 2 * COLUMNS - 1]
    head = scores.molecule(kept) if kept else None
    said = f"largest family, {count / max(total, 1):.0%}"
    return structures([head, *(one for _, one in best)], [said, *(f"reward {r:.3g}" for r, _ in best)])


def structures(molecules: Sequence[Any], legends: Sequence[str]) -> str:
    """A grid of structures as SVG; None is a place that stays empty."""
    shown = [rdkit("Chem").Mol() if one is None else one for one in molecules]
    rows = -(-len(shown) // COLUMNS)
    canvas = rdkit("Chem.Draw.rdMolDraw2D").MolDraw2DSVG(COLUMNS * WIDTH, rows * HEIGHT, WIDTH, HEIGHT)
    canvas.DrawMolecules(shown, legends=list(legends))
    canvas.FinishDrawing()
    return canvas.GetDrawingText()


def sdf(molecules: Sequence[Any], labels: Sequence[tuple[int, float]]) -> str:
    """Molecules in the plane as an SDF file, each with its number and its reward."""
    chem, blocks = rdkit("Chem"), []
    for one, (number, reward) in zip(molecules, labels, strict=True):
        flat = chem.Mol(one)
        rdkit("Chem.rdDepictor").Compute2DCoords(flat)
        flat.SetProp("_Name", str(number))
        blocks.append(f"{chem.MolToMolBlock(flat)}>  <reward>\n{reward:.6g}\n\n$$$$\n")
    return "".join(blocks)


def properties(molecules: Sequence[Any]) -> dict[str, Some]:
    """The properties of molecules, by name."""
    return {
        name: torch.tensor([score(one) for one in molecules], dtype=torch.float64)
        for name, (_, score) in PROPERTIES.items()
    }


def statistics(molecules: Sequence[Any]) -> dict[str, Some]:
    """The properties of molecules and what their rings are, by title."""
    rings = {
        title: torch.tensor([score(one) for one in molecules], dtype=torch.float64)
        for title, score in RINGS.items()
    }
    return {PROPERTIES[name][0]: values for name, values in properties(molecules).items()} | rings


def wasserstein(a: Some, b: Some, points: int = 500) -> float:
    """The 1-Wasserstein distance of two samples: the mean distance of their quantiles; NaN of none."""
    if not (len(a) and len(b)):
        return math.nan
    at = torch.linspace(0, 1, points, dtype=torch.float64)
    return (a.double().quantile(at) - b.double().quantile(at)).abs().mean().item()


def internal_diversity(molecules: Sequence[Any]) -> float:
    """The mean Tanimoto distance between two of the first molecules, by Morgan fingerprints; 0 of fewer."""
    prints = [scores.fingerprint(one) for one in molecules[:COMPARED]]
    bulk = rdkit("DataStructs").BulkTanimotoSimilarity
    alike = [x for i, one in enumerate(prints) for x in bulk(one, prints[:i])]
    return 1 - sum(alike) / len(alike) if alike else 0.0


def _of(scaffold: str) -> str:
    return f"of scaffold {scaffold}" if scaffold else "without rings"


def _share(count: int, total: int) -> tuple[float, float]:
    """A share with its standard error, as of independent draws."""
    share = count / max(total, 1)
    return share, math.sqrt(share * (1 - share) / max(total, 1))


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as file:
        file.write_text(text, encoding="utf-8")
