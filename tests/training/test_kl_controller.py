"""A target KL: on simulated plants that answer late, on a real chain, and across a kill."""

import copy
import json
import math

import pytest
import torch
from toy_run import Job, remains

from difftilt.algorithms.ppo import PPO
from difftilt.conditions import unconditional
from difftilt.objective import Objective
from difftilt.training.alpha import starting_alpha
from difftilt.training.fit import fit
from difftilt.training.kl_controller import LARGEST_STEP, RANGE, KLController
from difftilt.training.settings import Training

# the KL that training would end with, in nats, as a function of alpha
PLANTS = {"tilt": lambda alpha: 0.08 / alpha**2, "mode": lambda alpha: 2.3 - 0.92 * math.log(alpha)}
ROUNDS, CLIPPED = 60, Training(max_norm=0.1)


def make_objective(alpha: float) -> Objective:
    return Objective(lambda sample, cond: sample[:, 0], Job().policy, alpha)


def follow(plant, target: float, start: float, lag: int, **options: float) -> list[float]:
    """The KL of every round, where it moves 1 / lag of its way to the plant's level."""
    alpha = 1.0  # the one that the target asks for, by Newton in log alpha
    for _ in range(50):
        slope = (plant(alpha * 1.001) - plant(alpha)) / math.log(1.001)
        alpha *= math.exp(min(max((target - plant(alpha)) / slope, -0.5), 0.5))
    controller, kl, seen = KLController(make_objective(start * alpha), target, **options), 0.0, []
    for _ in range(ROUNDS):
        seen.append(kl)
        controller.update({"kl_nats": kl})
        kl += (plant(controller.objective.alpha) - kl) / lag
    return seen


def settles(seen: list[float], target: float) -> bool:
    return max(seen) < 4 / 3 * target and all(abs(kl / target - 1) < 0.05 for kl in seen[-10:])


CASES = [(name, target, start) for name in PLANTS for target in (2.0, 4.0) for start in (1.0, 3.0)]


@pytest.mark.parametrize("lag", [4, 8])
@pytest.mark.parametrize(("name", "target", "start"), CASES)
def test_a_plant_that_answers_late_settles_on_the_target(name, target, start, lag):
    assert settles(follow(PLANTS[name], target, start, lag), target)


@pytest.mark.parametrize("lag", [4, 8])
@pytest.mark.parametrize("target", [2.0, 4.0])
def test_a_plain_integrator_misses_the_same_bounds(target, lag):
    """Without a look ahead alpha falls while the KL is on its way, and the KL overshoots."""
    assert max(follow(PLANTS["tilt"], target, 1.0, lag, horizon=0)) > 4 / 3 * target


@pytest.mark.parametrize("lag", [2, 4, 8])
@pytest.mark.parametrize("target", [2.0, 4.0])
@pytest.mark.parametrize("name", PLANTS)
def test_a_start_ten_times_off_neither_overshoots_nor_stops_short(name, target, lag):
    seen = follow(PLANTS[name], target, 10.0, lag)
    assert max(seen) < 1.1 * target
    assert all(abs(kl / target - 1) < 0.1 for kl in seen[-10:])


def test_nothing_moves_before_there_is_a_trend_and_never_far():
    controller = KLController(make_objective(0.5), 2.0)
    for kl, steps in ((0.0, 0), (100.0, 1), (1e6, 2)):
        controller.update({"kl_nats": kl})
        assert math.log(2 * controller.objective.alpha) == pytest.approx(steps * LARGEST_STEP)
    for _ in range(20):
        controller.update({"kl_nats": 1e6})
    assert controller.objective.alpha == pytest.approx(0.5 * RANGE)


def test_a_kl_that_falls_from_above_does_not_lower_alpha():
    controller = KLController(make_objective(0.5), 2.0)
    for kl in (9.0, 7.0, 5.0, 3.0):
        controller.update({"kl_nats": kl})
    assert controller.objective.alpha == 0.5


@pytest.mark.parametrize("row", [{}, {"kl_nats": math.nan}, {"kl_nats": math.inf}])
def test_a_round_without_a_kl_is_refused(row):
    with pytest.raises(ValueError, match="finite kl_nats of every round"):
        KLController(make_objective(0.5), 2.0).update(row)


@pytest.mark.parametrize("target", [0.0, -1.0, math.nan])
def test_an_impossible_target_is_refused(target):
    with pytest.raises(ValueError, match="target_kl must be"):
        KLController(make_objective(0.5), target)


@pytest.mark.parametrize("alpha", [0.6, 3.0])
def test_anyones_loop_reaches_the_target(alpha):
    torch.manual_seed(0)
    job, target = Job(), 0.5
    objective = Objective(lambda x, cond: x[:, 0], copy.deepcopy(job.policy).requires_grad_(False), alpha)
    optimizer = torch.optim.Adam(job.policy.parameters(), 3e-3)
    conds = [unconditional(256)] * 60
    rows = list(
        fit(
            job.policy,
            objective,
            PPO(),
            conds,
            optimizer,
            CLIPPED,
            kl_controller=KLController(objective, target),
        )
    )
    last = [row["kl_nats"] for row in rows if row["round"] >= 45]
    assert sum(last) / len(last) == pytest.approx(target, rel=0.1)
    assert max(row["kl_nats"] for row in rows) < 1.4 * target  # 1.5 and 2.2 without a look ahead
    for row in rows:
        assert row["objective"] == pytest.approx(row["reward"] - row["alpha"] * row["kl_nats"], abs=1e-5)


def test_a_start_from_the_pretrained_samples_reaches_the_target():
    """However far off the alpha that was asked for was: the start does not depend on it."""
    torch.manual_seed(0)
    job, target = Job(), 0.5
    objective = Objective(lambda x, cond: x[:, 0], copy.deepcopy(job.policy).requires_grad_(False), 10.0)
    rewards = objective.sample(objective.reference, unconditional(512)).reward
    objective.alpha = starting_alpha(rewards, target).alpha
    optimizer = torch.optim.Adam(job.policy.parameters(), 3e-3)
    controller = KLController(objective, target)
    rows = list(
        fit(
            job.policy,
            objective,
            PPO(),
            [unconditional(256)] * 40,
            optimizer,
            CLIPPED,
            kl_controller=controller,
        )
    )
    last = [row["kl_nats"] for row in rows if row["round"] >= 30]
    assert sum(last) / len(last) == pytest.approx(target, rel=0.1)
    assert max(row["kl_nats"] for row in rows) < 1.4 * target


def test_a_resumed_run_moves_alpha_as_the_unbroken_one(ram, monkeypatch):
    whole = Job()
    whole.train(ram / "whole", 8, target_kl=0.5)
    Job().train(ram / "broken", 5, target_kl=0.5)
    last = Job()
    last.train(ram / "broken", 8, target_kl=0.5)
    assert remains(ram / "whole") == remains(ram / "broken")
    assert last.objective.alpha == whole.objective.alpha != 0.5
    rows = [json.loads(line) for line in (ram / "whole" / "metrics.jsonl").read_text().splitlines()]
    alphas = [row["alpha"] for row in rows]
    assert alphas[::2] == alphas[1::2]
    assert alphas[:4] == [0.5] * 4 and len(set(alphas[4:])) == 6

    monkeypatch.setattr(KLController, "load_state_dict", lambda controller, state: None)
    Job().train(ram / "forgot", 5, target_kl=0.5)
    Job().train(ram / "forgot", 8, target_kl=0.5)
    assert remains(ram / "forgot")["metrics.jsonl"] != remains(ram / "whole")["metrics.jsonl"]


def test_a_run_is_resumed_with_the_target_it_was_started_with(ram):
    Job().train(ram, 2, target_kl=0.5)
    for other in (0.7, None):
        with pytest.raises(ValueError, match=r"target KL 0\.5, but"):
            Job().train(ram, 3, target_kl=other)
