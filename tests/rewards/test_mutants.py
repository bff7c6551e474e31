"""Proposals without a diffusion model: new, feasible, and better than what they are made of."""

import pytest
import torch

from difftilt.data.vocabulary import all_sequences
from difftilt.rewards.learned import Labels, belief_of
from difftilt.rewards.mutants import AdaLead, Genetic, TopOfLibrary, crossed, mutated

K, L = 4, 6


def score(x):
    return (x == 1).float().mean(1)


BELIEF = belief_of(lambda x: (score(x), torch.where(x[:, 0] == 0, 1.0, 0.0)))


def labels(count=60, seed=0):
    x = all_sequences(K, L)[torch.randperm(K**L, generator=torch.Generator().manual_seed(seed))[:count]]
    return Labels(x, score(x))


def odd(x):
    """No sequence that begins with 3 may be measured."""
    return x[x[:, 0] != 3]


PROPOSERS = {
    "genetic": Genetic(K, odd),
    "adalead": AdaLead(K, odd),
    "library": TopOfLibrary(odd(all_sequences(K, L))),
}


@pytest.mark.parametrize("name", PROPOSERS)
def test_proposals_are_new_feasible_and_repeat_themselves(name):
    known = labels()
    found, again = (
        PROPOSERS[name](known, BELIEF, 40, torch.Generator().manual_seed(1)).tolist() for _ in range(2)
    )
    assert found == again
    assert len(set(map(tuple, found))) == 40
    assert not set(map(tuple, found)) & set(map(tuple, known.sample.tolist()))
    assert all(word[0] != 3 for word in found)
    assert score(torch.tensor(found)).mean() > known.score.mean() + 0.1


def test_what_is_exhausted_ends():
    x = all_sequences(2, 3)
    known = Labels(x[:-1], torch.arange(7.0))
    for proposer in (Genetic(2), AdaLead(2), TopOfLibrary(x)):
        assert proposer(known, BELIEF, 5, torch.Generator().manual_seed(0)).tolist() in ([], [[1, 1, 1]])
    everything = Labels(x, torch.arange(8.0))
    assert Genetic(2)(everything, BELIEF, 5, torch.Generator()).shape == (0, 3)


def test_a_mutant_differs_in_one_letter_and_ends_stay_ends():
    x = torch.randint(K + 1, (500, L), generator=torch.Generator().manual_seed(0))
    changed = mutated(x, K, torch.Generator().manual_seed(1))
    differs = changed != x
    assert set(differs.sum(1).tolist()) == {0, 1}
    assert torch.equal(changed == K, x == K)
    whole = (x < K).all(1)
    assert (differs.sum(1)[whole] == 1).all()
    assert changed[differs].bincount(minlength=K).min() > 50


def test_children_take_every_letter_from_a_parent():
    parents = torch.stack([torch.zeros(L, dtype=torch.long), torch.ones(L, dtype=torch.long)])
    children = crossed(parents, 400, torch.Generator().manual_seed(0))
    assert 0.4 < children.float().mean() < 0.6
    assert len(children.unique(dim=0)) > 30


def test_the_library_is_searched_by_its_upper_bound():
    x = all_sequences(K, L)
    known = Labels(x[:1], torch.zeros(1))
    curious = TopOfLibrary(x, beta=2.0)(known, BELIEF, 20, torch.Generator())
    assert (curious[:, 0] == 0).all()
    assert TopOfLibrary(x, beta=0.0)(known, BELIEF, 1, torch.Generator()).tolist() == [[1] * L]
