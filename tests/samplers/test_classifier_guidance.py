"""Classifier guidance: log p(y | x_t) is a soft value at scale 1, and at no other scale."""

from typing import Any

import pytest
import torch
from torch import nn

from difftilt.conditions import unconditional
from difftilt.exact import grid
from difftilt.exact.toy import gmm, gmm_schedule
from difftilt.objective import Objective
from difftilt.policy import level
from difftilt.processes.gaussian import GaussianPolicy
from difftilt.processes.noise import FixedLarge
from difftilt.rewards.image import class_log_prob
from difftilt.samplers.classifier_guidance import class_value, classifier_guided
from difftilt.training.pretrain import classify_noised, warm_cosine

AXIS = grid.Axis(-6, 6, 301)
MEANS, SPREAD = torch.tensor([-2.0, 1.0], dtype=torch.float64), 1.2
NONE = unconditional(1)


class Labels(nn.Module):
    """Logits of y: of a clean sample -(x_0 - mean_y)^2 / (2 SPREAD^2), of noised ones as they are given."""

    def __init__(self, values=None):
        super().__init__()
        self.values = values  # log p(y | x_t) at the points of the axis, per class

    def forward(self, x, t, cond):
        if self.values is None:
            return -((x - MEANS) ** 2) / (2 * SPREAD**2)
        return torch.stack([solved.value(x, t, cond) for solved in self.values], 1)


def clean(target):
    return class_log_prob(lambda sample: Labels()(sample, None, None), target)


@pytest.fixture(scope="module")
def reference():
    settings: Any = {"prediction_type": "sample", "noise": FixedLarge()}
    return (
        GaussianPolicy(gmm(gmm_schedule()), gmm_schedule(), (1,), **settings).double().requires_grad_(False)
    )


@pytest.fixture(scope="module")
def classifier(reference):
    """The best classifier of noised samples: its logits are the exact log p(y | x_t)."""
    return Labels([grid.solve(Objective(clean(y), reference, 1.0), AXIS) for y in (0, 1)])


def distance(law, other):
    return ((law - other).abs().sum() / 2).item()


def tilted(reference, target, scale):
    """p(x_0) p(y | x_0)^scale."""
    return grid.solve(Objective(clean(target), reference, 1 / scale), AXIS).law


def test_probabilities_of_noised_samples_sum_to_one(classifier):
    """log p(y | x_t) of all y, each the exact soft value of its own reward, are normalised logits."""
    x = torch.linspace(-4, 3, 50, dtype=torch.float64)[:, None]
    for t in (1, 20, 50):
        assert classifier(x, level(x, t), NONE).exp().sum(1).sub(1).abs().max() < 1e-3


def test_scale_one_draws_the_conditional_law(reference, classifier, target=1):
    objective = Objective(clean(target), reference, 1.0)
    found = grid.evaluate(objective, classifier_guided(reference, objective, classifier, target), AXIS)
    law = tilted(reference, target, 1.0)
    assert distance(found.law, law) < 0.012
    assert distance(tilted(reference, target, 1.3), law) > 0.03  # so that the bound says something


def test_no_other_scale_draws_a_tilted_law(reference, classifier, scale=4.0):
    """Nor would it with infinitely many steps, of which the tilt of each step is the limit."""
    sharpened = Objective(clean(1), reference, 1 / scale)
    guided = classifier_guided(reference, Objective(clean(1), reference, 1.0), classifier, 1, scale)
    law = tilted(reference, 1, scale)
    scaled = class_value(classifier, 1)  # alpha = 1 / scale stands in the objective
    limit = grid.twist(sharpened, scaled, AXIS)
    found = grid.evaluate(sharpened, guided, AXIS)
    assert distance(limit.law, law) > 0.1
    assert distance(found.law, limit.law) < 0.02 < distance(found.law, law)


def test_the_class_may_be_a_condition(reference, classifier):
    both = {"y": torch.tensor([0, 1])}
    x, t = torch.tensor([[0.3], [0.3]], dtype=torch.float64), torch.tensor([7, 7])
    objective = Objective(clean("y"), reference, 1.0)
    together = classifier_guided(reference, objective, classifier, "y", 2.0)(x, t, both)
    for target in (0, 1):
        alone = classifier_guided(
            reference, Objective(clean(target), reference, 1.0), classifier, target, 2.0
        )
        assert torch.equal(alone(x, t, NONE).mean[target], together.mean[target])
    assert together.mean[0] < reference(x, t, both).mean[0] < together.mean[1]


def test_a_scale_of_nothing_is_refused(reference, classifier):
    with pytest.raises(ValueError, match="scale must be > 0, but got 0"):
        classifier_guided(reference, Objective(clean(0), reference, 1.0), classifier, 0, 0)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(3, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 2))

    def forward(self, x, t, cond):
        return self.mlp(torch.cat([x, t[:, None] / 50, (t[:, None] / 50).sqrt()], 1).float())


def test_cross_entropy_on_noised_samples_teaches_the_soft_value(reference, classifier):
    """The error is far below that of a classifier that never saw noise."""
    torch.manual_seed(0)
    which = torch.randint(2, (4000,))
    data = (MEANS[which] + 0.5 * torch.randn(4000, dtype=torch.float64))[:, None]
    label = torch.multinomial(Labels()(data, None, None).softmax(1), 1)[:, 0]
    network = Small()
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    schedule = warm_cosine(optimizer, 300)
    for _ in classify_noised(network, reference, data, label, unconditional(4000), optimizer, steps=300):
        schedule.step()
    x_0, t = data[:1000], torch.randint(1, 51, (1000,))
    x = reference.corrupt(x_0, t)
    exact = class_value(classifier, 1)(x, t, NONE).exp()
    learned = class_value(network, 1)(x, t, NONE).exp()
    unaware = class_value(Labels(), 1)(x, t, NONE).exp()
    assert (learned - exact).abs().mean() < 0.03
    assert (unaware - exact).abs().mean() > 0.1
