"""What PPO refuses, clips, remembers and saves."""

import pytest
import torch
import torch.nn as nn
from problems import affine, finite

from difftilt.algorithms.ppo import HISTORY, MIN_HISTORY, PPO
from difftilt.conditions import unconditional
from difftilt.exact import tabular
from difftilt.exact.tabular import sticky
from difftilt.objective import Objective
from difftilt.processes.gaussian import GaussianPolicy
from difftilt.processes.schedule import cosine


class Network(nn.Module):
    """A small convolutional network on square images of one channel."""

    def __init__(self, dropout=0.0, width=16):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.SiLU(), nn.Dropout(dropout),
            nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(4, width), nn.SiLU(),
            nn.Conv2d(width, 1, 3, padding=1),
        )  # fmt: skip

    def forward(self, x, time, cond):
        return self.layers(x) + 1e-3 * time[:, None, None, None]


class Dense(nn.Module):
    """One hidden layer that sees all pixels at once."""

    def __init__(self, pixels, width=64):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(pixels, width), nn.SiLU(), nn.Linear(width, pixels)
        )

    def forward(self, x, time, cond):
        return self.layers(x).view_as(x)


def images(side=8, steps=4, **network):
    torch.manual_seed(0)
    return GaussianPolicy(Network(**network), cosine(steps), (1, side, side))


def brightness(x, cond):
    return x.flatten(1).mean(1)


def test_dropout_is_refused_before_the_first_update():
    policy = images(dropout=0.5)
    algorithm, objective = PPO(), Objective(brightness, images(), 1.0)
    with pytest.raises(ValueError, match="switch off dropout"):
        list(algorithm.losses(policy.train(), objective, unconditional(8)))
    assert len(list(algorithm.losses(policy.eval(), objective, unconditional(8)))) == 8


def test_later_ratios_may_move():
    problem, algorithm = finite(), PPO()
    rows = algorithm.losses(problem.start, problem.objective, unconditional(64))
    next(rows)
    with torch.no_grad():
        for parameter in problem.start.parameters():
            parameter += torch.randn_like(parameter)
    assert next(rows).stats["clipped"] > 0.1


def test_a_clip_per_dimension_is_wider_by_the_number_of_dimensions():
    clipped = {}
    for per_dim in (False, True):
        problem = affine(dimension=4)
        rows = PPO(clip=0.05, clip_per_dim=per_dim).losses(
            problem.start, problem.objective, unconditional(500)
        )
        next(rows)
        with torch.no_grad():
            problem.start.get_parameter("network.bias").add_(0.05)
        clipped[per_dim] = next(rows).stats["clipped"].item()
    assert clipped[True] < clipped[False] / 1.5


def test_a_constant_shift_of_the_reward_changes_nothing():
    losses = []
    for shift in (0.0, 1000.0):
        problem = finite()
        score = torch.tensor([0.1, 0.7, -0.3], dtype=torch.float64) + shift
        torch.manual_seed(0)
        objective = Objective(lambda x, c, s=score: s[x[:, 0]], problem.objective.reference, 0.5)
        losses.append(
            [loss.value.item() for loss in PPO().losses(problem.start, objective, unconditional(64))]
        )
    assert losses[0] == pytest.approx(losses[1], abs=1e-8)


def test_the_running_mean_of_a_context_is_that_of_its_last_rewards():
    problem, algorithm = finite(), PPO(advantage="context", epochs=1, minibatches=1)
    cond = {"context": torch.arange(8) % 2}
    for _ in range(30):
        list(algorithm.losses(problem.start, problem.objective, cond))
    assert len(algorithm.history) == 2
    assert {len(rewards) for rewards in algorithm.history.values()} == {HISTORY}
    copy = PPO(advantage="context")
    copy.load_state_dict(algorithm.state_dict())
    assert copy.history == algorithm.history
    assert copy.checked
    assert MIN_HISTORY < HISTORY


class Rounded(Network):
    """Samples in half precision and trains in single."""

    def forward(self, x, time, cond):
        output = super().forward(x, time, cond)
        return output if torch.is_grad_enabled() else output.bfloat16().float()


@pytest.mark.parametrize("side", [8, 32])
def test_sampling_in_another_precision_is_refused(side):
    policy = GaussianPolicy(Rounded(), cosine(4), (1, side, side), prediction_type="v_prediction")
    objective = Objective(brightness, policy, 1.0)
    with pytest.raises(ValueError, match="the precision you train in"):
        list(PPO().losses(policy, objective, unconditional(8)))


@pytest.mark.parametrize(("side", "network"), [(8, Network), (32, Network), (128, Network), (64, Dense)])
def test_float32_passes_at_any_size_and_for_any_partition_of_the_rows(side, network):
    """Though other batches are rounded otherwise, which can be seen in large sums."""
    torch.manual_seed(0)
    network = network() if network is Network else Dense(side**2)
    policy = GaussianPolicy(network, cosine(4), (1, side, side), prediction_type="v_prediction")
    for minibatches in (1, 5):
        algorithm = PPO(minibatches=minibatches, epochs=1)
        list(algorithm.losses(policy, Objective(brightness, policy, 1.0), unconditional(3)))
        assert algorithm.checked


@pytest.mark.parametrize("wrong", [{"clip": 0.0}, {"clip": 1.0}, {"epochs": 0}, {"minibatches": 0}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PPO(**wrong)


def test_the_path_s_own_soft_values_leave_no_noise_at_the_optimum():
    """There log p* / p_pre of the past is (v(x_t) - alpha log Z) / alpha: every return is as expected."""
    torch.manual_seed(0)
    score = torch.randn(6, dtype=torch.float64)
    objective = Objective(lambda x, c: score[x[:, 0]], sticky(6, 5, 0.9).requires_grad_(False), 0.5)
    optimum = tabular.solve(objective).policy
    left = {}
    for advantage in ("path", "batch"):
        algorithm = PPO(epochs=1, minibatches=1, kl="reward", advantage=advantage, normalize=False)
        seen = objective.sample(optimum, unconditional(64))
        left[advantage] = algorithm._advantage(algorithm._returns(seen), seen).abs().max().item()
    assert left["path"] < 1e-6
    assert left["batch"] > 0.1
