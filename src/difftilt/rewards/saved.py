"""Learned rewards in a folder: safetensors and JSON, read by whatever spells its samples."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch

from difftilt.answers import Failure
from difftilt.data.read import UnreadableError
from difftilt.data.typed import misfit
from difftilt.data.vocabulary import END, Vocabulary, listed
from difftilt.guard import Guard
from difftilt.networks.bundle import load_bundle, save_bundle
from difftilt.rewards.ensemble import Ensemble, EnsembleNetwork
from difftilt.rewards.learned import Belief
from difftilt.rewards.molecule import scored
from difftilt.rewards.molecule_prints import prints
from difftilt.shapes import Cond, PerSample, Sample

WEIGHTS = "reward"
# answers beside the reward
SPREAD, ABOVE, OPTIMISM = "spread of members", "modelled - best label", "likely not there"


class _Config(TypedDict):
    learner: dict[str, Any]
    alphabet: str
    shortest: int
    length: int
    best_label: NotRequired[float]
    optimism: NotRequired[float]


@dataclass(frozen=True)
class LearnedReward:
    """mean - beta std of an ensemble that was taught on sequences, or on molecules.

    Args:
        alphabet: Letter k is token k of the network; of molecules, which it reads as `prints`, empty.
        shortest: Letters of the shortest sequence.
        length: Letters of the longest; see `Vocabulary` for what follows the others. Numbers of a print.
        scale: Of the standard deviations; see `Belief`.
        beta: At least 0.
        best_label: The highest score that it was taught, where that is known.
        optimism: The share of what it predicts above the mean label that labels which were held out say is
            not there, where that is known; see `Judgement`.
    """

    network: EnsembleNetwork
    learner: Ensemble
    alphabet: str
    shortest: int
    length: int
    scale: float
    beta: float
    best_label: float | None = None
    optimism: float | None = None

    @property
    def belief(self) -> Belief:
        """On tokens of the alphabet."""
        return self.network.belief(self.scale)

    @property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(tuple(self.alphabet), self.shortest, self.length)

    def of(self, spell: Callable[[Sample], list[str]]) -> "Spelled":
        """The reward of a chain's samples, whatever the order of its letters; T and U are one letter.

        It is differentiable in one-hot vectors, but not that of molecules.

        Args:
            spell: Writes these samples as text.
        """
        return Spelled(self, spell) if self.alphabet else SpelledMolecules(self, spell)

    def answer(self, x: Sample) -> tuple[PerSample, dict[str, PerSample]]:
        """The reward of what the network reads, and how far it can be trusted there."""
        found = self.belief(x)
        answers = {SPREAD: found.std.detach()}
        if self.best_label is not None:
            answers[ABOVE] = found.mean.detach() - self.best_label
        if self.optimism is not None:
            answers[OPTIMISM] = self.optimism * (found.mean.detach() - self.network.shift) / self.network.unit
        return found.mean - self.beta * found.std, answers

    def read(self, sample: Sample, spell: Callable[[Sample], list[str]]) -> Sample:
        """A chain's samples in the letters of the network."""
        if sample.is_floating_point():
            return sample[..., self._places(spell(torch.arange(sample.shape[-1])[:, None]))]
        words = [self._known(word) for word in spell(sample)]
        return self.vocabulary.encode(words).to(sample.device)

    def _places(self, letters: list[str]) -> list[int]:
        """Where a chain has each of the network's letters."""
        letters, own = [self._known(letter) for letter in letters], self.vocabulary.alphabet
        if sorted(letters) != sorted(own):
            wanted, got = (listed(one) + " of several lengths" * (END in one) for one in (own, letters))
            raise ValueError(
                f"the reward was learned of the letters {wanted}, but got samples in {got}; learn it again"
                " from sequences of these"
            )
        return [letters.index(letter) for letter in own]

    def _known(self, word: str) -> str:
        return word.replace("U", "T") if "T" in self.alphabet and "U" not in self.alphabet else word


class Spelled:
    """A learned reward of a chain's samples, which also says how far it can be trusted on them.

    Attributes:
        answers: Of each of the last samples the spread of the members, how far the mean is above the best
            label, and how much of it is likely not there, in standard deviations of the labels: what logs and
            pages show beside the reward.
    """

    guards: Mapping[str, Guard] = {}

    def __init__(self, reward: LearnedReward, spell: Callable[[Sample], list[str]]):
        self._reward, self._spell, self.__name__ = reward, spell, "learned"
        self.answers: dict[str, PerSample] = {}

    def __call__(self, sample: Sample, cond: Cond) -> PerSample:
        reward = self._reward
        value, self.answers = reward.answer(reward.read(sample, self._spell))
        return value


class SpelledMolecules(Spelled):
    """The same of samples that a chain writes as SMILES; those that are no molecule have no reward.

    Attributes:
        answers: As for `Spelled`, NaN where there is no molecule.
    """

    def __call__(
        self, sample: Sample, cond: Cond
    ) -> Any:  # numbers and failures, which the guard takes apart
        texts = self._spell(sample)
        found: list[Any] = [scored(text, lambda one: 0.0) for text in texts]
        rows = [row for row, one in enumerate(found) if not isinstance(one, Failure)]
        self.answers = {}
        if rows:
            value, answers = self._reward.answer(prints([texts[row] for row in rows]))
            for row, one in zip(rows, value.tolist(), strict=True):
                found[row] = one
            blank = torch.full((len(texts),), torch.nan, dtype=value.dtype)
            places = torch.tensor(rows)
            self.answers = {name: blank.index_copy(0, places, x) for name, x in answers.items()}
        return found


def save_reward(
    folder: Path,
    reward: LearnedReward,
    about: Mapping[str, Any],
    judge: Callable[[Path], tuple[dict[str, Any], str]],
) -> None:
    """Writes a reward to a folder that is seen whole or not at all.

    Args:
        about: How it was made.
        judge: As for `save_bundle`.
    """
    numbers = {"scale": reward.scale, "beta": reward.beta}
    tensors = reward.network.state_dict() | {
        name: torch.tensor(number, dtype=torch.float64) for name, number in numbers.items()
    }
    config = {
        "learner": dataclasses.asdict(reward.learner),
        "alphabet": reward.alphabet,
        "shortest": reward.shortest,
        "length": reward.length,
        **{name: x for name in ("best_label", "optimism") if (x := getattr(reward, name)) is not None},
        **about,
    }
    save_bundle(folder, {}, config, judge, {WEIGHTS: tensors})


def load_reward(folder: Path) -> LearnedReward:
    """The reward that `save_reward` wrote.

    Raises:
        ValueError: If there is none, or it was changed.
    """
    how = "make one with difftilt reward fit --data TABLE --out DIR"
    bundle = load_bundle(folder, "learned reward", how, "--reward learned:DIR")
    tensors = bundle.tensors(WEIGHTS)
    try:
        if wrong := misfit(bundle.config, _Config):
            raise ValueError(wrong)
        names = ("learner", "alphabet", "shortest", "length")
        learner, alphabet, shortest, length = (bundle.config[name] for name in names)
        made = Ensemble(**learner)
        scale, beta = (tensors.pop(name).item() for name in ("scale", "beta"))
        network = made.network((length,))
        network.load_state_dict(tensors)
        frozen = network.eval().requires_grad_(False)
        known = {name: bundle.config.get(name) for name in ("best_label", "optimism")}
        found = LearnedReward(frozen, made, alphabet, shortest, length, scale, beta, **known)
        if made.categories != (len(found.vocabulary.alphabet) if alphabet else 0):
            raise ValueError(f"{made.categories} letters")
        return found
    except (TypeError, ValueError, RuntimeError, KeyError) as error:
        raise UnreadableError(
            f"{folder} holds no learned reward in one piece ({error}); learn it again"
        ) from None
