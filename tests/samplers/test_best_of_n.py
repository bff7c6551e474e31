"""The best of n samples: its distribution and its KL by enumeration, and what it says of Z."""

import itertools
import math

import pytest
import torch

from difftilt.conditions import unconditional
from difftilt.exact import landscape, tabular
from difftilt.exact.toy import gmm, gmm_schedule
from difftilt.guard import Guard
from difftilt.guidance.tempered import Tempered
from difftilt.objective import Objective
from difftilt.policy import decide
from difftilt.processes.gaussian import GaussianPolicy
from difftilt.processes.noise import FixedLarge
from difftilt.samplers.best_of import best_of, kl_of_best
from difftilt.samplers.best_of_n import BestOfN

ALPHA, STATES, STEPS = 0.5, 6, 4
SCORE = torch.tensor([1.2, -0.3, 0.4, -1.1, 0.1, 0.4], dtype=torch.float64)  # 2 and 5 are equal


def no_value(x, t, c):
    raise RuntimeError("best-of-N asks no value")


def objective_of(reward=None):
    torch.manual_seed(3)
    return Objective(reward or (lambda x, c: SCORE[x[:, 0]]), tabular.random_chain(STATES, STEPS), ALPHA)


def law_of(drawn):
    return torch.bincount(drawn.x_0[:, 0], minlength=STATES) / len(drawn.x_0)


def listed(law, scores, n):
    """Every n-tuple of samples, the first of the best kept."""
    best = torch.zeros_like(law)
    for chosen in itertools.product(range(len(law)), repeat=n):
        first = max(chosen, key=lambda k: (scores[k].item(), -chosen.index(k)))
        best[first] += law[list(chosen)].prod()
    return best


@pytest.mark.parametrize("n", [1, 2, 4])
def test_the_law_is_that_of_all_tuples(n):
    torch.manual_seed(0)
    law = torch.randn(STATES, dtype=torch.float64).softmax(0)
    torch.testing.assert_close(best_of(law, SCORE, n), listed(law, SCORE, n))


def test_impossible_samples_are_never_the_best():
    law = torch.tensor([0.0, 0.7, 0.3], dtype=torch.float64)
    best = best_of(law, torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64), 3)
    assert best.tolist() == pytest.approx([0, 1 - 0.3**3, 0.3**3])


def test_the_kl_is_exact_without_ties_and_a_bound_with_them():
    torch.manual_seed(0)
    fine = torch.full((20_000,), 1 / 20_000, dtype=torch.float64)
    for n in (1, 2, 16, 100):
        without = best_of(fine, torch.randperm(20_000).double(), n)
        assert landscape.kl(without, fine).item() == pytest.approx(kl_of_best(n), abs=2e-4)
        coarse = best_of(fine, torch.randint(5, (20_000,)).double(), n)
        assert landscape.kl(coarse, fine).item() <= kl_of_best(n) * 0.95 + 1e-9
    assert kl_of_best(16) == pytest.approx(math.log(16) - 15 / 16)


def test_samples_follow_the_law():
    objective = objective_of()
    torch.manual_seed(0)
    drawn = BestOfN(n=4).draw(objective, no_value, unconditional(20_000))
    reference = objective.reference
    assert isinstance(reference, tabular.TabularPolicy)
    base = tabular.evaluate(objective, reference).laws[0].detach()
    law = best_of(base, SCORE, 4)
    assert (law_of(drawn) - law).abs().sum().item() / 2 < 0.01
    assert torch.equal(drawn.reward, SCORE[drawn.x_0[:, 0]])
    assert drawn.kl.unique().tolist() == pytest.approx([kl_of_best(4)])
    assert landscape.kl(law, base).item() < kl_of_best(4)


@pytest.mark.parametrize("n", [2, 16])
def test_z_is_unbiased(n):
    objective = objective_of()
    solved = tabular.solve(objective)
    z = solved.optimum / ALPHA
    torch.manual_seed(0)
    for proposal in (None, Tempered(solved.policy, 1.5)):
        ratio = (BestOfN(n=n).draw(objective, no_value, unconditional(4000), proposal).log_z - z).exp()
        error = ratio.std().item() / 4000**0.5
        assert abs(ratio.mean().item() - 1) < 3 * error < 0.09


def test_a_proposal_adds_its_own_kl():
    """Of the chains that are kept: E[log p / p_pre] under the best of n, on paths, by enumeration."""
    objective = objective_of()
    proposal = Tempered(objective.reference, 1.5)
    torch.manual_seed(0)
    drawn = BestOfN(n=3).draw(objective, no_value, unconditional(20_000), proposal, history=True)
    path = drawn.path
    assert path is not None and torch.equal(path.states[-1], drawn.x_0)
    rows = path.transitions()
    log_p = decide(proposal, rows).log_prob(rows.x_next).view_as(path.log_prob)
    base = decide(objective.reference, rows).log_prob(rows.x_next).view_as(path.log_prob)
    torch.testing.assert_close(log_p, path.log_prob)
    torch.testing.assert_close(drawn.kl, kl_of_best(3) + (log_p - base).sum(0))
    assert drawn.kl.std() > 0.1


def test_every_sample_is_scored_once_and_failures_lose():
    bad = torch.tensor([1, 0, 0, 0, 0, 0], dtype=torch.bool)  # the best state

    def failing(x, c):
        return torch.where(bad[x[:, 0]], torch.nan, SCORE[x[:, 0]])

    objective = objective_of(Guard(failing, on_error="drop"))
    torch.manual_seed(0)
    drawn = BestOfN(n=8).draw(objective, no_value, unconditional(50))
    assert drawn.reward_calls == 400 and drawn.network_calls["forward"] == 400 * STEPS
    assert drawn.reward.isfinite().all() and not bad[drawn.x_0[:, 0]].any()
    objective.reward.reward = lambda x, c: torch.full((len(x),), torch.nan)
    with pytest.raises(ValueError, match="none of the 8 particles"):
        BestOfN(n=8).draw(objective, no_value, unconditional(2))


def test_parts_that_fit_into_memory_draw_the_same_law():
    levels = gmm_schedule(5)
    reference = GaussianPolicy(gmm(levels), levels, (1,), prediction_type="sample", noise=FixedLarge())
    seen: list[int] = []
    reference.network.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    objective = Objective(lambda x, c: x[:, 0], reference.requires_grad_(False), 0.5)
    rows = []
    for memory in (1024.0, 0.005):
        seen.clear()
        torch.manual_seed(0)
        drawn = BestOfN(n=30, memory=memory).draw(objective, no_value, unconditional(20))
        rows.append((drawn.summary(), max(seen)))
    (whole, most), (parts, few) = rows
    assert few < 30 < most  # less than one population
    assert parts["network_calls"] == whole["network_calls"] and parts["reward_calls"] == whole["reward_calls"]
    for name in ("reward", "log_z"):
        assert abs(parts[name] - whole[name]) < 4 * (parts[f"{name}_se"] + whole[f"{name}_se"])
