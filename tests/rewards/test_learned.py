"""Learned rewards: beliefs are rewards, ensembles know where they have learned nothing, intervals hold."""

import dataclasses

import numpy as np
import pytest
import torch

from difftilt.rewards.ensemble import Ensemble
from difftilt.rewards.held_out import (
    Judgement,
    best_tenth,
    calibrated,
    cross_validated,
    distance_to,
    judge,
    most_remote_tenth,
    nearest,
)
from difftilt.rewards.learned import Belief, Labels, belief_of, penalised
from difftilt.transition import one_hot

LETTERS, LENGTH, NOISE = 4, 6, 0.3
SMALL = Ensemble(LETTERS, members=4, width=16, steps=120)


def truth(x):
    weights = torch.randn(LENGTH, LETTERS, generator=torch.Generator().manual_seed(7))
    return weights[torch.arange(LENGTH), x].sum(1)


def measured(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(LETTERS, (count, LENGTH), generator=generator)
    return Labels(x, truth(x) + NOISE * torch.randn(count, generator=generator))


@pytest.fixture(scope="module")
def belief():
    return SMALL.fit(measured(400))


def test_bounds_and_members_are_rewards_around_the_mean(belief):
    x = measured(5, seed=1).sample
    wide = dataclasses.replace(belief, scale=3.0)
    found = wide(x)
    assert torch.equal(wide.mean(x, {}), belief.mean(x, {}))
    assert torch.allclose(found.std, 3 * belief(x).std)
    assert torch.allclose(wide.lower(2)(x, {}), found.mean - 2 * found.std)
    assert torch.allclose(wide.upper(0.5)(x, {}), found.mean + 0.5 * found.std)
    members = torch.stack([wide.member(i)(x, {}) for i in range(SMALL.members)])
    assert torch.allclose(members.mean(0), found.mean, atol=1e-6)
    assert torch.allclose(members.std(0), belief(x).std, atol=1e-6)
    with pytest.raises(ValueError, match=r"4 members.*got number 4"):
        wide.member(4)(x, {})


def test_an_ensemble_learns_and_repeats_itself(belief):
    new = measured(300, seed=2)
    assert judge(belief, new).correlation > 0.9
    again, other = SMALL.fit(measured(400)), dataclasses.replace(SMALL, seed=1).fit(measured(400))
    assert torch.equal(again.mean(new.sample, {}), belief.mean(new.sample, {}))
    assert not torch.equal(other.mean(new.sample, {}), belief.mean(new.sample, {}))


def test_the_noise_is_where_measurements_scatter():
    """Four times as much where the first letter is 0."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(LETTERS, (3000, LENGTH), generator=generator)
    noise = torch.where(x[:, 0] == 0, 0.8, 0.2)
    y = truth(x) + noise * torch.randn(len(x), generator=generator)
    found = dataclasses.replace(SMALL, steps=400, batch=128, learning_rate=0.03).fit(Labels(x, y))(x).noise
    loud, quiet = (found[noise == std].mean().item() for std in (0.8, 0.2))
    assert 0.15 < quiet < 0.35 < 0.6 < loud < 1


def test_members_part_where_nothing_was_measured():
    labels = measured(600)
    seen = (labels.sample[:, :2] == 0).all(1) | (labels.sample[:, :2] == 1).all(1)
    far = labels.sample[(labels.sample[:, :2] >= 2).all(1)]
    belief = SMALL.fit(labels.take(seen.nonzero()[:, 0]))
    assert belief(far).std.mean() > 1.3 * belief(labels.sample[seen]).std.mean()


def test_one_hot_vectors_are_the_same_samples_and_have_gradients():
    labels = measured(60)
    double = dataclasses.replace(SMALL, window=3, steps=30).taught(labels).double()
    lower = Belief(double.predict).lower(1.0)
    x = one_hot(labels.sample[:3], LETTERS).double()
    assert torch.allclose(lower(x, {}), lower(labels.sample[:3], {}))
    assert torch.autograd.gradcheck(lambda x: lower(x, {}), x.requires_grad_())


def test_both_strands_share_their_reward():
    labels = measured(60)
    twin = 3 - labels.sample.flip(1)
    for window in (0, 3):
        one = dataclasses.replace(SMALL, window=window, steps=20)
        both = dataclasses.replace(one, both_strands=True).fit(labels)
        assert torch.allclose(both.mean(twin, {}), both.mean(labels.sample, {}), atol=1e-6)
        assert not torch.allclose(
            one.fit(labels).mean(twin, {}), one.fit(labels).mean(labels.sample, {}), atol=0.01
        )


def test_filters_find_a_motif_where_it_was_never_seen():
    """Labels hold it in the first half only; it counts in the second half, too."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(1, LETTERS, (600, 12), generator=generator)
    y = torch.zeros(600)
    for row in range(300):
        x[row, row % 4 : row % 4 + 3], y[row] = 0, 1.0
    late = x[300:].clone()
    late[:, 8:11] = 0
    learner = Ensemble(LETTERS, members=4, width=16, steps=200, window=3)
    belief = learner.fit(Labels(x, y + 0.01 * torch.randn(600, generator=generator)))
    gain = belief.mean(late, {}).mean() - belief.mean(x[300:], {}).mean()
    whole = dataclasses.replace(learner, window=0).fit(Labels(x, y))
    assert gain > 0.3 > whole.mean(late, {}).mean() - whole.mean(x[300:], {}).mean()


def test_real_numbers_are_learned_too():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 2, 2, generator=generator)
    y = x.flatten(1).sum(1) + 0.1 * torch.randn(300, generator=generator)
    belief = Ensemble(0, members=4, width=16, steps=150).fit(Labels(x[:200], y[:200]))
    assert judge(belief, Labels(x[200:], y[200:])).correlation > 0.9


def test_what_cannot_be_learned_from_is_refused():
    labels = measured(40)
    for wrong in (labels.take(torch.arange(5)), Labels(labels.sample, torch.zeros(40))):
        with pytest.raises(ValueError, match=r"8 labels or more.*but got"):
            SMALL.fit(wrong)
    with pytest.raises(ValueError, match=r"20 labels or more.*got 10"):
        cross_validated(SMALL, labels.take(torch.arange(10)))
    with pytest.raises(ValueError, match="members must be >= 2"):
        Ensemble(4, members=1)


@pytest.mark.parametrize("sure", [0.2, 1.0, 5.0])
def test_intervals_hold_nine_in_ten_however_sure_the_learner_is(sure):
    class Learner:
        def fit(self, labels):
            x = one_hot(labels.sample, LETTERS).flatten(1).double()
            gram = x.T @ x + 1e-3 * torch.eye(x.shape[1])
            weights = torch.linalg.solve(gram, x.T @ labels.score.double())

            def predict(sample):
                mean = one_hot(sample, LETTERS).flatten(1).double() @ weights
                return mean.numpy(), np.full(len(sample), sure * NOISE)

            return belief_of(predict)

    belief = calibrated(Learner(), measured(1000))
    _, found = cross_validated(Learner(), measured(1000))
    assert 0.85 < judge(belief, measured(2000, seed=3)).coverage < 0.95
    assert 0.85 < found.coverage < 0.95
    assert belief.scale == pytest.approx(1 / sure, rel=0.1)
    with pytest.raises(ValueError, match="0 members"):
        belief.member(0)(measured(2).sample, {})


def test_predictions_that_are_too_bold_are_known_by_their_slope():
    labels, draw = measured(400), torch.Generator().manual_seed(0)
    noise = torch.randn(400, generator=draw)

    def judged(predicted: torch.Tensor) -> Judgement:
        return judge(belief_of(lambda x: (predicted.numpy(), np.full(len(x), NOISE))), labels)

    true, spread = labels.score, labels.score.std()
    assert judged(true).optimism == pytest.approx(0, abs=1e-3)
    assert judged(true / 2).optimism == 0, "too careful"
    bold = judged(true + spread * noise)  # half of its variance is noise
    assert bold.slope == pytest.approx(0.5, abs=3 * bold.slope_se) and 0 < bold.slope_se < 0.05
    assert bold.optimism == pytest.approx(1 - bold.slope, rel=0.03)
    few = Labels(labels.sample[:12], labels.score[:12])
    unsure = judge(belief_of(lambda x: (noise[: len(x)].numpy(), np.ones(len(x)))), few)
    assert abs(unsure.slope) < 3 * unsure.slope_se
    assert Judgement(3, 0.5, 0.1, 0.9).optimism == 0 and 0 < unsure.optimism < 1 - unsure.slope


def test_a_calibrated_ensemble_covers_fresh_measurements():
    assert 0.85 < judge(calibrated(SMALL, measured(400)), measured(2000, seed=3)).coverage < 0.95


def test_shifted_splits_hold_out_what_they_say():
    labels = measured(50)
    rest, best = best_tenth(labels)
    assert len(best) == 5 and labels.score[best].min() >= labels.score[rest].max()
    rest, remote = most_remote_tenth(labels, LETTERS)
    assert sorted([*rest.tolist(), *remote.tolist()]) == list(range(50))
    apart = (labels.sample[:, None] != labels.sample).double().mean(2) + torch.eye(50)
    assert apart[remote].min(1).values.min() >= apart[rest].min(1).values.max()


def test_distance_to_labels_is_a_penalty(belief):
    known, x = measured(20).sample, measured(5, seed=1).sample
    apart = (x[:, None] != known).float().mean(2).min(1).values
    assert torch.allclose(nearest(x, known, LETTERS), apart, atol=1e-6)
    careful = penalised(belief.mean, distance_to(known, LETTERS), 2.0)
    assert torch.allclose(careful(x, {}), belief.mean(x, {}) - 2 * apart, atol=1e-5)
    assert torch.allclose(
        nearest(x.double(), known.double(), 0), torch.cdist(x.float(), known.float()).min(1).values
    )
