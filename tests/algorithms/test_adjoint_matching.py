"""Adjoint matching: right at the reference, at rest at the best policy, with memory of x_T or without."""

from dataclasses import dataclass

import problems
import pytest
import torch
from problems import cosine, flat

from difftilt.algorithms.adjoint_matching import AdjointMatching
from difftilt.conditions import unconditional
from difftilt.exact import gaussian
from difftilt.guard import Guard
from difftilt.objective import Objective
from difftilt.policy import Policy
from difftilt.transition import Transition

COSINE, LENGTH, REST = 0.999, 0.02, 0.02


def gradient(problem, policy, size=20_000, alpha=None, algorithm=AdjointMatching, rounds=1, **settings):
    """Upwards, of the first loss."""
    torch.manual_seed(1)
    objective = Objective(problem.objective.reward, problem.objective.reference, alpha or problems.ALPHA)
    found = []
    for _ in range(rounds):
        (loss,) = algorithm(minibatches=1, **settings).losses(policy, objective, unconditional(size))
        found.append(-flat(loss.value, policy))
    return torch.stack(found).mean(0)


def means_only(chain, tune_initial=True):
    """A policy whose standard deviations are the chain's for good."""
    policy = gaussian.AffinePolicy(chain, tune_initial=tune_initial)
    policy.get_parameter("network.log_start").requires_grad_(False)
    return policy


def agrees(found, expected):
    length = (found.norm() / expected.norm()).item()
    return cosine(found, expected) >= COSINE and abs(length - 1) <= LENGTH


@pytest.fixture
def problem():
    return problems.affine(dimension=2)


@pytest.fixture
def chain(problem):
    return gaussian.affine(problem.objective.reference)


def best(problem, chain, tune_initial):
    """The policy of the largest J that keeps the standard deviations, and x_T's draw if it is frozen."""
    solved = gaussian.solve(chain, problem.bowl, problems.ALPHA, fixed_cov=True)
    policy = means_only(solved.policy if tune_initial else solved.frozen_policy, tune_initial)
    assert flat(problem.exact(policy), policy).norm() < 1e-9
    return policy


def memory(chain):
    """How much of x_T is left in x_0."""
    return torch.linalg.multi_dot(list(chain.weight)).norm().item()


@pytest.mark.parametrize("tune_initial", [True, False])
def test_at_the_reference_the_gradient_is_exact(problem, chain, tune_initial):
    policy = means_only(chain, tune_initial)
    assert agrees(gradient(problem, policy), flat(problem.exact(policy), policy))


@pytest.mark.parametrize("tune_initial", [True, False])
def test_rests_at_the_best_policy_though_x_T_is_remembered(problem, chain, tune_initial):  # noqa: N802
    policy = best(problem, chain, tune_initial)
    assert memory(chain) > 0.5
    scale = gradient(problem, means_only(chain, tune_initial)).norm()
    assert gradient(problem, policy).norm() < REST * scale


class OwnAdjoint(AdjointMatching):
    """Carries the gradient back through the policy, not the reference."""

    def losses(self, policy, objective, cond):
        self.policy = policy
        return super().losses(policy, objective, cond)

    def _adjoint(self, seen, reference, traced):
        return super()._adjoint(seen, self.policy, [])


class Late(AdjointMatching):
    """Tells each decision the adjoint of the state before it."""

    def _adjoint(self, seen, reference, traced):
        adjoint = super()._adjoint(seen, reference, traced)
        return torch.cat([adjoint[:1], adjoint[:-1]])


class Descent(AdjointMatching):
    def _adjoint(self, seen, reference, traced):
        return -super()._adjoint(seen, reference, traced)


class Mean(AdjointMatching):
    """Averages over the two coordinates of an event where it should sum."""

    def _adjoint(self, seen, reference, traced):
        return super()._adjoint(seen, reference, traced) / 2


@pytest.mark.parametrize(
    "wrong",
    [{"algorithm": kind} for kind in (OwnAdjoint, Late, Descent, Mean)] + [{"alpha": 1.0}, {"alpha": 0.45}],
    ids=str,
)
def test_the_rest_notices_a_wrong_formula(problem, chain, wrong):
    policy = best(problem, chain, True)
    scale = gradient(problem, means_only(chain)).norm()
    assert not gradient(problem, policy, **wrong).norm() < REST * scale


@pytest.mark.parametrize("wrong", [Late, Descent, Mean])
def test_the_gradient_test_notices_a_wrong_formula(problem, chain, wrong):
    policy = means_only(chain)
    assert not agrees(gradient(problem, policy, algorithm=wrong), flat(problem.exact(policy), policy))


def test_a_share_of_the_steps_has_the_same_expectation(problem):
    policy = means_only(gaussian.affine(problem.elsewhere))
    every = gradient(problem, policy)
    assert agrees(gradient(problem, policy, share=0.25, rounds=4), every)
    assert not torch.equal(gradient(problem, policy, share=0.25), every)


def test_a_share_of_the_steps_costs_that_share_of_rows(problem, monkeypatch):
    rows, forward = [], gaussian.AffinePolicy.forward

    def counted(self, x, t, cond):
        if torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters()):
            rows.append(len(x))
        return forward(self, x, t, cond)

    monkeypatch.setattr(gaussian.AffinePolicy, "forward", counted)
    counts = []
    for share in (1.0, 0.25):
        rows.clear()
        gradient(problem, problem.start, size=1000, share=share)
        counts.append(sum(rows))
    assert counts[1] == pytest.approx(0.25 * counts[0], rel=0.1)


def test_integer_states_are_refused():
    problem = problems.finite()
    with pytest.raises(ValueError, match=r"no gradient in states of type torch\.int64"):
        gradient(problem, problem.start, size=10)


@dataclass(frozen=True)
class Hidden(Transition):
    """A distribution over real vectors that does not say that it is Gaussian."""

    law: Transition

    def sample(self):
        return self.law.sample()

    def rsample(self):
        return self.law.rsample()

    def log_prob(self, x):
        return self.law.log_prob(x)

    def kl(self, other):
        return self.law.kl(other.law)

    def tempered(self, temperature):
        return Hidden(self.law.tempered(temperature))


class HiddenSteps(Policy):
    def __init__(self, policy):
        super().__init__()
        self.policy, self.network, self.steps = policy, policy, policy.steps

    def initial(self, cond):
        return Hidden(self.policy.initial(cond))

    def forward(self, x, t, cond):
        return Hidden(self.policy(x, t, cond))

    def decode(self, x, cond):
        return x


def test_steps_that_are_not_gaussian_are_refused(problem):
    objective = Objective(problem.bowl, HiddenSteps(problem.objective.reference), 0.5)
    with pytest.raises(ValueError, match="needs Gaussian steps, but got a Hidden; use ppo"):
        list(AdjointMatching().losses(HiddenSteps(problem.start), objective, unconditional(8)))


@pytest.mark.parametrize("drop", [False, True])
def test_graphs_that_were_held_give_the_gradients_of_those_computed_again(drop):
    problem, found = problems.affine(dimension=2), []

    def reward(x, cond):
        return torch.where(x[:, 0] > 1, torch.nan, x[:, 0].sin()) if drop else x[:, 0].sin()

    for recompute in (False, True):
        torch.manual_seed(0)
        guard = Guard(reward, on_error="drop")
        objective = Objective(guard, problem.objective.reference, problems.ALPHA)
        algorithm = AdjointMatching(minibatches=1, recompute=recompute)
        (loss,) = algorithm.losses(problem.start, objective, unconditional(64))
        found.append(flat(loss.value, problem.start))
    assert torch.equal(*found) and found[0].norm() > 0
