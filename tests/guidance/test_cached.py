"""A guided chain and its base share the pass that both need at a state."""

import torch
from torch import nn

from difftilt.conditions import unconditional
from difftilt.guidance.cached import Cached
from difftilt.networks.network_calls import NetworkCalls
from difftilt.objective import Objective
from difftilt.processes.gaussian import GaussianPolicy
from difftilt.processes.noise import FixedLarge
from difftilt.processes.schedule import from_betas
from difftilt.samplers.value_guidance import ValueGuidance


class Net(nn.Module):
    def forward(self, x, time, cond):
        return 0.5 * x.tanh()


def chain(network) -> GaussianPolicy:
    levels = from_betas(torch.tensor([0.2, 0.3, 0.4]))
    return GaussianPolicy(network, levels, (2,), prediction_type="sample", noise=FixedLarge())


def value(x, t, cond):
    return x.sum(1)


def test_another_state_or_level_is_answered_anew():
    policy, cond = chain(Net()), unconditional(4)
    once, x, t = Cached(policy), torch.randn(4, 2), torch.full((4,), 2)
    assert once(x, t, cond) is once(x, t, cond)
    assert torch.equal(once(x + 1, t, cond).mean, policy(x + 1, t, cond).mean)
    assert torch.equal(once(x, t - 1, cond).mean, policy(x, t - 1, cond).mean)
    assert not torch.equal(once(x, t, cond).mean, once(x, t - 1, cond).mean)
    assert once(x, t, cond) is not once(x, t, unconditional(4))
    with torch.no_grad():
        unaware = once(x, t, cond)
    assert once(x, t, cond) is not unaware


def test_a_guided_step_passes_the_denoiser_once_unless_another_chain_is_guided():
    reference = chain(Net())
    objective = Objective(lambda x, c: x.sum(1), reference, 1.0)
    passes = {}
    for policy in (reference, chain(reference.network)):
        torch.manual_seed(0)
        found = ValueGuidance().draw(objective, value, unconditional(5), policy)
        passes[policy] = found.network_calls["forward"]
        direct = ValueGuidance().guide(policy, objective, value)
        torch.manual_seed(0)
        assert torch.equal(objective.sample(direct, unconditional(5)).path.states[-1], found.x_0)
    assert passes[reference] == 3 * 5
    assert list(passes.values())[1] == 2 * 3 * 5


def test_the_counter_sees_every_pass():
    """So that the numbers above are not what memory hides from it."""
    policy, counter = chain(Net()), NetworkCalls()
    once, x, t, cond = Cached(policy), torch.randn(4, 2), torch.full((4,), 2), unconditional(4)
    with counter.watching([policy.network]):
        for _ in range(3):
            once(x, t, cond)
        once(x.clone(), t, cond)
    assert counter.forward == 8
