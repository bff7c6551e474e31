"""Every monitor is silent on a run that is well, and says one sentence on the fault that it is there for."""

import json
import math
from collections.abc import Mapping
from typing import Any, get_args

import pytest
import torch

from difftilt.answers import attainable, variance
from difftilt.conditions import unconditional
from difftilt.data.vocabulary import DNA, spell
from difftilt.evaluation.evaluate import ScoredSamples
from difftilt.evaluation.expected import expectations
from difftilt.evaluation.monitors import Alarm, Monitors
from difftilt.evaluation.run_folder import as_float
from difftilt.guard import Guard
from difftilt.rewards.ensemble import Ensemble
from difftilt.rewards.learned import Labels
from difftilt.rewards.saved import ABOVE, OPTIMISM, SPREAD, LearnedReward
from difftilt.training.settings import MonitorName

ROUNDS = 12
EXPECTED = {
    "variance": 6.0, "tilted_variance": 4.0, "kl_nats": 2.0, "kl_nats_se": 0.1, "least_kl_nats": 2.0,
    "least_kl_nats_se": 0.1,
}  # fmt: skip
BEFORE = {
    "alpha": 0.1, "objective": 0.3, "objective_se": 0.01, "reward_se": 0.01, "expected": EXPECTED,
    "parts": {SPREAD: 0.1, OPTIMISM: 0.1},
}  # fmt: skip


def healthy(k: int) -> dict[str, float]:
    """A row of round k."""
    return {
        "round": k, "alpha": 0.1, "kl_nats": 0.15 * (k + 1), "kl_nats_se": 0.01, "kl_error": 0.01,
        "kl_error_se": 0.02, "objective": 0.3 + 0.01 * k, "objective_se": 0.01, "variance": 6 - 0.15 * k,
        "reward": 0.4, "reward_se": 0.01,
        "distinct": 0.9, "clipped": 0.1, "grad_norm": 1.0 + 0.1 * k, "reward_calls": 100 * k,
        "dropped": 2 * k, f"part {SPREAD}": 0.1, f"part {ABOVE}": -0.2, f"part {OPTIMISM}": 0.3,
        "attainable": 0.5,
    }  # fmt: skip


# what is wrong from the sixth round on, and a part of what is to be said of it
FAULTS: dict[str, tuple[MonitorName, Mapping[str, float], str]] = {
    "repeated": ("collapse", {"distinct": 0.02}, "2% of them are distinct"),
    "alike": ("collapse", {"variance": 0.6}, "vary 0.1 times as much"),
    "too far": ("collapse", {"kl_nats": 5.0, "distinct": 0.4}, "their KL is 2.8 nats above"),
    "not setting out": ("exploration", {"kl_nats": 0.01}, "hardly set out"),
    "above all labels": ("generalisation", {f"part {ABOVE}": 0.3}, "0.3 above the best label"),
    "members disagree": ("generalisation", {f"part {SPREAD}": 0.3}, "spread 3 times"),
    "too bold": ("generalisation", {f"part {OPTIMISM}": 0.7}, "0.6 standard deviations of its labels"),
    "clipped": ("updates", {"clipped": 0.9}, "90% of the ratios"),
    "gradients": ("updates", {"grad_norm": 1000.0}, "1e+03 long"),
    "wrong formula": ("kl", {"kl_error": 0.9}, "differ from it by"),
    "fallen": ("kl", {"objective": -0.5}, "below the pretrained model's 0.3"),
}
REMEDIES = ("raise", "lower", "measure", "check", "mend", "start", "take")


def said(fault: Mapping[str, float], before: Mapping[str, Any] = BEFORE, **options: Any) -> list[Alarm]:
    """What is said of a run whose numbers are wrong from its sixth round on."""
    rows = [{**healthy(k), **(fault if k >= 5 else {})} for k in range(ROUNDS) for step in range(3)]
    return Monitors(before, ROUNDS, **options).see_all(json.loads(json.dumps(rows)))


def test_nothing_is_said_of_a_run_that_is_well():
    assert not said({})
    assert not said({}, target_kl=2.0)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_told_once_in_one_sentence_with_a_remedy(name: str):
    monitor, fault, part = FAULTS[name]
    (alarm,) = said(fault)
    assert alarm.monitor == monitor and part in alarm.text
    assert 6 <= alarm.round <= 8, "neither before the fault, nor long after"
    assert str(alarm).startswith(f"{monitor}, round {alarm.round}: ")
    assert ". " not in alarm.text and not alarm.text.endswith(".") and "\n" not in alarm.text
    assert any(word in alarm.text for word in REMEDIES)


def test_a_kl_above_what_is_asked_for_is_no_collapse_of_samples_that_differ():
    assert not said({"kl_nats": 5.0})
    assert not said({"kl_nats": 3.0, "distinct": 0.4}), "within a factor of four"


def test_a_batch_is_as_narrow_as_the_reward_asks_for():
    assert not said({"distinct": 0.13})


def test_an_alpha_below_what_samples_tell_asks_for_no_less():
    least = {name: EXPECTED[name] for name in ("variance", "least_kl_nats", "least_kl_nats_se")}
    still = {"kl_nats": 0.01}
    (alarm,) = said(still, BEFORE | {"expected": least})
    assert alarm.monitor == "exploration" and "at least 1.8" in alarm.text


def test_a_reward_that_no_sample_earns_is_told():
    never = {"reward": 0.0, "reward_se": 0.0, "kl_nats": 0.01}
    nothing = {"variance": 6.0, "kl_nats": 0.0, "kl_nats_se": 0.0, "least_kl_nats": 0.0}
    rows = [healthy(k) | never for k in range(ROUNDS)]
    before = BEFORE | {"expected": nothing, "reward": 0.0, "reward_se": 0.0}
    (alarm,) = Monitors(before, ROUNDS).see_all(rows)
    assert alarm.monitor == "exploration" and "is 0 for every sample" in alarm.text and alarm.round == 6
    assert not Monitors(before, ROUNDS).see_all([row | {"reward_se": 0.01} for row in rows])


def test_a_run_that_will_not_get_there_is_told_late():
    def late(fault: Mapping[str, float], **before: Any) -> list[str]:
        rows = [{**healthy(k), "attainable": 0.4, **fault} for k in range(ROUNDS)]
        rows[4]["attainable"] = rows[5]["attainable"] = 1.5  # once seen, it is known
        return [f"{alarm.round} {alarm.text}" for alarm in Monitors(BEFORE | before, ROUNDS).see_all(rows)]

    (said,) = late({})
    assert said.startswith("9 after 9 of 12 rounds J has risen by 0.07 of the 1.2 that its own samples")
    assert "; lower the learning rate, or" in said  # as the KL has cost more than J gained
    (said,) = late({"kl_nats": 0.5, "objective": 0.4})
    assert "; raise the learning rate or the number of rounds, or" in said
    assert not late({"objective": 0.6}), "a fair share of it"
    assert not late({"objective_se": 0.2}), "within its error"
    assert not late({}, alpha=0.2), "of another problem"


def test_the_largest_j_is_told_by_the_samples_of_any_policy():
    """With those of the optimum itself exactly; else by weights, each context for itself."""
    draw = torch.Generator().manual_seed(0)
    law, reward, alpha = torch.tensor([0.1, 0.2, 0.7]), torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 0.0]]), 0.5
    log_z = (law.log() + reward / alpha).logsumexp(1)
    contexts = torch.arange(20_000) % 2
    optimum = (law.log() + reward / alpha).softmax(1)
    for policy, error in ((optimum, 1e-6), (law.expand(2, 3), 0.02)):
        x = torch.multinomial(policy[contexts], 1, generator=draw)[:, 0]
        ratio = (policy / law).log()[contexts, x]
        found = attainable(reward[contexts, x], ratio, alpha, contexts)
        assert found.item() == pytest.approx(alpha * log_z.mean().item(), abs=error)
    few = [
        attainable(reward[0, x], torch.zeros(4), alpha, torch.zeros(4, dtype=torch.long)).item()
        for x in torch.multinomial(law.expand(2000, 3), 4, replacement=True, generator=draw)
    ]
    assert sum(few) / len(few) < alpha * log_z[0].item()


def test_every_monitor_has_a_fault():
    assert {monitor for monitor, _, _ in FAULTS.values()} == set(get_args(MonitorName))


def test_rewards_that_fail_are_told():
    rows = [healthy(k) | {"dropped": 50 * k} for k in range(ROUNDS)]
    (alarm,) = Monitors(BEFORE, ROUNDS).see_all(rows)
    assert alarm.monitor == "updates" and "fails for 50% of the samples" in alarm.text
    penalised = [{**row, "penalised": row.pop("dropped")} for row in map(dict, rows)]
    assert Monitors(BEFORE, ROUNDS).see_all(penalised) == [alarm]


def test_failures_that_pretrained_samples_have_and_pay_for_are_to_be_unlearned():
    calls = [100 * (k + 1) for k in range(ROUNDS)]
    rows = [{**healthy(k), "reward_calls": n, "penalised": 0.4 * n} for k, n in enumerate(calls)]
    assert not Monitors(BEFORE, ROUNDS).see_all(rows)
    worse = [{**row, "penalised": row["penalised"] + 30 * k} for k, row in enumerate(rows)]
    assert [alarm.monitor for alarm in Monitors(BEFORE, ROUNDS).see_all(worse)] == ["updates"]


def test_chains_that_failures_have_chosen_say_nothing_of_the_kl():
    rows = [healthy(k) | {"dropped": 50 * k, "kl_error": 0.9} for k in range(ROUNDS)]
    assert [alarm.monitor for alarm in Monitors(BEFORE, ROUNDS).see_all(rows)] == ["updates"]


def test_a_loss_that_is_small_for_alpha_is_none():
    sure = {"objective": 0.295, "objective_se": 0.0}
    assert not said(sure, BEFORE | {"objective_se": 0.0})
    assert said(sure | {"objective": 0.28}, BEFORE | {"objective_se": 0.0})


def test_a_target_that_is_overrun_is_told():
    (alarm,) = said({"kl_nats": 1.5}, target_kl=0.5)
    assert alarm.monitor == "kl" and "3 times its target" in alarm.text


def test_what_alpha_asked_for_counts_no_more_once_it_is_another():
    rows = [healthy(k) | {"alpha": 0.2, "objective": -1.0, "kl_nats": 0.01} for k in range(ROUNDS)]
    assert not Monitors(BEFORE, ROUNDS).see_all(rows)


@pytest.mark.parametrize(
    "odd", [None, float("nan"), 0, -1.0, float("inf"), 10**400], ids=lambda x: f"{x!s:.4}"
)
def test_odd_numbers_are_no_errors(odd: Any):
    rows = [healthy(k) for k in range(4)]
    for name in healthy(0).keys() - {"round"}:
        Monitors(BEFORE, ROUNDS, 1.0).see_all([row | {name: odd} for row in rows])
    for name in EXPECTED:
        Monitors(BEFORE | {"expected": EXPECTED | {name: odd}}, ROUNDS, 1.0).see_all(
            [healthy(k) for k in range(4)]
        )
    strange = BEFORE | {"objective": odd, "parts": {SPREAD: odd}}
    Monitors(strange, as_float(odd), as_float(odd)).see_all(rows)


def test_a_run_without_these_numbers_is_not_judged():
    assert not Monitors({}, 0).see_all([{"round": k, "loss": 0.1} for k in range(ROUNDS)])


def test_the_variance_of_tokens_is_the_chance_that_two_differ():
    x = torch.randint(4, (50, 3), generator=torch.Generator().manual_seed(0))
    pairs = (x[:, None] != x).double().sum(2)  # 1 - sum p^2 of indicators is half of |a - b|^2
    assert variance(x).item() == pytest.approx((pairs.sum() / (50 * 49)).item())
    weight = torch.arange(50.0).softmax(0)
    twice = variance(torch.cat([x, x]), torch.cat([weight, weight]) / 2)
    share = weight.double().square().sum().item()
    assert twice.item() * (1 - share / 2) == pytest.approx(variance(x, weight).item() * (1 - share))
    y = torch.randn(40, 2, 3, generator=torch.Generator().manual_seed(1))
    assert variance(y).item() == pytest.approx(y.double().flatten(1).var(0).sum().item())


def test_pretrained_samples_tell_the_variance_of_the_tilt():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, 1, generator=draw)
    found = expectations(ScoredSamples(x, (-x.square()[:, 0]).double(), torch.zeros(20_000), {}, 2.0))
    assert found["variance"] == pytest.approx(1, abs=0.05)
    assert found["tilted_variance"] == pytest.approx(0.5, abs=0.03)  # precision 1 + 2 / alpha
    assert found["kl_nats"] == pytest.approx((0.5 - 1 - torch.tensor(0.5).log().item()) / 2, abs=0.02)
    steep = expectations(ScoredSamples(x, (1000 * x[:, 0]).double(), torch.zeros(20_000), {}, 2.0))
    assert steep.keys() == {"variance", "least_kl_nats", "least_kl_nats_se"}
    assert 0.5 < steep["least_kl_nats"] <= math.log(20_000 / 10)
    same = expectations(ScoredSamples(x, torch.zeros(20_000).double(), torch.zeros(20_000), {}, 2.0))
    assert same["least_kl_nats"] == same["kl_nats"] == 0


def test_a_learned_reward_tells_what_generalisation_goes_by():
    x = torch.randint(4, (30, 3), generator=torch.Generator().manual_seed(0))
    labels, learner = Labels(x, (x == 0).float().mean(1)), Ensemble(4, members=2, steps=2)
    learned = LearnedReward(learner.taught(labels), learner, DNA, 3, 3, 1.0, 2.0, 0.75, optimism=0.6)
    guard = Guard(learned.of(lambda x: spell(x, DNA)))
    value, found = guard(x, unconditional(30)), learned.belief(x)
    torch.testing.assert_close(guard.parts[SPREAD], found.std)
    torch.testing.assert_close(guard.parts[ABOVE], found.mean - 0.75)
    deviations = (found.mean - labels.score.mean()) / labels.score.std()
    torch.testing.assert_close(guard.parts[OPTIMISM], 0.6 * deviations)
    torch.testing.assert_close(value, found.mean - 2 * found.std)
