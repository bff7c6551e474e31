"""Query rules: every one asks for whole batches of finite rewards, and repeats itself."""

import pytest
import torch

from difftilt.rewards.learned import Belief, Prediction, belief_of
from difftilt.rewards.queries import RULES, UCB, Ladder, Penalised, Query, Thompson, parts

ALPHA, ROUNDS = 0.05, 4
X = torch.randint(4, (6, 5), generator=torch.Generator().manual_seed(0))


def predict(x):
    """Member k says k + the first token."""
    members = torch.arange(7.0)[:, None] + x[:, 0]
    return Prediction(members.mean(0), members.std(0), torch.zeros(len(x)), members)


BELIEF = Belief(predict, members=7)


def asked(rule, alpha=ALPHA, round=1, seed=0, belief=BELIEF, rounds=ROUNDS):
    return rule(belief, alpha, round, rounds, torch.Generator().manual_seed(seed))


def rewards(queries):
    """Zero where none is asked for."""
    return [torch.zeros(len(X)) if query.reward is None else query.reward(X, {}) for query in queries]


def answers(queries):
    return [(query.alpha, query.share) for query in queries], torch.stack(rewards(queries)).tolist()


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_every_rule_asks_for_a_whole_batch_and_repeats_itself(rule):
    for round in range(ROUNDS):
        queries = asked(rule, round=round)
        assert sum(query.share for query in queries) == pytest.approx(1)
        for count in (1, 7, 96):
            assert sum(parts(queries, count)) == count
        assert torch.stack(rewards(queries)).isfinite().all()
        assert answers(asked(rule, round=round)) == answers(queries)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_every_rule_measures_its_alpha_by_the_objectives(rule):
    one, two = asked(rule), asked(rule, alpha=2 * ALPHA)
    assert [2 * query.alpha for query in one] == pytest.approx([query.alpha for query in two])


@pytest.mark.parametrize("name", ["thompson", "ladder"])
def test_parts_of_a_batch_ask_members_of_their_own(name):
    members = [(found - X[:, 0]).unique().tolist() for found in rewards(asked(RULES[name]))]
    assert all(len(member) == 1 for member in members)
    assert len({member[0] for member in members}) == 5
    assert answers(asked(RULES[name], seed=1)) != answers(asked(RULES[name]))


def test_members_are_asked_twice_only_when_all_were_asked():
    found = [(answer - X[:, 0])[0].item() for answer in rewards(asked(Thompson(parts=14)))]
    assert sorted(found) == sorted([*range(7), *range(7)])


def test_the_ladder_draws_each_part_more_sharply():
    assert [ALPHA / query.alpha for query in asked(Ladder())] == pytest.approx([1, 2, 4, 8, 16])
    assert [query.share for query in asked(Ladder((1.0, 3.0)))] == [0.5, 0.5]


def test_bounds_lie_above_and_below_what_greedy_asks_for():
    mean, std = BELIEF(X).mean, BELIEF(X).std
    assert torch.allclose(rewards(asked(RULES["greedy"]))[0], mean)
    assert torch.allclose(rewards(asked(UCB(2.0)))[0], mean + 2 * std)
    assert torch.allclose(rewards(asked(Penalised(2.0)))[0], mean - 2 * std)
    assert asked(RULES["random"])[0].reward is None


def test_the_alpha_of_the_penalised_rule_falls_to_the_objectives():
    found = [asked(Penalised(first=8.0), round=round)[0].alpha / ALPHA for round in range(4)]
    assert found == pytest.approx([8, 4, 2, 1])
    assert asked(Penalised(first=8.0), round=0, rounds=1)[0].alpha == ALPHA


def test_what_no_rule_can_ask_is_refused():
    process = belief_of(lambda x: (x[:, 0].float(), x[:, 0].float()))
    for name in ("thompson", "ladder"):
        with pytest.raises(ValueError, match="a belief that has none"):
            asked(RULES[name], belief=process)
    with pytest.raises(ValueError, match="got 4"):
        asked(Penalised(), round=4)
    with pytest.raises(ValueError, match="alpha must be"):
        Query(None, 0.0)
    with pytest.raises(ValueError, match="got none"):
        Ladder(())


def test_parts_differ_by_one_at_most():
    assert parts(asked(Thompson()), 96) == [19, 19, 20, 19, 19]
