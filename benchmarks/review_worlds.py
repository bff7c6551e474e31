"""The problems that claims are tested on, each small enough to be tuned in seconds: sequences of which every
score is known, digits, molecules and one-dimensional chains.
"""

import copy
import dataclasses
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from fixed_rate import FIXED
from landscape import METHODS, RATE
from review_verdict import Size
from rounds import train

from difftilt import GaussianPolicy, Objective, fit
from difftilt.algorithms.choices import AnyAlgorithm
from difftilt.conditions import unconditional
from difftilt.data.landscape import Landscape, load_landscape, make_landscape
from difftilt.data.vocabulary import DNA, all_sequences, spell
from difftilt.domains.digits.recipe import digits
from difftilt.domains.landscape.model import best_seen, chain_of, landscape_network, landscape_policy, tunable
from difftilt.domains.molecules.recipe import molecules
from difftilt.evaluation.evaluate import ScoredSamples, evaluate
from difftilt.exact import landscape as exact
from difftilt.exact.toy import gmm, gmm_schedule
from difftilt.experiment.job import Job
from difftilt.processes.masked import MaskedPolicy
from difftilt.processes.noise import FixedLarge
from difftilt.shapes import Cond, Index, PerSample, Points, Sample
from difftilt.training.seeds import SETUP, seed_round
from difftilt.training.settings import Training
from difftilt.transition import tokens

NOTHING = 1e-3  # an alpha at which the KL counts for next to nothing
BATCH = 1024
GB1 = "difftilt data fetch gb1 and difftilt pretrain protein"


@dataclass(frozen=True, eq=False)
class Words:
    """Sequences of which every score is known, and the model of the lower half."""

    table: Landscape
    reference: MaskedPolicy
    law: Points

    def objective(self, alpha: float) -> Objective:
        return Objective(self.table.lookup, self.reference, alpha)

    @property
    def better(self) -> Points:
        """1 for what is better than all that the model was trained on."""
        return (self.table.score > best_seen(self.table)).double()

    @property
    def start(self) -> float:
        """J of the pretrained model, which is its reward."""
        return (self.law @ self.table.score).item()


@dataclass(frozen=True)
class Tuned:
    """A policy that was tuned, with its exact numbers.

    Args:
        course: Reward, KL and J of every round's batch.
        asked: All sequences that the reward was asked for, each once.
    """

    reward: float
    kl: float
    objective: float
    law: Points
    course: list[dict[str, float]]
    asked: Index
    calls: int


@cache
def dna(quick: bool) -> Words:
    """SIX6; or an invented landscape of 4-mers and an untrained model."""
    if not quick:
        return _words(load_landscape("six6"))
    every = all_sequences(4, 4)
    score = torch.sin(3.7 * every[:, :3].double() @ torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64))
    ties = 1e-3 * torch.arange(len(every), dtype=torch.float64)
    table = make_landscape("invented", DNA, spell(every, DNA), (score + ties).tolist(), "invented")
    torch.manual_seed(0)
    network = landscape_network(table)
    for weights in network.parameters():
        torch.nn.init.normal_(weights, std=0.3)
    return _words(table, chain_of(network.requires_grad_(False), table))


@cache
def protein() -> Words | None:
    """GB1, if its data and its model are on this machine."""
    try:
        return _words(load_landscape("gb1"))
    except ValueError:
        return None


def _words(table: Landscape, policy: MaskedPolicy | None = None) -> Words:
    reference = policy or landscape_policy(table).requires_grad_(False)
    found = exact.evaluate(Objective(table.lookup, reference, 1.0), reference, table.score)
    return Words(table, reference, found.law)


def tune_words(
    words: Words, method: str, alpha: float, seed: int, rounds: int, rate: float = RATE, batch: int = BATCH
) -> Tuned:
    """Tunes with a learning rate that falls linearly to zero; what comes of it is computed, not sampled."""
    seed_round(seed, SETUP)
    policy, asked = tunable(words.reference, words.table), []

    def score(x: Sample, cond: Cond) -> PerSample:
        asked.append(words.table.index(tokens(x)).unique())
        return words.table.lookup(x, cond)

    objective, algorithm = Objective(score, words.reference, alpha), METHODS[method]()
    algorithm.setup(policy, unconditional(2))
    modules = (policy, algorithm)
    groups = [[p for p in module.parameters() if p.requires_grad] for module in modules]
    optimizer = torch.optim.Adam([{"params": group, "lr": rate} for group in groups if group], fused=True)
    course: list[dict[str, float]] = []
    conds = [unconditional(batch)] * rounds
    for row in fit(policy, objective, algorithm, conds, optimizer, Training(seed=seed, **FIXED)):
        if len(course) <= row["round"]:
            course.append({name: row[name] for name in ("reward", "kl_nats", "objective")})
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - row["round"] / rounds)
    calls = objective.reward.calls
    found = exact.evaluate(words.objective(alpha), policy, words.table.score)
    numbers = (found.reward.item(), found.kl.item(), found.objective.item())
    return Tuned(*numbers, found.law, course, torch.cat(asked).unique(), calls)


def mixture(score: Any, alpha: float) -> Objective:
    """The 50-step chain of a mixture of two Gaussians, in double precision."""
    schedule = gmm_schedule()
    reference = GaussianPolicy(gmm(schedule), schedule, (1,), prediction_type="sample", noise=FixedLarge())
    return Objective(score, reference.double().requires_grad_(False), alpha)


def first(x: Sample, cond: Cond) -> PerSample:
    return x[:, 0]


def wave(x: Sample, cond: Cond) -> PerSample:
    return torch.sin(3 * x[:, 0])


def digits_job(
    size: Size, seed: int, reward: str, alpha: float, algorithm: AnyAlgorithm | None = None, rounds: int = 8
) -> Job:
    """Digits in ten steps, rounds of 128 images, at the learning rate of `digits_equal_kl.py`."""
    training = Training(
        rounds=size.of(rounds, 1),
        batch=size.of(128, 16),
        learning_rate=1.5e-4,
        schedule="linear",
        seed=seed,
        **FIXED,
    )
    more: Any = {} if algorithm is None else {"algorithm": algorithm}
    return digits(reward=reward, alpha=alpha, steps=size.of(10, 2), training=training, **more)


@cache
def _molecules(alpha: float) -> Job:
    return molecules(reward="druglike", alpha=alpha, training=Training(on_error="penalty", penalty=0.0))


def molecules_job(size: Size, seed: int, alpha: float, algorithm: AnyAlgorithm | None = None) -> Job:
    """Drug-like molecules, rounds of 48; what is no molecule earns 0."""
    made = _molecules(alpha)  # it takes seconds to find what the grammar of SMILES allows
    training = dataclasses.replace(
        made.training,
        rounds=size.of(4, 1),
        batch=size.of(48, 16),
        learning_rate=1e-3,
        schedule="constant",
        seed=seed,
        **FIXED,
    )
    algorithm = copy.deepcopy(algorithm or made.algorithm)
    return dataclasses.replace(
        made, policy=copy.deepcopy(made.policy), algorithm=algorithm, training=training
    )


def before_and_after(job: Job, count: int) -> tuple[ScoredSamples, ScoredSamples, int]:
    """Samples of the pretrained model and of the tuned one, and what training asked the reward."""
    job = dataclasses.replace(job, policy=copy.deepcopy(job.policy))
    asked, gold = job.cond(count), job.gold
    before = evaluate(job.objective.reference, job.objective, asked, gold, seed=job.training.seed)
    calls = job.objective.reward.calls
    for _ in train(job):
        pass
    calls = job.objective.reward.calls - calls
    return before, evaluate(job.policy, job.objective, asked, gold, seed=job.training.seed), calls
