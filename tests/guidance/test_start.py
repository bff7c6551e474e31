"""A tuned distribution of x_T is the chain's own at first, and a part of the policy in every respect."""

import copy
from typing import Any

import pytest
import torch
import torch.nn as nn

from difftilt.algorithms.ppo import PPO
from difftilt.conditions import unconditional
from difftilt.exact import gaussian as exact
from difftilt.exact.tabular import sticky
from difftilt.guidance.start import TunedStart
from difftilt.networks.network_calls import NetworkCalls
from difftilt.objective import Objective
from difftilt.policy import path_log_prob, rollout, tunes_start
from difftilt.processes.gaussian import GaussianPolicy
from difftilt.processes.noise import DDIM
from difftilt.processes.schedule import karras, linear
from difftilt.training.ema import EMA
from difftilt.training.fit import fit
from difftilt.training.state import load_weights, weights

SHAPE = (2, 3)
LABELS = {"label": torch.tensor([0, 1, 2, 1])}


class Scaled(nn.Module):
    """A network that is affine in x."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, x, time, cond):
        return self.scale * x


def chain(grid=None):
    return GaussianPolicy(Scaled(), grid or linear(4), SHAPE, noise=DDIM(0.5), tune_std=True)


def tuned(cond=None) -> Any:
    torch.manual_seed(0)
    return TunedStart(chain(), cond)


def moved(policy):
    """The policy with a distribution of x_T somewhere else."""
    torch.manual_seed(1)
    for p in policy.offset.parameters():
        nn.init.normal_(p, std=0.3)
    return policy


CASES = {"same": None, "label": LABELS, "embedding": {"prompt": torch.randn(4, 5, 2), "text": ["a"] * 4}}


@pytest.mark.parametrize("cond", CASES.values(), ids=CASES)
def test_starts_as_the_chain_with_a_gradient_to_leave_it(cond):
    policy, asked = tuned(cond), cond or unconditional(4)
    own = policy.chain.initial(asked)
    law = policy.initial(asked)
    assert torch.equal(law.mean, own.mean) and torch.equal(law.std, own.std)
    assert (law.kl(own) == 0).all()
    assert tunes_start(policy, asked) and not tunes_start(policy.chain, asked)
    law.log_prob(torch.randn(4, *SHAPE)).sum().backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in policy.offset.parameters())


def test_shift_and_scale_are_relative_to_the_law_of_the_chain():
    """A grid that ends at sigma = 80: KL = shift^2 / 2 + (exp(2 l) - 1) / 2 - l per dimension."""
    policy: Any = TunedStart(chain(karras(4)))
    with torch.no_grad():
        policy.get_parameter("offset.value").copy_(torch.tensor([0.5, 0.2])[:, None, None])
    own, law = policy.chain.initial(unconditional(3)), policy.initial(unconditional(3))
    torch.testing.assert_close(law.mean, 0.5 * own.std)
    torch.testing.assert_close(law.std, own.std * torch.tensor(0.2).exp())
    each = 0.5**2 / 2 + (torch.tensor(0.4).exp() - 1) / 2 - 0.2
    torch.testing.assert_close(law.kl(own), (6 * each).double().expand(3))


def test_conditions_have_laws_of_their_own():
    law = moved(tuned(LABELS)).initial(LABELS)
    assert torch.equal(law.mean[1], law.mean[3]) and torch.equal(law.std[1], law.std[3])
    assert (law.mean[0] - law.mean[1]).abs().max() > 1e-3
    same = moved(tuned()).initial(LABELS)
    assert torch.equal(same.mean[0], same.mean[1])


def test_everything_else_is_left_to_the_chain():
    policy, x, t, cond = moved(tuned()), torch.randn(4, *SHAPE), torch.tensor([4, 3, 2, 1]), unconditional(4)
    own = policy.chain
    for a, b in (
        (policy(x, t, cond), own(x, t, cond)),
        (policy.noising(x, t), own.noising(x, t)),
        (policy.posterior(x, 2 * x, t), own.posterior(x, 2 * x, t)),
    ):
        assert torch.equal(a.mean, b.mean) and torch.equal(a.std, b.std)
    assert torch.equal(policy.clean(x, t, cond), own.clean(x, t, cond))
    assert torch.equal(policy.decode(x, cond), x)
    drawn = []
    for p in (policy, own):
        torch.manual_seed(0)
        drawn.append(p.corrupt(x, t))
    assert torch.equal(*drawn)
    assert policy.network is own.network and policy.steps == own.steps


def test_a_path_counts_the_draw_of_its_start():
    policy = moved(tuned())
    path = rollout(policy, unconditional(50))
    torch.testing.assert_close(path_log_prob(policy, path), path.log_prob)
    first = policy.initial(unconditional(50)).log_prob(path.states[0])
    torch.testing.assert_close(path.log_prob[0], first)
    seen = Objective(lambda x, c: x.sum((1, 2)), policy.chain, 1.0).sample(policy, unconditional(50))
    assert (seen.kl[0] > 0.1).all() and (seen.kl[1:] == 0).all()


def test_weights_are_saved_once_and_come_back():
    policy = moved(tuned(LABELS))
    saved = {name: x.clone() for name, x in weights(policy).items()}
    assert sum("scale" in name for name in saved) == 1
    other = tuned(LABELS)
    load_weights(other, saved)
    assert torch.equal(other.initial(LABELS).mean, policy.initial(LABELS).mean)


def test_a_copy_is_independent_and_whole():
    policy = tuned()
    twin = copy.deepcopy(policy)
    assert twin.network is twin.chain.network and twin.network is not policy.network
    moved(twin)
    assert policy.initial(unconditional(1)).mean.abs().max() == 0
    average = EMA(twin, 0.0)
    assert {"offset.value", "chain.network.scale", "chain.log_std"} == set(average.state_dict())


def test_calls_of_the_network_are_counted():
    policy, counter = tuned(), NetworkCalls()
    with counter.watching([policy.network]):
        rollout(policy, unconditional(7))
    assert counter.forward == 4 * 7


def test_exact_references_read_it():
    policy, own = moved(tuned()).double(), chain().double()
    read, before = exact.affine(policy), exact.affine(own)
    law = policy.initial(unconditional(1))
    torch.testing.assert_close(read.mean, law.mean.flatten())
    torch.testing.assert_close(read.cov, (law.std.flatten() ** 2).diag())
    torch.testing.assert_close(read.weight, before.weight)


def test_is_trained_like_any_other_policy():
    """A linear reward shifts the best distribution of x_T by as much as the chain hands on."""
    reference = GaussianPolicy(Keep(), linear(1), (1,), noise=DDIM(0.05), prediction_type="sample")
    policy = TunedStart(copy.deepcopy(reference))
    objective = Objective(lambda x, c: x[:, 0], reference.requires_grad_(False), 2.0)
    optimizer = torch.optim.Adam(policy.offset.parameters(), 0.05)
    for _ in fit(policy, objective, PPO(), [unconditional(256)] * 15, optimizer):
        pass
    law = policy.initial(unconditional(1))
    assert law.mean.item() == pytest.approx(exact_shift(reference), abs=0.1)


class Keep(nn.Module):
    """Takes x_t for x_0."""

    def forward(self, x, time, cond):
        return x


def exact_shift(reference):
    read = exact.affine(reference)
    return exact.solve(read, exact.linear(torch.ones(1, dtype=torch.float64)), 2.0).policy.mean.item()


def test_what_cannot_be_tuned_is_refused():
    with pytest.raises(ValueError, match=r"needs a tensor among them, but \['prompt'\] are text"):
        TunedStart(chain(), {"prompt": ["a", "b"]})
    discrete = TunedStart(chain())
    discrete.chain.initial = sticky(2, 3, 0.5).initial
    with pytest.raises(ValueError, match="starts from a Gaussian, but got a Categorical"):
        discrete.initial(unconditional(2))
