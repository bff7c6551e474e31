"""Learned rewards of sequences in a folder: safetensors and JSON, read by whatever spells its samples."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch

from difftilt.data.read import UnreadableError
from difftilt.data.typed import misfit
from difftilt.data.vocabulary import END, Vocabulary, listed
from difftilt.networks.bundle import load_bundle, save_bundle
from difftilt.rewards.ensemble import Ensemble, EnsembleNetwork
from difftilt.rewards.learned import Belief
from difftilt.shapes import Cond, PerSample, Sample

WEIGHTS = "reward"


class _Config(TypedDict):
    learner: dict[str, Any]
    alphabet: str
    shortest: int
    length: int


@dataclass(frozen=True)
class LearnedReward:
    """mean - beta std of an ensemble that was taught on sequences.

    Args:
        alphabet: Letter k is token k of the network.
        shortest: Letters of the shortest sequence.
        length: Letters of the longest; see `Vocabulary` for what follows the others.
        scale: Of the standard deviations; see `Belief`.
        beta: At least 0.
    """

    network: EnsembleNetwork
    learner: Ensemble
    alphabet: str
    shortest: int
    length: int
    scale: float
    beta: float

    @property
    def belief(self) -> Belief:
        """On tokens of the alphabet."""
        return Belief(self.network.predict, self.scale, self.learner.members)

    @property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(tuple(self.alphabet), self.shortest, self.length)

    def of(self, spell: Callable[[Sample], list[str]]) -> Callable[[Sample, Cond], PerSample]:
        """The reward of a chain's samples, whatever the order of its letters; T and U are one letter.

        It is differentiable in one-hot vectors.

        Args:
            spell: Writes these samples as text.
        """

        def learned(sample: Sample, cond: Cond) -> PerSample:
            if sample.is_floating_point():
                x = sample[..., self._places(spell(torch.arange(sample.shape[-1])[:, None]))]
            else:
                words = [self._known(word) for word in spell(sample)]
                x = self.vocabulary.encode(words).to(sample.device)
            return self.belief.lower(self.beta)(x, cond)

        return learned

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
        found = LearnedReward(frozen, made, alphabet, shortest, length, scale, beta)
        if made.categories != len(found.vocabulary.alphabet):
            raise ValueError(f"{made.categories} letters")
        return found
    except (TypeError, ValueError, RuntimeError, KeyError) as error:
        raise UnreadableError(
            f"{folder} holds no learned reward in one piece ({error}); learn it again"
        ) from None
