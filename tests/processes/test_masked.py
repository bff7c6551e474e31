"""Masked chains against enumeration: every state of a short sequence can be listed."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from difftilt.conditions import unconditional
from difftilt.policy import rollout
from difftilt.processes.masked import MaskedPolicy
from difftilt.transition import Resampling, one_hot

CATEGORIES, LENGTH = 3, 4
KINDS = [{}, {"steps": 2}, {"steps": 3, "unmasking": "bernoulli"}]


class Table(nn.Module):
    """Any function of the state: one row of logits per state, and t shifts it."""

    def __init__(self, categories=CATEGORIES, length=LENGTH):
        super().__init__()
        self.categories, self.length = categories, length
        self.rows = nn.Embedding((categories + 1) ** length, length * categories)

    def forward(self, x: Tensor, t: Tensor, cond) -> Tensor:
        digits = (self.categories + 1) ** torch.arange(self.length)
        logits = self.rows((x.argmax(-1) * digits).sum(1)).view(len(x), self.length, self.categories)
        return logits * (1 + 0.1 * t[:, None, None])


def chain(**settings) -> MaskedPolicy:
    torch.manual_seed(0)
    return MaskedPolicy(Table(), CATEGORIES, LENGTH, **settings)


@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_a_chain_ends_without_masks_and_never_changes_a_token(settings):
    path = rollout(chain(**settings), unconditional(200))
    assert (path.states[0] == CATEGORIES).all()
    assert (path.states[-1] < CATEGORIES).all()
    for before, after in itertools.pairwise(path.states):
        assert torch.where(before < CATEGORIES, after == before, True).all()
    assert path.log_prob.isfinite().all()


def test_positions_take_a_fixed_number_each_step():
    path = rollout(chain(steps=2), unconditional(50))
    left = (path.states == CATEGORIES).sum(2)
    assert left.tolist() == [[4] * 50, [2] * 50, [0] * 50]
    uneven = rollout(chain(steps=3), unconditional(5))
    assert (uneven.states == CATEGORIES).sum(2)[:, 0].tolist() == [4, 3, 1, 0]


def test_bernoulli_leaves_each_position_masked_as_long_as_the_schedule_says():
    policy = chain(steps=3, unmasking="bernoulli")
    states = rollout(policy, unconditional(4000)).states
    for t in range(4):
        share = (states[3 - t] == CATEGORIES).double().mean().item()
        assert share == pytest.approx(t / 3, abs=4 * 0.5 / 16000**0.5)


@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_noise_has_the_marginals_of_its_own_steps(settings):
    """corrupt draws x_t at once, noising draws it step by step: the same number of masks, and their place."""
    policy, x_0 = chain(**settings), torch.randint(CATEGORIES, (6000, LENGTH))
    x = x_0
    for t in range(1, policy.steps + 1):
        time = torch.full((6000,), t)
        x = policy.noising(x, time).sample()
        at_once = policy.corrupt(x_0, time)
        for noised in (x, at_once):
            assert torch.where(noised < CATEGORIES, noised == x_0, True).all()
        first, second = ((y == CATEGORIES).double() for y in (x, at_once))
        spread = 4 * (2 / 6000) ** 0.5
        assert (first.mean(0) - second.mean(0)).abs().max() < spread
        assert ((first.T @ first - second.T @ second) / 6000).abs().max() < spread
        assert first.mean().item() == pytest.approx(1 - policy.signal(time)[0].item(), abs=spread + 0.13)
    assert (x == CATEGORIES).all()


@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_the_posterior_is_bayes_rule(settings):
    """q(x_{t-1} | x_t, x_0) ~ q(x_t | x_{t-1}) q(x_{t-1} | x_0), over all states x_{t-1}."""
    policy, t = chain(**settings), 2
    x_0 = torch.tensor([[0, 1, 2, 0]])
    every = torch.cartesian_prod(*[torch.arange(CATEGORIES + 1)] * LENGTH)
    count, time = len(every), torch.tensor([t])
    x = policy.noising(policy.noising(x_0, time - 1).sample(), time).sample()
    prior = policy.noising(x_0.expand(count, -1), torch.full((count,), 1)).log_prob(every)
    likelihood = policy.noising(every, torch.full((count,), t)).log_prob(x.expand(count, -1))
    exact = (prior + likelihood).softmax(0)
    law = policy.posterior(x_0.expand(count, -1), x.expand(count, -1), torch.full((count,), t))
    torch.testing.assert_close(law.log_prob(every).exp(), exact)


def test_the_kl_of_a_bernoulli_step_is_its_share_of_the_tokens():
    """KL = (1 - s / t) sum over masked positions of KL(p_i || q_i): one public code forgets the factor."""
    policy, other = chain(steps=5, unmasking="bernoulli"), chain(steps=5, unmasking="bernoulli")
    nn.init.normal_(other.network.get_parameter("rows.weight"))
    x, t = torch.tensor([[3, 1, 3, 3]]), torch.tensor([4])
    p, q = (c.clean(x, t, unconditional(1)).double() for c in (policy, other))
    each = (p * (p / q).log()).nan_to_num().sum(-1)[0, [0, 2, 3]].sum()
    found = policy(x, t, unconditional(1)).kl(other(x, t, unconditional(1)))
    assert found.item() == pytest.approx((1 / 4 * each).item(), rel=1e-5)


def test_a_position_law_counts_the_choice_of_positions():
    law = chain(steps=2).requires_grad_(False)(torch.full((1, 4), 3), torch.tensor([2]), unconditional(1))
    assert isinstance(law, Resampling)
    x = torch.tensor([[3, 1, 3, 0]])
    token = law.probs[0, 1, 1] * law.probs[0, 3, 0]
    assert law.log_prob(x).item() == pytest.approx(math.log(token / 6), rel=1e-6)
    for impossible in ([3, 1, 3, 3], [3, 1, 2, 0], [3, 3, 3, 3]):
        assert law.log_prob(torch.tensor([impossible])).item() == -math.inf


def test_frozen_positions_stay():
    start = torch.tensor([3, 1, 3, 0])
    policy = chain(start=start)
    path = rollout(policy, unconditional(100))
    assert policy.steps == 2
    assert (path.states[:, :, [1, 3]] == torch.tensor([1, 0])).all()
    noised = policy.corrupt(path.states[-1], torch.full((100,), 2))
    assert (noised == start).all()


@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_one_hot_states_are_the_same_states(settings):
    policy = chain(**settings)
    x, t = torch.tensor([[3, 1, 3, 3], [3, 3, 0, 3]]), torch.tensor([2, 2])
    x = torch.where(torch.tensor(settings == {"steps": 2}), torch.tensor([[3, 3, 3, 3]]), x)
    soft = one_hot(x, 4).float()
    hard_law, soft_law = policy(x, t, unconditional(2)), policy(soft, t, unconditional(2))
    y = hard_law.sample()
    assert torch.equal(hard_law.log_prob(y), soft_law.log_prob(y))
    assert torch.equal(hard_law.kl(hard_law), soft_law.kl(soft_law))


@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_relaxed_draws_are_one_hot_and_reach_the_weights(settings):
    policy = chain(**settings)
    x = policy.initial(unconditional(64)).rsample()
    for t in range(policy.steps, 0, -1):
        x = policy(x, torch.full((64,), t), unconditional(64)).rsample()
    assert set(x.detach().unique().tolist()) == {0.0, 1.0}
    assert policy.decode(x, unconditional(64)).shape == (64, LENGTH, CATEGORIES)
    policy.decode(x, unconditional(64))[..., 0].sum().backward()
    assert policy.network.get_parameter("rows.weight").grad.abs().max() > 0  # pyright: ignore[reportOptionalMemberAccess]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 5}, "takes 1 to 4 steps, but got 5"),
        ({"start": torch.tensor([3, 3])}, "start needs 4 tokens from 0 to 3"),
        ({"start": torch.tensor([3, 3, 3, 4])}, "where 3 is the mask"),
        ({"start": torch.tensor([0, 1, 2, 0])}, "no masked position"),
    ],
)
def test_a_chain_that_cannot_be_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        chain(**settings)
