"""A diversity filter: what it makes of a policy's optimum, what it remembers, and who never sees it."""

import copy
from typing import Any

import pytest
import torch
import torch.nn as nn
from torch import Tensor

from difftilt import PPO, Algorithm, Categorical, Job, Policy, View, fit, tune, unconditional
from difftilt.algorithms.backprop import Backprop
from difftilt.conditions import batch_size
from difftilt.evaluation.evaluate import evaluate
from difftilt.objective import Objective
from difftilt.rewards import diversity
from difftilt.rewards.diversity import DiversityFilter, texts_alike
from difftilt.samplers.best_of_n import BestOfN
from difftilt.settings import UsageError
from difftilt.shapes import Cond, State, Step
from difftilt.training.settings import Training


def spell(sample: Tensor) -> list[str]:
    return ["".join("ACGT"[token] for token in row) for row in sample.tolist()]


SAME = texts_alike(spell)["same"]


class Words(Policy):
    """Words of three letters, drawn at once, each by its own share."""

    def __init__(self, logits: Tensor):
        super().__init__()
        self.network, self.steps = nn.Module(), 1
        self.network.logits = nn.Parameter(logits.clone())

    def initial(self, cond: Cond) -> Categorical:
        return Categorical(torch.full((batch_size(cond), 3, 4), 0.25))

    def forward(self, x: State, t: Step, cond: Cond) -> Categorical:
        return Categorical(torch.as_tensor(self.network.logits).softmax(-1).expand(len(x), 3, 4))

    def decode(self, x: State, cond: Cond) -> State:
        return x


LOGITS = torch.tensor([[0.0, 0, 0, 0], [4.0, 0, 0, 0], [4.0, 0, 0, 0]])  # nearly always ?AA


def starts_with_a(sample: Tensor, cond: Cond) -> Tensor:
    return (sample[:, 0] == 0).float()


def tuned(filtered: DiversityFilter | None) -> tuple[list[dict[str, float]], Policy, Objective]:
    """A run whose reward leaves two of three letters free."""
    torch.manual_seed(0)
    objective = Objective(starts_with_a, Words(LOGITS).requires_grad_(False), 0.1, filtered)
    policy = copy.deepcopy(objective.reference).requires_grad_(True)
    optimizer = torch.optim.Adam(policy.parameters(), 0.2)
    rounds = [unconditional(64)] * 25
    rows = list(fit(policy, objective, PPO(epochs=1, minibatches=1, kl="reward"), rounds, optimizer))
    return rows, policy, objective


def test_the_same_reward_comes_with_more_different_samples():
    plain, narrow, _ = tuned(None)
    filtered, wide, objective = tuned(DiversityFilter(SAME, bucket=5, strength=2))
    seen = [evaluate(policy, objective, unconditional(256), {}, seed=0) for policy in (narrow, wide)]
    rewards = [x.reward.mean().item() for x in seen]
    different = [len(set(spell(x.sample))) for x in seen]
    assert min(rewards) > 0.9 and abs(rewards[0] - rewards[1]) < 0.05
    assert different[1] > 2 * different[0]
    assert "filtered_reward" not in plain[-1]
    assert filtered[-1]["filtered_reward"] < filtered[-1]["reward"] - 0.1  # told apart, and both are told
    assert filtered[-1]["objective"] == pytest.approx(
        filtered[-1]["reward"] - 0.1 * filtered[-1]["kl_nats"], abs=1e-4
    )


@pytest.mark.parametrize("strength", [0.5, 2.0])
def test_shares_of_bins_end_as_those_of_the_optimum_to_a_power(strength):
    torch.manual_seed(0)
    best = torch.tensor([0.6, 0.25, 0.1, 0.05]).double()
    filtered, states = DiversityFilter(SAME, bucket=2, strength=strength), torch.eye(4).long()
    share = best
    for _ in range(500):
        drawn = share.multinomial(200, replacement=True)
        filtered(states[drawn])
        price = DiversityFilter(SAME, 2, strength)
        price.load_state_dict(filtered.state_dict())
        share = (best.log() - price(states).double()).softmax(0)
    expected = best.pow(1 / (1 + strength))
    torch.testing.assert_close(share, expected / expected.sum(), rtol=0.05, atol=0)


def test_a_batch_is_priced_by_what_came_before_it():
    filtered = DiversityFilter(SAME, bucket=2, strength=3)
    sample = torch.tensor([[0], [0], [0], [1]])
    assert filtered(sample).tolist() == [0, 0, 0, 0]
    expected = 3 * torch.tensor([1.5, 1.5, 1.5, 1]).log()
    torch.testing.assert_close(filtered(sample), expected)
    assert filtered.state_dict() == {"bins": ["A", "C"], "counts": [6, 2]}


def test_what_is_in_no_bin_costs_nothing_and_is_not_remembered():
    filtered = DiversityFilter(lambda sample, known: [None, "a"], bucket=1)
    prices = [filtered(torch.zeros(2, 1)).tolist() for _ in range(3)]
    assert [price[0] for price in prices] == [0, 0, 0] and prices[2][1] > 0
    assert filtered.state_dict()["bins"] == ["a"]


def test_of_too_many_bins_the_rare_and_the_old_are_forgotten(monkeypatch):
    monkeypatch.setattr(diversity, "MOST", 3)
    filtered = DiversityFilter(SAME)
    for row in ([0], [0], [1], [2], [3]):
        filtered(torch.tensor([row]))
    assert filtered.state_dict() == {"bins": ["A", "G", "T"], "counts": [2, 1, 1]}


def test_similar_texts_are_named_after_the_nearest_that_came_first():
    texts: list[str] = []
    similar = texts_alike(lambda sample: texts)["similar"]

    def names(given: list[str], known: list[str]) -> Any:
        texts[:] = given
        return similar(torch.zeros(len(given)), known)

    given = ["ACGTACGTAC", "ACGTACGTAA", "ACGTACGGGG", "TTTT", "TTTTTTTT", "ACGTACGTAC", ""]
    expected = ["ACGTACGTAC", "ACGTACGTAC", "ACGTACGGGG", "TTTT", "TTTTTTTT", "ACGTACGTAC", ""]
    assert names(given, []) == expected
    assert names(["ACGTACGTGC"], ["GGGG", "ACGTACGTAC"]) == ["ACGTACGTAC"]
    assert names(["", ""], []) == ["", ""]


class Forbidden:
    """A filter that nobody may ask."""

    def __call__(self, sample: Tensor) -> Tensor:
        raise AssertionError("asked")

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: Any, /) -> None: ...


def test_who_judges_or_steers_never_asks_the_filter():
    objective = Objective(starts_with_a, Words(LOGITS), 0.1, Forbidden())
    seen = evaluate(objective.reference, objective, unconditional(20), {}, seed=0)
    assert seen.reward.equal(starts_with_a(seen.sample, {}).double())
    BestOfN(n=2).draw(objective, lambda x, t, cond: torch.zeros(len(x)), unconditional(2))
    with pytest.raises(AssertionError, match="asked"):
        objective.sample(objective.reference, unconditional(2))


def test_a_filter_that_would_do_nothing_is_refused_in_a_sentence():
    def job(name: str | None, view: View, algorithm: Algorithm | None = None) -> Job:
        return tune(
            Words(LOGITS), starts_with_a, algorithm, training=Training(diversity_filter=name), view=view
        )

    view = View(spell=spell, alike={"letter": SAME})
    with pytest.raises(UsageError, match=r"nothing tells whether samples .* are alike, but got"):
        job("same", View())
    with pytest.raises(UsageError, match="backprop learns from no rewards of single samples"):
        job("same", view, Backprop())
    with pytest.raises(UsageError, match="no diversity filter 'simlar': valid are same, similar, letter"):
        job("simlar", view)
    assert job("letter", view).objective.diversity and job(None, view).objective.diversity is None
