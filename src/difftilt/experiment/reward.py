"""The reward that a recipe was asked for: its own, a user's function, class or command, or a learned one."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from difftilt.experiment.code import AESTHETIC, CLIP, COMMAND, LEARNED, SERVER, find
from difftilt.guard import Reward
from difftilt.rewards.clip import Aesthetic, PromptAgreement
from difftilt.rewards.combined import Part, is_combined, parse_terms
from difftilt.rewards.command import CommandReward
from difftilt.rewards.judge import PATH, JudgeReward
from difftilt.rewards.saved import load_reward
from difftilt.rewards.scoring import Spell
from difftilt.rewards.server import ServerReward
from difftilt.settings import UsageError
from difftilt.shapes import Cond, Sample


def find_reward(text: str, known: Mapping[str, Reward], spell: Spell, timeout: float) -> Reward | list[Part]:
    """The reward that a text names, or the parts of several.

    A function of (samples, conditions) is a reward as it is. One of a single argument gets the samples alone:
    as lines of text where the domain writes its samples so (sequences), and as they are elsewhere. A class is
    called without arguments, once, and what it makes is called per batch.

    Args:
        text: A name in `known`, one that a package registers, `FILE.py:NAME`, `PACKAGE.MODULE:NAME`, or
            `command:COMMAND`, see `CommandReward`; `http://HOST/PATH`, see `ServerReward`; `learned:DIR`, see
            `LearnedReward`; `http://HOST/v1/chat/completions#MODEL`, see `JudgeReward`; `clip:MODEL`, see
            `PromptAgreement`; or `aesthetic:CLIP:HEAD`, see `Aesthetic`. Several, with weights and shapes, as
            in `qed:0.3 + dock.py:score:0.7@sigmoid(-6,-9)`; see `parse_terms`.
        known: The recipe's own rewards.
        spell: Writes samples as text, if they are text.
        timeout: Seconds that a command or a server may take for a batch, above 0.
    """
    if is_combined(text):
        return parse_terms(text, lambda name: _one(name, known, spell, timeout))
    return _one(text, known, spell, timeout)


def _one(text: str, known: Mapping[str, Reward], spell: Spell, timeout: float) -> Reward:
    if text in known:
        return known[text]
    if text.startswith(COMMAND):
        return CommandReward(text.removeprefix(COMMAND), lambda sample: lines_of(sample, spell), timeout)
    if text.startswith(SERVER):
        judge = text.partition("#")[0].endswith(PATH)
        return JudgeReward(text, spell, timeout) if judge else ServerReward(text, spell, timeout)
    if text.startswith((CLIP, AESTHETIC)):
        if spell is not None:
            raise UsageError(f"{text} looks at images, but the samples of this recipe are text")
        if text.startswith(AESTHETIC):
            return Aesthetic(text.removeprefix(AESTHETIC))
        return PromptAgreement(text.removeprefix(CLIP))
    if text.startswith(LEARNED):
        if spell is None:
            raise UsageError(f"{text} reads sequences, but the samples of this recipe are no text")
        return load_reward(Path(text.removeprefix(LEARNED))).of(spell)
    found: Any = find("reward", text, known)
    return _adapted(found() if inspect.isclass(found) else found, text, spell)


def lines_of(sample: Sample, spell: Spell) -> list[str]:
    """One line per sample: its text, or its numbers with blanks between them."""
    if spell is not None:
        return spell(sample)
    return [" ".join(f"{number:.9g}" for number in row) for row in sample.flatten(1).tolist()]


def _adapted(reward: Any, text: str, spell: Spell) -> Reward:
    try:
        parameters = inspect.signature(reward).parameters.values()
    except (TypeError, ValueError):  # of C functions
        return reward
    needed = [
        p
        for p in parameters
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    several = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    if len(needed) > 2 or not (needed or several):
        raise UsageError(
            f"reward {text} takes {len(needed)} arguments ({', '.join(p.name for p in needed)}), but is"
            " called with (samples, conditions), or with the samples alone if it takes one"
        )
    return _OfSamples(reward, text, spell) if len(needed) == 1 and not several else reward


class _OfSamples:
    """A reward of the samples alone."""

    def __init__(self, score: Callable[[Any], Any], text: str, spell: Spell):
        self._score, self._spell, self.__name__ = score, spell, text

    def __call__(self, sample: Sample, cond: Cond) -> Any:
        return self._score(sample if self._spell is None else self._spell(sample))
