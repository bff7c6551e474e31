"""What papers on flows do otherwise: a share of the steps, noise in a window of them, one x_T per context."""

from dataclasses import dataclass
from typing import Any, Literal

import pytest
import torch
from problems import PROBLEMS, cosine, finite, flat, reversal
from test_contracts import FEW, climbs, counts, reaches, rests

from difftilt.algorithms.dpo import DPO
from difftilt.algorithms.grpo import GRPO
from difftilt.algorithms.nft import NFT
from difftilt.conditions import unconditional
from difftilt.exact import gaussian
from difftilt.objective import Objective
from difftilt.policy import rollout

F64 = torch.float64


@dataclass(eq=False)
class Dance(GRPO):
    share: float = 0.6
    shared_noise: bool = True


@dataclass(eq=False)
class Matching(NFT):
    form: Literal["negative", "advantage"] = "advantage"
    consistency: float = 1.0


@dataclass(eq=False)
class Noised(DPO):
    form: Literal["trajectory", "denoising"] = "denoising"


@pytest.mark.parametrize("kind", [Dance, Matching])
@pytest.mark.parametrize("contract", [rests, climbs, reaches, counts], ids=lambda c: c.__name__)
def test_a_variant_without_a_bias_keeps_the_contracts(contract, kind):
    size = (FEW,) if contract in (rests, climbs) else ()
    assert contract(kind, PROBLEMS["reversal"](), *size)


@pytest.mark.parametrize("contract", [climbs, counts], ids=lambda c: c.__name__)
def test_dpo_on_samples_that_are_noised_again_goes_uphill(contract):
    assert contract(Noised, PROBLEMS["reversal"]())


def first_gradients(problem, policy, rounds, cond, round=0, **settings):
    """The mean gradient of a round's only loss."""
    found = []
    for seed in range(rounds):
        torch.manual_seed(seed)
        problem.objective.reward.round = round
        (loss,) = GRPO(epochs=1, minibatches=1, **settings).losses(policy, problem.objective, cond)
        found.append(-flat(loss.value, policy))
    return torch.stack(found).mean(0)


def test_a_window_of_all_steps_is_the_whole_chain():
    losses = []
    for algorithm in (GRPO(), GRPO(window=4, slide=1), GRPO(window=99, slide=1)):
        problem = reversal()
        torch.manual_seed(0)
        made = algorithm.losses(problem.elsewhere, problem.objective, unconditional(64))
        losses.append(torch.stack([loss.value for loss in made]))
    assert losses[0].std() > 0
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(losses[2], losses[0])


def of_window(policy, reference, alpha, first, count):
    """The exact J of a chain with noise at some steps only, as a function of the weights in these."""

    def step(t):
        """Slope and shift of the step without noise."""
        at = torch.full((2,), t)
        with torch.no_grad():
            zero, one = policy.without_noise(torch.tensor([[0.0], [1.0]], dtype=F64), at, unconditional(2))
        return (one - zero).view(1, 1), zero

    chains = [gaussian.affine(p) for p in (policy, reference)]
    mean, cov = chains[0].mean.detach(), chains[0].cov.detach()
    for t in range(policy.steps, first, -1):
        slope, shift = step(t)
        mean, cov = slope @ mean + shift, slope @ cov @ slope.T
    slope = torch.eye(1, dtype=F64)
    for t in range(first - count, 0, -1):
        slope = step(t)[0] @ slope
    part = slice(first - count, first)
    cut = [gaussian.AffineChain(mean, cov, c.weight[part], c.bias[part], c.noise[part]) for c in chains]
    return gaussian.evaluate(cut[0], cut[1], gaussian.linear(slope[0]), alpha).objective


@pytest.mark.parametrize("round", [0, 1, 2])
def test_the_gradient_of_a_window_is_that_of_the_exact_j_of_such_a_chain(round):
    problem = reversal()
    policy, objective = problem.elsewhere, problem.objective
    exact = flat(of_window(policy, objective.reference, objective.alpha, 4 - round, 2), policy)
    found = first_gradients(problem, policy, 12, unconditional(4000), round, window=2, slide=1)
    assert cosine(found, exact) > 0.99
    if round:  # other steps learn something else
        first = flat(of_window(policy, objective.reference, objective.alpha, 4, 2), policy)
        assert cosine(found, first) < 0.99


def test_a_window_slides_from_noise_to_data_and_again():
    problem = reversal()
    algorithm, places = GRPO(window=2, slide=2), []
    for round in range(8):
        problem.objective.reward.round = round
        made: Any = algorithm._noisy(problem.start, problem.objective, unconditional(4))
        assert made[0].steps == made[1].reference.steps == 2
        places.append(made[0]._later + 2)
    assert places == [4, 4, 3, 3, 2, 2, 4, 4]
    torch.manual_seed(0)
    drawn: Any = [
        GRPO(window=2)._noisy(problem.start, problem.objective, unconditional(4))[0] for _ in range(40)
    ]
    anywhere = {chain._later for chain in drawn}
    assert anywhere == {0, 1, 2}


def test_samples_of_one_context_begin_with_one_noise():
    problem, cond = reversal(), {"label": torch.tensor([3, 1, 3, 1, 1, 3])}
    chain, _ = GRPO(group_size=3, shared_noise=True)._noisy(problem.start, problem.objective, cond)
    path = rollout(chain, cond)
    assert path.states[0].equal(path.states[0, [0, 1, 0, 1, 1, 0]])
    assert len(path.states[0].unique()) == 2 and len(path.states[-1].unique()) == 6
    assert path.log_prob[0].eq(0).all() and len(path.log_prob) == chain.steps + 1


def test_what_has_no_window_says_so():
    tokens = finite()
    start = tokens.start.requires_grad_(False)
    objective = Objective(tokens.objective.reward, tokens.objective.reference, 0.5)
    with pytest.raises(ValueError, match="a TabularPolicy has no steps without noise"):
        next(GRPO(window=1, slide=1).losses(start, objective, unconditional(16)))
    tuned = PROBLEMS["gaussian"]()
    with pytest.raises(ValueError, match="but the distribution of x_T is tuned"):
        next(GRPO(shared_noise=True).losses(tuned.start, tuned.objective, unconditional(16)))
