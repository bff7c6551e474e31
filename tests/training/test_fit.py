"""The loop: what is descended, what is refused, and what a run counts and repeats."""

import copy
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from toy_run import Job, make_policy, remains, rounds_saved

from difftilt.conditions import unconditional
from difftilt.guard import RewardError
from difftilt.objective import Algorithm, Loss, Objective
from difftilt.policy import Policy
from difftilt.shapes import Cond
from difftilt.training.fit import NonFiniteError, fit
from difftilt.training.settings import Training
from difftilt.training.tree import pack, unpack

CONDS = [unconditional(4)]


@dataclass(eq=False)
class Given(Algorithm):
    """Yields losses c . w for given vectors c and the last bias w, so that each gradient is known."""

    slopes: list[Tensor] = field(default_factory=list)

    def losses(self, policy: Policy, objective: Objective, cond: Cond) -> Iterator[Loss]:
        for slope in self.slopes:
            weight = policy.network.get_parameter("layers.0.bias")
            yield Loss((slope * weight).sum(), {"size": slope.norm()})


def descend(slopes: list[Tensor], accumulate: int, max_norm: float | None = 1e9) -> tuple[Tensor, list[dict]]:
    """How far plain gradient descent of length 1 moved the weight."""
    policy = make_policy()
    weight = policy.network.get_parameter("layers.0.bias")
    start = weight.detach().clone()
    objective = Objective(lambda x, c: x[:, 0], copy.deepcopy(policy), 1.0)
    rows = list(
        fit(
            policy, objective, Given(slopes), CONDS, torch.optim.SGD(policy.parameters(), 1.0),
            Training(accumulate=accumulate, max_norm=max_norm),
        )
    )  # fmt: skip
    return start - weight.detach(), rows


@pytest.mark.parametrize("accumulate", [1, 2, 3, 4, 7])
def test_the_mean_of_the_yields_is_descended_and_no_yield_is_lost(accumulate):
    slopes = list(torch.randn(7, 8))
    parts = [slopes[i : i + accumulate] for i in range(0, 7, accumulate)]
    moved, rows = descend(slopes, accumulate)
    torch.testing.assert_close(moved, sum(torch.stack(part).mean(0) for part in parts))
    assert [row["size"] for row in rows] == pytest.approx(
        [torch.stack(p).norm(dim=1).mean().item() for p in parts]
    )


def test_accumulated_parts_are_one_large_step():
    slopes = torch.randn(4, 8)
    torch.testing.assert_close(descend(list(slopes), 4)[0], descend([slopes.mean(0)], 1)[0])


def test_gradients_are_clipped_to_the_given_length():
    moved, rows = descend([torch.full((8,), 3.0)], 1, max_norm=0.5)
    assert moved.norm().item() == pytest.approx(0.5, rel=1e-4)
    assert rows[0]["grad_norm"] == pytest.approx(72**0.5)


@pytest.mark.parametrize("unit", [1e-2, 1.0, 1e6])
def test_gradients_are_clipped_to_twice_the_median_of_those_before(unit):
    """Whatever their unit is; those of length 0 do not count."""
    sizes = [1.0, 0.0, 3.0, 0.0, 0.0, 2.0, 50.0, 0.0, 4.9, 5.1]
    first = torch.nn.functional.one_hot(torch.tensor(0), 8) * unit
    moved, rows = descend([size * first for size in sizes], 1, max_norm=None)
    taken = [1.0, 2.0, 2.0, 4.0, 4.9, 5.1]  # the medians are 1, 2, 2, 2.5 and 3, twice each
    assert moved.tolist() == pytest.approx([unit * sum(taken), *[0.0] * 7], rel=1e-4)
    assert [row["grad_norm"] for row in rows] == pytest.approx([unit * size for size in sizes])


def test_how_long_gradients_were_is_saved_with_the_optimizer():
    policy = make_policy()
    weight = policy.network.get_parameter("layers.0.bias")
    objective = Objective(lambda x, c: x[:, 0], copy.deepcopy(policy), 1.0)
    optimizer = torch.optim.SGD(policy.parameters(), 1.0)
    list(fit(policy, objective, Given([torch.ones(8)]), CONDS, optimizer))
    again = torch.optim.SGD(policy.parameters(), 1.0)
    again.load_state_dict(unpack(pack(optimizer.state_dict())))
    start = weight.detach().clone()
    list(fit(policy, objective, Given([100 * torch.ones(8)]), CONDS, again))
    torch.testing.assert_close(start - weight.detach(), 2 * torch.ones(8))


class Owning(Given):
    """Has a weight of its own."""

    def setup(self, policy: Policy, cond: Cond) -> None:
        super().setup(policy, cond)
        self.own = torch.nn.Parameter(torch.zeros(()))


def test_an_algorithm_whose_own_networks_would_not_learn_is_refused():
    policy, algorithm = make_policy(), Owning([torch.ones(8)])
    objective = Objective(lambda x, c: x[:, 0], copy.deepcopy(policy), 1.0)
    early = torch.optim.SGD(policy.parameters(), 1.0)
    algorithm.setup(policy, CONDS[0])
    with pytest.raises(ValueError, match="Owning has networks of its own that the optimizer does not train"):
        next(fit(policy, objective, algorithm, CONDS, early))
    late = torch.optim.SGD([*policy.parameters(), *algorithm.parameters()], 1.0)
    next(fit(policy, objective, algorithm, CONDS, late))


@settings(max_examples=60, deadline=None)
@given(
    bad=st.sampled_from([float("nan"), float("inf"), float("-inf")]),
    where=st.sampled_from(["gradient", "loss"]),
    parameter=st.integers(0, 3),
    entry=st.integers(0, 100),
    step=st.integers(0, 3),
    accumulate=st.sampled_from([1, 2]),
)
def test_nothing_infinite_reaches_weights_or_optimizer(bad, where, parameter, entry, step, accumulate):
    job = Job()
    hooked = list(job.policy.parameters())[parameter]
    backwards = itertools.count()

    def poison(gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        if next(backwards) == step * accumulate:
            gradient.view(-1)[entry % gradient.numel()] = bad
        return gradient

    @dataclass(eq=False)
    class Poisoned(Algorithm):
        def losses(self, policy: Policy, objective: Objective, cond: Cond) -> Iterator[Loss]:
            for k, loss in enumerate(job.algorithm.losses(policy, objective, cond)):
                yield Loss(loss.value + bad if k == step * accumulate else loss.value, loss.stats)

    if where == "gradient":
        hooked.register_hook(poison)
    job.algorithm.minibatches = 8
    steps = fit(
        job.policy, job.objective, Poisoned() if where == "loss" else job.algorithm, [unconditional(16)],
        job.optimizer, Training(accumulate=accumulate),
    )  # fmt: skip
    for _ in range(step):
        next(steps)
    before = copy.deepcopy((job.policy.state_dict(), job.optimizer.state_dict()))
    with pytest.raises(NonFiniteError, match="round 0"):
        next(steps)
    after = job.policy.state_dict(), job.optimizer.state_dict()
    assert str(before) == str(after)
    assert all(torch.equal(before[0][name], after[0][name]) for name in after[0])
    assert all(p.grad is None for p in job.policy.parameters())


def test_the_poison_is_strong_enough_to_kill_without_the_check(monkeypatch):
    monkeypatch.setattr("difftilt.training.fit.math.isfinite", lambda x: True)
    job = Job()
    next(iter(job.policy.parameters())).register_hook(lambda g: g * float("nan"))
    next(fit(job.policy, job.objective, job.algorithm, [unconditional(16)], job.optimizer))
    assert not all(p.isfinite().all() for p in job.policy.parameters())


@pytest.mark.parametrize("save_every", [1, 3, 100])
def test_a_broken_reward_stops_the_run_after_saving(ram, save_every):
    job, calls = Job(), itertools.count()
    fine = job.objective.reward.reward
    job.objective.reward.reward = lambda x, c: fine(x, c) if next(calls) < 5 else fine(x, c) / 0
    job.objective.reward.name = "ruler"
    with pytest.raises(RewardError, match=r"'ruler' returned -?inf for sample 0 of 16 in round 5"):
        job.train(ram / "broken", 8, save_every=save_every)
    assert rounds_saved(ram / "broken") == 5
    Job().train(ram / "broken", 8)
    Job().train(ram / "whole", 8)
    assert remains(ram / "broken") == remains(ram / "whole")


def test_an_infinite_gradient_stops_the_run_after_saving_the_last_whole_round(ram):
    """The step before the bad one moved the weights, but what is saved is the end of the last round."""
    job, backwards = Job(), itertools.count(1)
    weight = next(iter(job.policy.parameters()))
    weight.register_hook(lambda g: g * float("nan") if next(backwards) == 8 else g)
    with pytest.raises(NonFiniteError):
        job.train(ram / "broken", 6, save_every=100)
    assert rounds_saved(ram / "broken") == 3
    Job().train(ram / "broken", 6)
    Job().train(ram / "whole", 6)
    assert remains(ram / "broken") == remains(ram / "whole")


def test_the_same_seed_is_the_same_run_and_another_is_not(ram):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        Job().train(ram / name, 4, seed=seed)
    assert remains(ram / "a") == remains(ram / "b")
    assert remains(ram / "a")["policy.safetensors"] != remains(ram / "c")["policy.safetensors"]


def test_conditions_may_be_drawn_at_random(ram):
    """They come from the round's generators, and are not the same numbers as the chains' noise."""
    drawn = []

    @dataclass(eq=False)
    class Look(Algorithm):
        def losses(self, policy: Policy, objective: Objective, cond: Cond) -> Iterator[Loss]:
            drawn.append((cond["z"], torch.randn(4)))
            yield Loss(policy.network.get_parameter("layers.0.bias").sum(), {})

    for start in (0, 1):
        job = Job()
        conds = ({"z": torch.randn(4)} for _ in range(start, 2))
        list(fit(job.policy, job.objective, Look(), conds, job.optimizer, Training(seed=5), start=start))
    assert torch.equal(drawn[1][0], drawn[2][0])
    assert torch.equal(drawn[1][1], drawn[2][1])
    assert not torch.equal(drawn[1][0], drawn[1][1])


def test_a_private_generator_must_be_saved(ram):
    """The toy reward's noise is lost if its generator is not handed over: the comparison can fail."""
    Job().train(ram / "whole", 4)
    Job().train(ram / "broken", 2, generators=[])
    Job().train(ram / "broken", 4, generators=[])
    assert remains(ram / "whole")["metrics.jsonl"] != remains(ram / "broken")["metrics.jsonl"]


def test_totals_count_every_life(ram):
    first = Job().train(ram / "a", 2)
    last = Job().train(ram / "a", 5)
    whole = Job().train(ram / "b", 5)
    assert (last.rounds, last.steps, last.reward_calls) == (5, 10, 80)
    # per round: 16 chains of 5 steps by the policy and the reference, then once more in the loss; and once
    # in a run, PPO looks at one step again
    assert last.network_calls == 5 * 3 * 16 * 5 + 16
    assert last.network_calls_backward == 5 * 16 * 5
    assert last.seconds > first.seconds
    assert {**vars(last), "seconds": 0} == {**vars(whole), "seconds": 0}


def test_each_step_leaves_a_row(ram):
    Job().train(ram, 3)
    rows = [json.loads(line) for line in (ram / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["round"], row["reward_calls"]) for row in rows] == [
        (2 * k + i + 1, k, 16 * (k + 1)) for k in range(3) for i in range(2)
    ]
    wanted = {
        "loss",
        "grad_norm",
        "reward",
        "reward_se",
        "kl_nats",
        "kl_nats_se",
        "objective",
        "objective_se",
    }
    assert wanted <= rows[0].keys()
    assert rows[0]["kl_nats"] == 0


def test_finished_runs_stay_as_they_are(ram):
    Job().train(ram, 3)
    before = remains(ram)
    assert Job().train(ram, 2).rounds == 3
    assert remains(ram) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": -1}, "rounds must be"),
        ({"accumulate": 0}, "accumulate must be"),
        ({"max_norm": 0.0}, "max_norm must be"),
        ({"save_every": 0}, "save_every must be"),
        ({"keep": 0}, "keep must be"),
        ({"ema_decay": 1.0}, "ema_decay must be"),
    ],
)
def test_impossible_options_are_refused(ram, options, message):
    with pytest.raises(ValueError, match=message):
        Job().train(ram, **({"rounds": 1} | options))


def test_bfloat16_networks_keep_float32_densities(servant, ram):
    life = servant.Process(target=_bfloat16, args=(ram,))
    life.start()
    life.join()
    assert life.exitcode == 0


def _bfloat16(folder):
    from difftilt.training.distributed import make_accelerator

    job, kinds = Job(), set()
    layer = job.policy.network.get_submodule("layers.0")
    layer.register_forward_hook(lambda module, x, y: kinds.add(y.dtype))
    job.policy.network.register_forward_hook(lambda module, x, y: kinds.add(("out", y.dtype)))
    job.train(folder, 2, accelerator=make_accelerator("bf16"))
    assert kinds == {torch.bfloat16, ("out", torch.float32)}
    assert all(p.dtype == torch.float32 for p in job.policy.parameters())
    row = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    assert row["kl_nats"] == 0
    assert "forward" not in vars(job.policy.network)
