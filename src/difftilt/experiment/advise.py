"""Which algorithm to start with, why, and what was measured of it."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from difftilt.settings import Count, NonNegative, Positive, check_settings

FEW_CALLS = 20_000  # reward calls below which each one should be used more than once
PASSES = 40  # network passes that a chain costs in a round: sampling, reference and training
GRAPHS = 4.0  # memory of full backpropagation, in models
BATCH, ROUNDS = 256, 30
FEWEST_CALLS = 8  # two samples each for two rounds and two evaluations


@dataclass(frozen=True)
class Facts:
    """What decides between the algorithms.

    Args:
        differentiable: Torch can differentiate the reward by the sample.
        trusted: The reward is what is wanted (a simulator, a formula) and no learned proxy of it.
        reward_seconds: Seconds that scoring one sample takes, at least 0.
        network_seconds: Seconds that one network call takes for one sample, at least 0.
        calls: Reward calls that can be afforded, at least 1.
        hours: Hours that the reward may take in all, above 0; bounds the calls if scoring takes time.
        memory_gib: Memory of the GPU or the machine, in GiB, above 0.
        model_gib: Memory of the model with its gradients and optimizer, in GiB, above 0.
        rare: Samples are short sequences of tokens, and the best of them are hardly ever drawn by the model.
    """

    differentiable: bool = False
    trusted: bool = True
    reward_seconds: NonNegative = 0.0
    network_seconds: NonNegative = 0.0
    calls: Count | None = None
    hours: Positive | None = None
    memory_gib: Positive | None = None
    model_gib: Positive | None = None
    rare: bool = False

    def __post_init__(self):
        check_settings(self)

    @property
    def affordable(self) -> float:
        """Reward calls within the budget; infinite if there is none."""
        budgets = [float(self.calls)] if self.calls is not None else []
        if self.hours is not None and self.reward_seconds > 0:
            budgets.append(3600 * self.hours / self.reward_seconds)
        return min(budgets, default=float("inf"))

    @property
    def tight(self) -> bool:
        """Whether the model leaves too little memory for the graphs of backpropagation."""
        if self.memory_gib is None or self.model_gib is None:
            return False
        return self.memory_gib < GRAPHS * self.model_gib

    @property
    def slow_reward(self) -> bool:
        """Whether scoring a sample takes longer than all that the network does for it."""
        return self.network_seconds > 0 and self.reward_seconds > PASSES * self.network_seconds


@dataclass(frozen=True)
class Rule:
    """An algorithm, when to start with it, and the reason in two sentences."""

    applies: Callable[[Facts], bool]
    algorithm: str
    reason: str
    options: str = ""


# The first rule that applies is the advice.
RULES = (
    Rule(
        lambda facts: facts.rare,
        "local-search",
        "PPO learns from what it draws, and what the model hardly draws stays unknown to it; local search"
        " changes good samples a little, and imitates what it finds. Where `lack_nats` exceeds `away_nats`,"
        " p_r is too broad to be found, and it goes on as PPO.",
    ),
    Rule(
        lambda facts: facts.differentiable and not facts.trusted,
        "adjoint-matching",
        "The reward's gradient says where to go, and adjoint matching follows it to the tilted distribution."
        " A learned proxy is over-optimised fastest along its gradient, so the KL gets a budget.",
        "--target-kl 2",
    ),
    Rule(
        lambda facts: facts.differentiable and facts.tight,
        "adjoint-matching",
        "The reward's gradient says where to go, and says more than a score does."
        " The model leaves little room: backprop holds a step of all chains of a part at once, adjoint"
        " matching as few rows as its minibatches have.",
    ),
    Rule(
        lambda facts: facts.differentiable,
        "backprop",
        "The reward has a gradient, which says of every step how to mend it."
        " It is what is wanted, so following it all the way does no harm.",
    ),
    Rule(
        lambda facts: facts.affordable < FEW_CALLS or facts.slow_reward,
        "ppo",
        "The reward calls are what is scarce, and of the algorithms that need no gradient PPO got furthest"
        " for as many calls on the digits. Its critic and more passes per round make more of each call.",
        "--algorithm.advantage critic --algorithm.epochs 4",
    ),
    Rule(
        lambda facts: not facts.trusted,
        "ppo",
        "Without a gradient, PPO needs nothing but scores, and counts every nat of the KL."
        " A learned proxy invites over-optimisation, so the KL gets a budget.",
        "--target-kl 2",
    ),
    Rule(
        lambda facts: True,
        "ppo",
        "PPO needs nothing but scores, and holds the graph of one step only."
        " No limit on the reward calls was given that would ask for more passes over each.",
    ),
)


@dataclass(frozen=True)
class Advice:
    """What to start with."""

    algorithm: str
    reason: str
    command: str
    evidence: list[str]

    def __str__(self) -> str:
        measured = self.evidence or ["nothing yet: this version ships no measurement of it"]
        lines = [f"algorithm: {self.algorithm}", f"why: {self.reason}", f"start with: {self.command}"]
        return "\n".join([*lines, "measured:", *(f"  {line}" for line in measured)])


def advise(facts: Facts, recipe: str, evidence: Mapping[str, Any] | None = None) -> Advice:
    """The first rule that applies, as a command that stays within the budget, and the measurements behind it.

    Args:
        recipe: The name that the command tunes.
        evidence: As `evidence.json` holds it, which is the default.
    """
    rule = next(rule for rule in RULES if rule.applies(facts))
    known = read_evidence() if evidence is None else evidence
    words = ["difftilt finetune", recipe, f"algorithm:{rule.algorithm}", rule.options, *_size(facts)]
    lines = list(_measured(known.get(rule.algorithm, {})))
    return Advice(rule.algorithm, rule.reason, " ".join(filter(None, words)), lines)


def read_evidence() -> dict[str, Any]:
    """The measurements that are shipped, by algorithm; benchmarks/evidence.py wrote them."""
    return json.loads((files("difftilt.experiment") / "evidence.json").read_text())["algorithms"]


def _size(facts: Facts) -> list[str]:
    """Rounds and batch within the budget, where the defaults exceed it. Two evaluations are part of it."""
    if facts.affordable >= BATCH * ROUNDS * 2:
        return []
    if facts.affordable < FEWEST_CALLS:
        raise ValueError(
            f"the budget allows {facts.affordable:.0f} reward calls, but learning takes at least"
            f" {FEWEST_CALLS}; raise calls or hours, or make the reward faster"
        )
    calls = int(facts.affordable)
    evaluate = max(2, min(BATCH, calls // 8))
    left = calls - 2 * evaluate
    batch = max(2, min(BATCH, left // ROUNDS))
    return [f"--rounds {min(ROUNDS, left // batch)}", f"--batch {batch}", f"--evaluate {evaluate}"]


def _measured(found: Mapping[str, Any]) -> list[str]:
    """One line per task."""
    lines = [
        f"{task}: excess {row['excess_nats']:.4f} nats (fixed variances), seeds {row['seeds']}"
        for task, row in found.get("exact", {}).items()
    ]
    for task, row in found.get("landscape", {}).items():
        lines.append(
            f"{task}: gap {row['gap_nats']:.3f} nats, missed {row['missed']:.0%}, seeds {row['seeds']}"
        )
    for task, row in found.get("digits", {}).items():
        numbers = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in row.items())
        lines.append(f"{task}: {numbers}")
    return lines
