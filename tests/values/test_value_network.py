"""What a value network sees of states: tokens have names, not sizes."""

import pytest
import torch
from torch import nn

from difftilt.conditions import unconditional
from difftilt.exact.tabular import random_chain
from difftilt.guidance.tempered import Tempered
from difftilt.policy import Policy
from difftilt.processes.masked import MaskedPolicy
from difftilt.processes.uniform import UniformPolicy
from difftilt.transition import one_hot
from difftilt.values.network import ValueNetwork

COUNT, LENGTH = 300, 3


class Flat(nn.Module):
    def forward(self, x, t, cond):
        return torch.zeros(len(x), LENGTH, 4)


def masked() -> Policy:
    return MaskedPolicy(Flat(), 4, LENGTH)


CHAINS = {
    "masked": masked,
    "uniform": lambda: UniformPolicy(Flat(), 4, LENGTH, steps=3),
    "tabular": lambda: random_chain(5, 3),
    "tempered": lambda: Tempered(masked(), 2.0),
}


def features(policy: Policy, x: torch.Tensor) -> torch.Tensor:
    cond = unconditional(len(x))
    return ValueNetwork(policy, cond)._features(x, torch.zeros(len(x), dtype=torch.long), cond)


@pytest.mark.parametrize("make", CHAINS.values(), ids=CHAINS)
def test_any_two_tokens_are_as_far_from_each_other(make):
    policy = make()
    length = policy.initial(unconditional(1)).sample().shape[1]
    x = torch.arange(policy.symbols)[:, None].expand(-1, length)
    distance = torch.pdist(features(policy, x))
    torch.testing.assert_close(distance, torch.full_like(distance, (2 * length) ** 0.5))
    numbers = torch.pdist(x.float())
    assert numbers.max() > 2 * numbers.min()


@pytest.mark.parametrize("make", CHAINS.values(), ids=CHAINS)
def test_any_sum_of_values_per_token_is_linear_in_the_features(make):
    """With tokens as numbers only those that rise or fall evenly would be."""
    torch.manual_seed(0)
    policy = make()
    length = policy.initial(unconditional(1)).sample().shape[1]
    x, table = torch.randint(policy.symbols, (COUNT, length)), torch.randn(length, policy.symbols)
    value = table[torch.arange(length), x].sum(1, keepdim=True)

    def missed(seen):
        return (seen @ torch.linalg.lstsq(seen, value, driver="gelsd").solution - value).std() / value.std()

    assert missed(features(policy, x)) < 1e-4
    assert missed(torch.cat([x.float(), torch.ones(COUNT, 1)], 1)) > 0.2


def test_relaxed_states_are_seen_as_the_tokens_that_they_stand_for():
    policy, x = masked(), torch.randint(5, (20, LENGTH))
    assert torch.equal(features(policy, x), features(policy, one_hot(x, 5).float()))
