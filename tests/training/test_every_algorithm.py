"""Every algorithm goes on from a checkpoint as if nothing had happened, whatever it remembers."""

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from toy_run import Job, remains

from difftilt import (
    DPO,
    GRPO,
    NFT,
    PPO,
    AdjointMatching,
    Backprop,
    Distill,
    LocalSearch,
    PathConsistency,
    RewardWeighted,
    TrajectoryBalance,
)
from difftilt.conditions import unconditional
from difftilt.networks.micro_batch import MicroBatch
from difftilt.rewards.diversity import DiversityFilter
from difftilt.samplers.smc import SMC
from difftilt.training.manifest import CheckpointError
from difftilt.training.trust_region import TrustRegion

KINDS = {
    "ppo": lambda: PPO(advantage="critic"),
    "grpo": lambda: GRPO(group_size=4),
    "backprop": lambda: Backprop(through="random", minibatches=2),
    "adjoint-matching": lambda: AdjointMatching(share=0.5),
    "reward-weighted": lambda: RewardWeighted(select="percentile", keep=0.5),
    "path-consistency": lambda: PathConsistency(pairs="all", target_decay=0.5, explore=0.3, replay=24),
    "trajectory-balance": lambda: TrajectoryBalance(log_z="scalar", explore=0.3),
    "nft": lambda: NFT(decay=0.5),
    "dpo": lambda: DPO(labels="drawn"),
    "distill": lambda: Distill(SMC(particles=4)),
    "local-search": lambda: LocalSearch(finish="coverage", trial=1, near=9.0, slow=9.0),
}


def job(name):
    torch.manual_seed(0)
    return tuning(KINDS[name]())


def tuning(algorithm):
    made = Job()
    made.algorithm = algorithm
    made.algorithm.setup(made.policy, unconditional(2))
    own = [p for p in made.algorithm.parameters() if p.requires_grad]
    made.optimizer = torch.optim.AdamW([*made.policy.parameters(), *own], 1e-2)
    made.scheduler = torch.optim.lr_scheduler.ExponentialLR(made.optimizer, 0.999)
    return made


def adapted(name, folder, rounds):
    """A life of a run whose step size follows how far its rounds move the policy."""
    made = job(name)
    region = TrustRegion(made.optimizer, Accelerator(cpu=True), 0.1)
    made.train(folder, rounds, region=region)
    return made.optimizer.param_groups[0]["factor"]


@pytest.mark.parametrize("name", KINDS)
def test_a_resumed_run_is_the_unbroken_one(name, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    factors = [adapted(name, whole, 4), adapted(name, broken, 2)]
    assert factors[0] != factors[1], "the step size must have moved on"
    adapted(name, broken, 4)
    assert remains(broken) == remains(whole)


def filtered(name):
    """The job with a filter that has seen many numbers above 0."""
    made = job(name)
    filtered = DiversityFilter(lambda x, known: ["+" if n > 0 else "-" for n in x[:, 0].tolist()], 10, 5)
    filtered.load_state_dict({"bins": ["+"], "counts": [1000]})
    made.objective.diversity = filtered
    return made


@pytest.mark.parametrize("name", KINDS)
def test_a_filter_teaches_those_that_learn_from_rewards_of_samples(name, tmp_path):
    made = filtered(name)
    for folder, run in (("plain", job(name)), ("filtered", made)):
        run.train(tmp_path / folder, 1)
    weights = [remains(tmp_path / folder)["policy.safetensors"] for folder in ("plain", "filtered")]
    assert (weights[0] != weights[1]) == made.algorithm.filtered


def test_what_a_filter_has_seen_is_resumed(tmp_path):
    whole, broken, plain = (tmp_path / name for name in ("whole", "broken", "plain"))
    filtered("ppo").train(whole, 2)
    filtered("ppo").train(broken, 1)
    filtered("ppo").train(broken, 2)
    assert remains(broken) == remains(whole)
    job("ppo").train(plain, 1)
    with pytest.raises(CheckpointError, match="does not hold the state of this run"):
        filtered("ppo").train(plain, 2)


PASSES = {  # forward and backward per sample and step of five, as docs/algorithms.md says
    "ppo": (PPO(epochs=3), 2 + 3 + 1 / 5, 3),  # the ratio of one step is checked once
    "ppo in the reward": (PPO(epochs=3, kl="reward"), 2 + 3 + 1 / 5, 3),
    "grpo": (GRPO(group_size=4, epochs=2), 2 + 2 + 1 / 5, 2),
    "reward-weighted": (RewardWeighted(epochs=2), 2 + 2, 2),
    "path-consistency": (PathConsistency(epochs=2), 2 + 2, 2),
    "path-consistency, one step": (PathConsistency(minibatches=1), 2, 1),
    "trajectory-balance": (TrajectoryBalance(epochs=2), 2 + 2, 2),
    "trajectory-balance, one step": (TrajectoryBalance(minibatches=1), 2, 1),
    "trajectory-balance that recomputes": (TrajectoryBalance(minibatches=1, recompute=True), 3, 1),
    "adjoint-matching": (AdjointMatching(share=0.5, epochs=2), 2 + 1, 1 + 1),
    "adjoint-matching that recomputes": (AdjointMatching(share=0.5, epochs=2, recompute=True), 3 + 1, 1 + 1),
    "backprop": (Backprop(minibatches=2), 2, 2 - 1 / 5),
    "nft": (NFT(levels=8), 2 + 2 * 8 / 5, 8 / 5),
    "dpo": (DPO(epochs=2), 2 + 2, 2),
    "local-search": (LocalSearch(minibatches=5), 2 + 5 / 5, 5 / 5),  # in the first round, which draws all
}


@pytest.mark.parametrize("name", PASSES)
def test_no_pass_repeats_another(name, tmp_path):
    algorithm, forward, backward = PASSES[name]
    made = tuning(algorithm)
    totals = made.train(tmp_path, 1)
    assert totals.network_calls == pytest.approx(forward * 16 * 5)
    assert totals.network_calls_backward == pytest.approx(backward * 16 * 5)


OVER_ROWS = {
    "ppo",
    "grpo",
    "adjoint-matching",
    "reward-weighted",
    "distill",
}  # the others ask for whole paths


@pytest.mark.parametrize("name", KINDS)
def test_rows_that_pass_in_parts_make_the_step_of_all_at_once(name, tmp_path, monkeypatch):
    found, passes = [], []
    for kind, least in (("whole", 10**6), ("parts", 7), ("micro-batches", 7)):
        monkeypatch.setattr("difftilt.algorithms.minibatches.AT_ONCE", 0)
        monkeypatch.setattr("difftilt.algorithms.minibatches.LEAST", least)
        made = job(name)
        optimizer: Any = torch.optim.SGD(made.optimizer.param_groups, 1e-2)
        made.optimizer = optimizer
        sizes: list[int] = []
        made.policy.network.register_forward_hook(lambda m, i, o, sizes=sizes: sizes.append(len(o)))
        if kind == "micro-batches":
            made.policy.network = MicroBatch(made.policy.network, 5, one_time=True)
        made.train(tmp_path / kind, 1, scheduler=None)
        found.append([p.detach().clone() for p in made.policy.parameters()])
        passes.append(sum(sizes))
    assert passes[1] == passes[0]
    assert passes[2] == passes[0] or name not in OVER_ROWS
    for whole, *others in zip(*found, strict=True):
        for other in others:
            torch.testing.assert_close(other, whole, rtol=1e-4, atol=1e-6)
