"""DPO: preferences of Bradley and Terry lead to the tilted distribution, exactly and by samples."""

import pytest
import torch
from problems import ALPHA, EveryPath, finite, flat

from difftilt.algorithms.dpo import DPO, _dealt, _twice, preference_loss, preferences
from difftilt.conditions import unconditional
from difftilt.policy import Trajectory, path_log_prob
from difftilt.training.fit import fit
from difftilt.training.settings import Training

F64 = torch.float64


def every_path():
    """Each path of a finite chain once."""
    chain = EveryPath(3, 3)
    states = chain.paths.T[:, :, None]
    size = len(chain.paths)
    return Trajectory(states, states[-1], torch.zeros(4, size, dtype=F64), unconditional(size))


def pull(policy, alpha):
    """The gradient of the expected loss over pairs of all paths, a loss that is convex in log p."""
    problem, path = finite(), every_path()
    reward = torch.as_tensor(problem.objective.reward(path.sample, path.cond)).double()
    with torch.no_grad():
        before = path_log_prob(problem.objective.reference, path).sum(0)
    pairs = preferences(reward / alpha, torch.zeros(len(before), dtype=torch.long))
    gain = path_log_prob(policy, path).sum(0) - before
    return flat(preference_loss(gain[None], pairs), policy).norm().item()


def test_the_minimum_over_pairs_of_all_paths_is_the_tilted_chain():
    problem = finite()
    assert pull(problem.best, ALPHA) < 1e-12
    assert pull(problem.start, ALPHA) > 0.01  # which is the reference
    for alpha in (0.9 * ALPHA, 1.1 * ALPHA, -ALPHA):
        assert pull(problem.best, alpha) > 1e-3


@pytest.mark.parametrize("labels", ["expected", "drawn"])
def test_pairs_of_samples_lead_to_the_tilt_within_their_errors(labels):
    problem = finite()
    optimizer = torch.optim.Adam(problem.start.parameters(), 0.2)
    falls = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.01, 40)
    torch.manual_seed(0)
    algorithm = DPO(labels=labels, minibatches=4)
    for number in range(40):
        cond, training = [unconditional(512)], Training()
        list(fit(problem.start, problem.objective, algorithm, cond, optimizer, training, start=number))
        falls.step()
    before = problem.exact(finite().start).item()
    left = problem.optimum - problem.exact(problem.start).item()
    assert 0 <= left < (0.01 if labels == "expected" else 0.05) * (problem.optimum - before)


def test_pairs_are_of_one_context_and_their_chances_those_of_bradley_and_terry():
    logit, ids = torch.tensor([0.0, 1.0, 3.0, 3.0], dtype=F64), torch.tensor([0, 1, 0, 1])
    first, second, chance = preferences(logit, ids)
    assert [first.tolist(), second.tolist()] == [[0, 1], [2, 3]]
    torch.testing.assert_close(chance, torch.tensor([-3.0, -2.0], dtype=F64).sigmoid())
    torch.manual_seed(0)
    answers = torch.stack([preferences(logit, ids, drawn=True)[2] for _ in range(2000)])
    assert set(answers.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(answers.mean(0), chance, atol=0.03, rtol=0)
    gain = torch.tensor([[0.5, -0.5, 0.1, 0.3]], dtype=F64, requires_grad=True)
    by_hand = -(chance * torch.tensor([0.4, -0.8]).sigmoid().log()).sum() / 2
    by_hand = by_hand - ((1 - chance) * torch.tensor([-0.4, 0.8]).sigmoid().log()).sum() / 2
    torch.testing.assert_close(preference_loss(gain, (first, second, chance)), by_hand)
    nothing = preference_loss(gain, preferences(logit, torch.arange(4)))
    assert nothing == 0 and nothing.requires_grad


def test_every_sample_comes_with_one_of_its_context():
    ids = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 3])
    torch.manual_seed(0)
    parts = list(_dealt(ids, 3))
    assert sorted(torch.cat(parts).tolist()) == list(range(10))
    alone = [
        number for part in parts for number in ids[part].tolist() if ids[part].tolist().count(number) < 2
    ]
    assert alone.count(3) == 1 and len(alone) <= 4  # of each context an odd one may be left
    assert len(list(_dealt(ids, 9))) == 9


def test_contexts_that_all_differ_are_sampled_twice_in_turns():
    cond = {"label": torch.arange(5)}
    assert [_twice(cond, k)["label"].tolist() for k in (0, 1)] == [[0, 0, 2, 2], [1, 1, 3, 3]]
    assert _twice(unconditional(4), 1)["none"].tolist() == [0] * 4
    with pytest.raises(ValueError, match="but got a batch of 1"):
        _twice(unconditional(1), 0)
