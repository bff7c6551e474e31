"""Contracts of every policy: rows in any order, batch and mixture say what a plain loop says."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn as nn
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import path_kl
from torch import Tensor

from difftilt import processes
from difftilt.conditions import batch_size, context, repeat, take, unconditional
from difftilt.guidance.corrected import Corrected
from difftilt.guidance.flip_guided import FlipGuided
from difftilt.guidance.start import TunedStart
from difftilt.guidance.tempered import Tempered
from difftilt.guidance.value_guided import ValueGuided
from difftilt.guidance.window import Window
from difftilt.objective import Objective
from difftilt.policy import Policy, Trajectory, Transitions, chain, decide, path_log_prob, rollout
from difftilt.processes.gaussian import GaussianPolicy
from difftilt.processes.masked import MaskedPolicy
from difftilt.processes.noise import FlowSDE
from difftilt.processes.schedule import linear, shifted_flow
from difftilt.processes.simplex import SimplexPolicy, schedule
from difftilt.processes.uniform import UniformPolicy
from difftilt.shapes import Cond
from difftilt.transition import Categorical

STEPS, BATCH = 3, 4


class Network(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.linear = nn.Linear(inputs + 2, outputs)

    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        told = torch.stack([time.double() / 1000, torch.as_tensor(cond["label"]).double()], 1)
        return self.linear(torch.cat([x.double(), told], 1)).tanh()


class Tokens(Policy):
    """Two positions of three categories: the least policy over a discrete state."""

    def __init__(self):
        super().__init__()
        self.network, self.steps, self.symbols = Network(2, 6), STEPS, 3

    def initial(self, cond: Cond) -> Categorical:
        return Categorical(torch.full((batch_size(cond), 2, 3), 1 / 3).double())

    def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Categorical:
        return Categorical(self.network(x, t, cond).view(-1, 2, 3).softmax(-1))

    def decode(self, x: Tensor, cond: Cond) -> Tensor:
        return x.double().sum(1, keepdim=True)


def gaussian() -> GaussianPolicy:
    return GaussianPolicy(Network(2, 2), linear(STEPS), (2,), prediction_type="sample", tune_std=True)


def flow() -> GaussianPolicy:
    settings: Any = {"noise": FlowSDE(), "prediction_type": "flow_prediction", "tune_std": True}
    return GaussianPolicy(Network(2, 2), shifted_flow(STEPS), (2,), **settings)


def tuned_start() -> TunedStart:
    return TunedStart(gaussian())


def tempered() -> Tempered:
    return Tempered(gaussian(), 1.5)


class Guess(Network):
    """Logits of three positions from their one-hot vectors."""

    def __init__(self, categories: int = 3):
        super().__init__(3 * categories, 6)

    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        return super().forward(x.flatten(1), time, cond).view(-1, 3, 2)


def masked() -> MaskedPolicy:
    return MaskedPolicy(Guess(), 2, 3, decode=lambda x, cond: x.double())


def bernoulli() -> MaskedPolicy:
    return MaskedPolicy(Guess(), 2, 3, steps=STEPS, unmasking="bernoulli", decode=lambda x, cond: x.double())


def uniform() -> UniformPolicy:
    return UniformPolicy(Guess(2), 2, 3, steps=STEPS, decode=lambda x, cond: x.double())


def simplex() -> SimplexPolicy:
    return SimplexPolicy(Guess(), 2, 3, time=schedule(STEPS))


def total(x: Tensor, *_: Any) -> Tensor:
    """A reward, and a value that knows no time."""
    return x.double().sum(1) / 3


def guided() -> ValueGuided:
    policy = gaussian()
    return ValueGuided(policy, Objective(total, policy, 0.5), total, start=True)


def flip_guided() -> FlipGuided:
    policy = masked()
    return FlipGuided(policy, Objective(total, policy, 0.5), total)


def corrected() -> Corrected:
    policy = GaussianPolicy(Network(2, 2), linear(1), (2,), prediction_type="sample")
    return Corrected(policy, policy, "gibbs", 1, 0.1)


def window() -> Window:
    policy = GaussianPolicy(Network(2, 2), linear(STEPS + 2), (2,), prediction_type="sample")
    return Window(policy, torch.linspace(-1, 1, 2 * BATCH).double().view(BATCH, 2), STEPS + 1, STEPS)


CASES: list[Callable[[], Policy]] = [
    gaussian,
    Tokens,
    flow,
    tuned_start,
    tempered,
    masked,
    bernoulli,
    uniform,
    simplex,
    guided,
    flip_guided,
    corrected,
    window,
]


@pytest.fixture(params=CASES, ids=lambda make: make.__name__)
def policies(request) -> tuple[Policy, Policy]:
    torch.manual_seed(0)
    return request.param().double(), request.param().double()


def conditions() -> Cond:
    return {"label": torch.tensor([0, 1, 1, 2]), "prompt": ["a", "b", "b", "c"]}


@pytest.fixture
def path(policies) -> Trajectory:
    return rollout(policies[0], conditions())


def test_every_process_has_a_case():
    for module in pkgutil.iter_modules(processes.__path__):
        importlib.import_module(f"{processes.__name__}.{module.name}")

    def kinds(base: type) -> list[type]:
        return [kind for child in base.__subclasses__() for kind in [child, *kinds(child)]]

    ours = [k for k in kinds(Policy) if k.__module__.startswith("difftilt.") and not inspect.isabstract(k)]
    tested = {type(make()) for make in CASES}
    assert {k for k in ours if k.__module__.startswith(processes.__name__)} <= tested


def test_a_batch_of_times_equals_a_loop_over_them(policies, path):
    policy, other = policies
    x, t, cond = path.states[1], torch.tensor([3, 1, 2, 1]), path.cond
    step = policy(x, t, cond)
    for i in range(BATCH):
        row = torch.tensor([i])
        alone = policy(x[row], t[row], take(cond, row))
        torch.testing.assert_close(step.log_prob(path.states[2])[row], alone.log_prob(path.states[2][row]))
        base = other(x[row], t[row], take(cond, row))
        torch.testing.assert_close(step.kl(other(x, t, cond))[row], alone.kl(base))
    assert step.log_prob(step.sample()).isfinite().all()


def test_a_path_has_the_probability_with_which_it_was_drawn(policies, path):
    torch.testing.assert_close(path_log_prob(policies[0], path), path.log_prob, rtol=0, atol=1e-9)
    assert path.log_prob.shape == (STEPS + 1, BATCH)
    assert path.states.shape[:2] == (STEPS + 1, BATCH)
    assert path.sample.equal(policies[0].decode(path.states[-1], path.cond))


def test_a_chain_yields_the_decisions_that_a_rollout_keeps(policies):
    torch.manual_seed(5)
    path = rollout(policies[0], conditions())
    torch.manual_seed(5)
    decisions = list(chain(policies[0], conditions()))
    assert len(decisions) == STEPS + 1
    for k, d in enumerate(decisions):
        assert d.t.tolist() == [STEPS + 1 - k] * BATCH
        assert d.x_next.equal(path.states[k])
        assert d.x.equal(path.states[k - 1]) if k else d.x.eq(0).all()
        assert d.step.log_prob(d.x_next).equal(path.log_prob[k])
        assert not d.step.log_prob(d.x_next).requires_grad


def test_the_kl_of_a_path_counts_its_start(policies, path):
    """Decision by decision in a plain loop, the distribution of x_T included."""
    policy, other = policies
    kl = path_kl(policy, other, path)
    torch.testing.assert_close(kl[0], policy.initial(path.cond).kl(other.initial(path.cond)))
    for k in range(1, STEPS + 1):
        t = torch.full((BATCH,), STEPS + 1 - k)
        x = path.states[k - 1]
        torch.testing.assert_close(kl[k], policy(x, t, path.cond).kl(other(x, t, path.cond)))
    assert kl[1:].sum() > 0


def naive_rows(path: Trajectory, index: list[int]) -> list[tuple[Any, ...]]:
    rows = []
    for i in index:
        k, column = divmod(i, BATCH)
        x = path.states[k - 1, column] if k else torch.zeros_like(path.states[0, column])
        label = torch.as_tensor(path.cond["label"])[column]
        rows.append(
            (x, STEPS + 1 - k, path.states[k, column], int(label), path.cond["prompt"][column], k, column)
        )
    return rows


@settings(max_examples=25, deadline=None)
@given(index=st.lists(st.integers(0, (STEPS + 1) * BATCH - 1), min_size=1, max_size=20))
def test_rows_in_any_order_equal_a_plain_loop(index):
    torch.manual_seed(0)
    policy = Tokens().double()
    path = rollout(policy, conditions())
    rows = path.transitions(torch.tensor(index))
    log_prob = decide(policy, rows).log_prob(rows.x_next)
    for i, (x, t, x_next, label, prompt, k, column) in enumerate(naive_rows(path, index)):
        assert rows.x[i].equal(x) and rows.t[i] == t and rows.x_next[i].equal(x_next)
        assert torch.as_tensor(rows.cond["label"])[i] == label and rows.cond["prompt"][i] == prompt
        torch.testing.assert_close(log_prob[i], path.log_prob[k, column])


def test_all_rows_come_in_the_order_of_the_table(path):
    everything = path.transitions()
    assert everything.t.view(STEPS + 1, BATCH).tolist() == [[t] * BATCH for t in (4, 3, 2, 1)]
    assert everything.x_next.equal(path.states.flatten(0, 1))
    assert path.states[0].ne(0).any()  # what the rows of x_T must not have seen, nor overwritten


@pytest.mark.parametrize("t", [STEPS + 1, 1])
def test_rows_of_one_kind_only(policies, path, t):
    rows = path.transitions((path.transitions().t == t).nonzero()[:, 0])
    log_prob = decide(policies[0], rows).log_prob(rows.x_next)
    torch.testing.assert_close(log_prob, path.log_prob[STEPS + 1 - t])


def test_gradients_of_mixed_rows_are_those_of_the_parts(policies, path):
    policy = policies[0]
    parameters = list(policy.parameters())

    def gradient(rows: Transitions) -> list[Tensor]:
        log_prob = decide(policy, rows).log_prob(rows.x_next)
        if not log_prob.requires_grad:
            return [torch.zeros_like(p) for p in parameters]
        found = torch.autograd.grad(log_prob.sum(), parameters, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]

    order = torch.randperm((STEPS + 1) * BATCH)
    parts = [gradient(path.transitions(index)) for index in order.split(5)]
    for whole, *split in zip(gradient(path.transitions()), *parts, strict=True):
        torch.testing.assert_close(whole, torch.stack(split).sum(0))


def test_some_chains_of_a_path(path):
    index = torch.tensor([2, 0])
    some = path.chains(index)
    assert some.states.equal(path.states[:, index]) and some.log_prob.equal(path.log_prob[:, index])
    assert some.sample.equal(path.sample[index]) and some.cond["prompt"] == ["b", "a"]


def test_conditions_are_taken_and_repeated_side_by_side():
    cond = conditions()
    assert take(cond, torch.tensor([3, 0, 0]))["prompt"] == ["c", "a", "a"]
    twice = repeat(cond, 2)
    assert twice["prompt"] == ["a", "a", "b", "b", "b", "b", "c", "c"]
    assert torch.as_tensor(twice["label"]).tolist() == [0, 0, 1, 1, 1, 1, 2, 2]
    assert batch_size(twice) == 8 and batch_size(unconditional(3)) == 3
    with pytest.raises(ValueError, match=r"without entries; use unconditional\(n\)"):
        batch_size({})


def test_equal_conditions_make_one_context():
    assert context(conditions()).tolist() == [0, 1, 1, 2]
    assert context({"label": torch.tensor([1, 1, 1]), "prompt": ["a", "b", "a"]}).tolist() == [0, 1, 0]
    half = torch.tensor([[1.0, 2.0], [1.0, 3.0], [1.0, 2.0]], dtype=torch.bfloat16)
    assert context({"embed": half}).tolist() == [0, 1, 0]
    assert context({"a": ["xb=", "x"], "b": ["", "b="]}).tolist() == [0, 1]
    assert context(unconditional(3)).tolist() == [0, 0, 0]
