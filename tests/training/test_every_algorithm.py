"""Every algorithm goes on from a checkpoint as if nothing had happened, whatever it remembers."""

import pytest
import torch
from toy_run import Job, remains

from difftilt import (
    GRPO,
    NFT,
    PPO,
    AdjointMatching,
    Backprop,
    Distill,
    PathConsistency,
    RewardWeighted,
    TrajectoryBalance,
)
from difftilt.conditions import unconditional
from difftilt.samplers.smc import SMC

KINDS = {
    "ppo": lambda: PPO(advantage="critic"),
    "grpo": lambda: GRPO(group_size=4),
    "backprop": lambda: Backprop(through="random", minibatches=2),
    "adjoint-matching": lambda: AdjointMatching(share=0.5),
    "reward-weighted": lambda: RewardWeighted(select="percentile", keep=0.5),
    "path-consistency": lambda: PathConsistency(pairs="all", target_decay=0.5, explore=0.3, replay=24),
    "trajectory-balance": lambda: TrajectoryBalance(log_z="scalar", explore=0.3),
    "nft": lambda: NFT(decay=0.5),
    "distill": lambda: Distill(SMC(particles=4)),
}


def job(name):
    made = Job()
    made.algorithm = KINDS[name]()
    torch.manual_seed(0)
    made.algorithm.setup(made.policy, unconditional(2))
    own = [p for p in made.algorithm.parameters() if p.requires_grad]
    made.optimizer = torch.optim.AdamW([*made.policy.parameters(), *own], 1e-2)
    made.scheduler = torch.optim.lr_scheduler.ExponentialLR(made.optimizer, 0.999)
    return made


@pytest.mark.parametrize("name", KINDS)
def test_a_resumed_run_is_the_unbroken_one(name, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    job(name).train(whole, 4)
    job(name).train(broken, 2)
    job(name).train(broken, 4)
    assert remains(broken) == remains(whole)


def test_the_network_of_a_chain_that_an_algorithm_keeps_is_counted(tmp_path):
    """nft samples 16 chains of 5 steps from its own copy, and noises each sample 8 times."""
    totals = job("nft").train(tmp_path, 1)
    sampled, noised = 16 * 5, 16 * 8
    assert totals.network_calls == 2 * sampled + 2 * noised
    assert totals.network_calls_backward == noised
