"""A guided chain and its base share the pass that both need at a state."""

import torch
from torch import nn

from difftilt.conditions import unconditional
from difftilt.networks.network_calls import NetworkCalls
from difftilt.networks.recalled import REMEMBERED, Recalled
from difftilt.objective import Objective
from difftilt.processes.gaussian import GaussianPolicy
from difftilt.processes.noise import FixedLarge
from difftilt.processes.schedule import from_betas
from difftilt.samplers.value_guidance import ValueGuidance


class Net(nn.Module):
    scale = 0.5

    def forward(self, x, time, cond):
        return self.scale * x.tanh() + 0.01 * time[:, None] + cond.get("label", torch.zeros(len(x)))[:, None]


def chain(network) -> GaussianPolicy:
    levels = from_betas(torch.tensor([0.2, 0.3, 0.4]))
    return GaussianPolicy(network, levels, (2,), prediction_type="sample", noise=FixedLarge())


def value(x, t, cond):
    return x.sum(1)


def test_another_question_is_answered_anew():
    network, cond = Net(), {"label": torch.arange(4)}
    once, x, t = Recalled(network), torch.randn(4, 2), torch.full((4,), 2.0)
    with torch.no_grad():
        assert once(x, t, cond) is once(x.clone(), t.clone(), {"label": torch.arange(4)})
        for asked in ((x + 1, t, cond), (x, t - 1, cond), (x, t, {"label": torch.zeros(4)})):
            assert torch.equal(once(*asked), network(*asked))
            assert not torch.equal(once(*asked), once(x, t, cond))
        unaware = once(x, t, cond)
    assert once(x, t, cond) is not unaware  # it may have to pass a gradient
    assert once(x, t, cond) is not once(x, t, cond)
    assert once.scale == 0.5  # all else is the network's own


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
    network, counter = Net(), NetworkCalls()
    once, x, t, cond = Recalled(network), torch.randn(4, 2), torch.full((4,), 2.0), {"label": torch.zeros(4)}
    with counter.watching([network]), torch.no_grad():
        for _ in range(3):
            once(x, t, cond)
        once(x.clone() + 1, t, cond)
    assert counter.forward == 8


def test_only_so_many_answers_are_held():
    once, counter = Recalled(network := Net()), NetworkCalls()
    with counter.watching([network]), torch.no_grad():
        for number in [*range(REMEMBERED + 1), 0]:  # the first is forgotten by then
            once(torch.full((1, 2), float(number)), torch.zeros(1), {})
    assert counter.forward == REMEMBERED + 2
