"""Several rewards as one: what it is, what each part said, and what is asked of whom."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from difftilt.answers import RewardError
from difftilt.conditions import unconditional
from difftilt.guard import Guard
from difftilt.rewards.combined import (
    Combined,
    Part,
    double_sigmoid,
    is_combined,
    linear,
    parse_terms,
    sigmoid,
    step,
)
from difftilt.rewards.scoring import Scoring, guarded

X = torch.tensor([[0.0], [1.0], [2.0], [4.0]])
ANY = unconditional(4)


def first(x: Tensor, c: Any) -> Tensor:
    return x[:, 0]


def squared(x: Tensor, c: Any) -> Tensor:
    return x[:, 0] ** 2


def combined(*parts: Part, **settings: Any) -> Guard:
    return guarded(list(parts), "all", Scoring(**settings))


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("sum", [0, 0.5 + 2, 1 + 2 * 4, 2 + 2 * 16]),
        ("product", [0, 1, (2**0.5 * 4**2) ** (1 / 2.5), (4**0.5 * 16**2) ** (1 / 2.5)]),
        ("minimum", [0, 1, 2, 4]),
    ],
)
def test_the_rules(rule, expected):
    guard = combined(Part("a", first, 0.5), Part("b", squared, 2.0), combine=rule)
    assert guard(X, ANY).tolist() == pytest.approx(expected, rel=1e-6)
    assert {name: x.tolist() for name, x in guard.parts.items()} == {"a": [0, 1, 2, 4], "b": [0, 1, 4, 16]}
    assert guard.calls == 4


def test_gradients_pass_through_all_parts():
    for rule, slope in (("sum", 0.5 + 2 * 2 * X), ("minimum", None), ("product", None)):
        x = X.clone().requires_grad_()
        shapes = (sigmoid(0, 4), linear(-1, 99)) if slope is None else (None, None)
        guard = combined(Part("a", first, 0.5, shapes[0]), Part("b", squared, 2.0, shapes[1]), combine=rule)
        guard(x, ANY).sum().backward()
        assert x.grad is not None and x.grad.isfinite().all() and x.grad.abs().sum() > 0
        assert slope is None or x.grad.allclose(slope)


def test_shapes():
    x = torch.tensor([-1.0, 0.0, 1.0, 2.0, 3.0])
    assert sigmoid(0, 2)(x)[[1, 2, 3]].tolist() == pytest.approx([0.0067, 0.5, 0.9933], abs=1e-4)
    assert sigmoid(2, 0)(x).allclose(1 - sigmoid(0, 2)(x), atol=1e-6)
    assert step(0, 2)(x).tolist() == [0, 1, 1, 1, 0]
    assert step(0, 2)(torch.tensor([math.nan])).isnan().all()
    assert linear(0, 2)(x).tolist() == [0, 0, 0.5, 1, 1]
    assert linear(2, 0)(x).tolist() == [1, 1, 0.5, 0, 0]
    inside = double_sigmoid(0, 2)(x)
    assert (
        inside[2] > 0.99
        and inside[[0, 4]].max() < 0.01
        and inside[[1, 3]].tolist() == pytest.approx([0.5] * 2)
    )


def asked_of(calls: list[float]) -> Any:
    def costly(x: Tensor, c: Any) -> Tensor:
        calls.extend(x[:, 0].tolist())
        return 10 * x[:, 0]

    return costly


def test_only_what_passes_the_gate_is_asked_further():
    calls: list[float] = []
    guard = combined(Part("cheap", first, gate=2), Part("costly", asked_of(calls)), unasked=-7.0)
    assert guard(X, ANY).tolist() == [-7, 1 - 7, 22, 44]
    assert calls == [2, 4]
    assert guard.parts["costly"].isnan().tolist() == [True, True, False, False]
    none = combined(Part("cheap", first, gate=9), Part("costly", asked_of(calls)), unasked=0.0)
    assert none(X, ANY).tolist() == [0, 1, 2, 4] and len(calls) == 2


def fails(x: Tensor, c: Any) -> Any:
    return [None if row == 1 else row for row in x[:, 0].tolist()]


def test_a_failing_part_is_named_and_costs_nothing_further():
    calls: list[float] = []
    parts = Part("gc", first), Part("dock", fails), Part("costly", asked_of(calls))
    with pytest.raises(RewardError, match=r"'dock' returned None for sample 1 of 4 in round 3"):
        stopping = combined(*parts)
        stopping.round = 3
        stopping(X, ANY)
    dropping = combined(*parts, on_error="drop")
    assert dropping(X, ANY).isnan().tolist() == [False, True, False, False]
    assert dropping.failure == ("got no answer of 'dock': it returned None for sample 1 of 4")
    assert calls == [0, 2, 4] and dropping.dropped == 1 and len(dropping.parts["gc"]) == 3
    paying = combined(*parts, on_error="penalty", penalty=-5.0)
    assert paying(X, ANY).tolist() == [0, -5, 24, 48]


def test_too_many_failures_stop_the_run():
    guard = guarded(fails, "dock", Scoring(on_error="drop", max_failures=0.2))
    with pytest.raises(
        RewardError, match=r"failed for 1 of 4 samples in round 0, but at most a share of 0.2"
    ):
        guard(X, ANY)


@pytest.mark.parametrize(
    ("parts", "settings", "message"),
    [
        ([Part("a", first), Part("a", squared)], {}, "called alike, but got a, a"),
        (
            [Part("a", first, -1.0), Part("b", squared)],
            {"combine": "product"},
            "exponents, and must",
        ),
        ([Part("a", first, gate=1.0), Part("b", squared)], {}, "got a gate and unasked None"),
        ([Part("a", first), Part("b", squared)], {"unasked": 0.0}, "got no gate and unasked 0.0"),
    ],
)
def test_what_cannot_be_combined_is_refused(parts, settings, message):
    with pytest.raises(ValueError, match=message):
        combined(*parts, **settings)


def test_a_product_of_negative_scores_is_refused():
    with pytest.raises(RewardError, match="part 'a' of a product must be at least 0"):
        combined(Part("a", first), Part("b", squared), combine="product")(-X, ANY)


def test_what_each_part_has_counted_travels_with_a_checkpoint():
    one, other = (combined(Part("a", first), Part("b", fails), on_error="drop", cache=True) for _ in range(2))
    one(X, ANY)
    other.load_state_dict(one.state_dict())
    assert isinstance(other.reward, Combined)
    assert [guard.calls for guard in other.reward.guards.values()] == [4, 4]
    other(X, ANY)
    assert [guard.calls for guard in other.reward.guards.values()] == [4, 5]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("qed:0.3 + a.py:f:0.7", [("qed", 0.3, False, None), ("a.py:f", 0.7, False, None)]),
        ("a.py:f", [("a.py:f", 1.0, False, None)]),
        ("a.py:e:1e-3@sigmoid(-6,-9)", [("a.py:e", 1e-3, True, None)]),
        (
            "gc@step(0.4, 0.6)>=0.5 + command:./dock.sh 1abc.pdb:2",
            [("gc", 1.0, True, 0.5), ("command:./dock.sh 1abc.pdb", 2.0, False, None)],
        ),
    ],
)
def test_terms(text, parts):
    found = parse_terms(text, lambda name: first)
    assert [(p.name, p.weight, p.shape is not None, p.gate) for p in found] == parts
    assert is_combined(text) == (parts[0][1:3] != (1.0, False) or len(parts) > 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a@sigmoid(1,1)", "got the ends 1 and 1"),
        ("a@step(2,1)", "got the ends 2 and 1"),
        ("a@bell(1,2)", "no shape 'bell' for a reward: valid are sigmoid"),
        ("a@sigmoid(1)", "is no NAME"),
        ("a + ", "is no NAME"),
        ("a:1>=x", "is no NAME"),
    ],
)
def test_terms_that_are_none(text, message):
    with pytest.raises(ValueError, match=message):
        parse_terms(text, lambda name: first)
