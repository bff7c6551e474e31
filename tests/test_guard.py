"""A reward's answer is one finite number per sample, or one sentence says what it was."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from difftilt.answers import Failure
from difftilt.conditions import unconditional
from difftilt.guard import Guard, RewardError
from difftilt.objective import Objective
from difftilt.processes.gaussian import GaussianPolicy
from difftilt.processes.schedule import cosine

SAMPLES = torch.arange(4.0)[:, None]
NAN, INF = float("nan"), float("inf")


def guarded(answer: Any, **settings: Any) -> Guard:
    """A reward that always gives this answer, in round 7."""
    guard = Guard(lambda x, c: answer, name="taste", **settings)
    guard.round = 7
    return guard


def fails_on(bad: set[int], error: Exception | None = None) -> Callable[..., Tensor]:
    """Twice the sample; some samples raise, or give NaN."""

    def reward(x: Tensor, c: Any) -> Tensor:
        if error and bad & {int(i) for i in x[:, 0]}:
            raise error
        return torch.where(torch.isin(x[:, 0], torch.tensor([float(i) for i in bad])), NAN, 2 * x[:, 0])

    return reward


GOOD = [0.0, 1.5, 2.0, 3.0]


@pytest.mark.parametrize(
    "answer",
    [
        torch.tensor(GOOD),
        torch.tensor(GOOD, dtype=torch.float64),
        torch.tensor(GOOD, dtype=torch.bfloat16),
        GOOD,
        tuple(GOOD),
        np.array(GOOD),
        np.array(GOOD, dtype=np.float16),
        [np.float32(x) for x in GOOD],
        [torch.tensor(x) for x in GOOD],
        [0, 1.5, 2, 3],
        np.array(GOOD, dtype=object),
        pd.Series(GOOD),
        pd.Series(GOOD, dtype="Float64"),
        pd.Series(GOOD, dtype=object),
        [torch.tensor(0.0), 1.5, np.float64(2), 3],
    ],
    ids=lambda answer: f"{type(answer).__name__} of {type(answer[0]).__name__}",
)
def test_numbers_in_any_container_are_accepted(answer):
    value = guarded(answer)(SAMPLES, unconditional(4))
    assert value.tolist() == GOOD
    assert value.dtype in (torch.float32, torch.float64)


@pytest.mark.parametrize(
    ("answer", "came"),
    [
        (torch.tensor([0.0, 1, NAN, 3]), "returned nan for sample 2 of 4"),
        ([0.0, 1, 2, -INF], "returned -inf for sample 3 of 4"),
        (np.array([INF, 1, 2, 3]), "returned inf for sample 0 of 4"),
        ([1.0, None, 2.0, 3.0], "returned None for sample 1 of 4"),
        (None, "returned None instead of one number for each of 4 samples"),
        (torch.ones(3), "returned shape (3,) instead of one number for each of 4 samples"),
        ([1.0, 2.0], "returned shape (2,) instead of"),
        (torch.ones(4, 1), "returned shape (4, 1) instead of"),
        (torch.tensor(1.0), "returned shape () instead of"),
        ([[1.0], [1.0], [1.0], [1.0]], "returned shape (4, 1) instead of"),
        ([], "returned shape (0,) instead of"),
        ([[1.0], [1.0, 2.0], [1.0], [1.0]], "returned a list of list instead of"),
        (1.0, "returned a float instead of"),
        ("1234", "returned a str instead of"),
        (["1", "2", "3", "4"], "returned a list of str instead of"),
        (np.array(["1", "2", "3", "4"]), "returned numbers of type <U1 instead of"),
        (torch.ones(4, dtype=torch.complex64), "returned numbers of type torch.complex64 instead of"),
        (np.ones(4, dtype=complex), "returned numbers of type complex128 instead of"),
        ([1j, 1j, 1j, 1j], "returned a list of complex instead of"),
        ({"score": 1.0}, "returned a dict instead of"),
        (map(float, range(4)), "returned a map instead of"),
        ([object()] * 4, "returned a list of object instead of"),
        ((torch.ones(4), {"info": 1}), "returned a tuple of (Tensor, dict) instead of one number"),
        (([1.0] * 4, None), "returned a tuple of (list, NoneType) instead of one number"),
        (np.ma.masked_array(GOOD, [False, True, False, False]), "returned a MaskedArray"),
        (torch.ones(4).to_sparse(), "returned a tensor of layout torch.sparse_coo instead of"),
        (pd.Series([1.0, None, 2.0, 3.0]), "returned nan for sample 1 of 4"),
        (pd.Series([1.0, None, 2.0, 3.0], dtype="Float64"), "returned nan for sample 1 of 4"),
        ([1.0, pd.NA, 2.0, 3.0], "returned <NA> for sample 1 of 4"),
        ([1.0, Failure("took longer than 30 s"), 2.0, 3.0], "took longer than 30 s for sample 1 of 4"),
        ([1.0, torch.tensor(1.0), "2", 3.0], "returned a list of (float, Tensor, str, float) instead of"),
        (pd.DataFrame({"score": GOOD}), "returned shape (4, 1) instead of"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_anything_else_is_refused_in_one_sentence(answer, came):
    with pytest.raises(RewardError) as caught:
        guarded(answer)(SAMPLES, unconditional(4))
    message = str(caught.value)
    assert came in message and "reward 'taste'" in message and "round 7" in message
    assert "\n" not in message and not re.search(r"\. [A-Z]", message)


def test_a_sample_that_raises_is_named_with_its_cause():
    guard = Guard(fails_on({2}, KeyError("no\nsuch atom")), name="taste")
    with pytest.raises(
        RewardError, match=r"'taste' raised KeyError \(.*atom'\) for sample 2 of 4 in round 0"
    ):
        guard(SAMPLES, unconditional(4))


def test_an_error_of_the_whole_batch_is_not_blamed_on_a_sample():
    def reward(x: Tensor, c: Any) -> Tensor:
        if len(x) > 1:
            raise RuntimeError("too many")
        return x[:, 0]

    with pytest.raises(RewardError, match=r"too many.* on 4 samples, but on none of them alone"):
        Guard(reward)(SAMPLES, unconditional(4))
    dropping = Guard(reward, on_error="drop")
    assert dropping(SAMPLES, unconditional(4)).tolist() == [0, 1, 2, 3]
    assert dropping.dropped == 0


def test_the_name_is_the_functions_own():
    def sweetness(x: Tensor, c: Any) -> Tensor:
        return x[:, 0] * NAN

    with pytest.raises(RewardError, match="reward 'sweetness' returned nan for sample 0"):
        Guard(sweetness)(SAMPLES, unconditional(4))


@pytest.mark.parametrize("error", [None, ValueError("no")])
@pytest.mark.parametrize("cache", [False, True])
def test_bad_samples_are_dropped_and_counted_if_asked(error, cache):
    guard = Guard(fails_on({1, 3}, error), on_error="drop", cache=cache)
    for count in (1, 2):
        value = guard(SAMPLES, unconditional(4))
        assert value.isnan().tolist() == [False, True, False, True]
        assert value[[0, 2]].tolist() == [0, 4]
        assert guard.dropped == 2 * count


@pytest.mark.parametrize("answer", [[1.0, None, INF, 2.0], np.array([1.0, NAN, -INF, 2.0])])
def test_dropped_numbers_become_nan_and_never_a_substitute(answer):
    value = guarded(answer, on_error="drop")(SAMPLES, unconditional(4))
    assert value.isnan().tolist() == [False, True, True, False]


def test_a_failure_is_dropped_with_its_reason():
    guard = guarded([1.0, 2.0, Failure("took longer than 30 s"), 3.0], on_error="drop")
    assert guard(SAMPLES, unconditional(4)).isnan().tolist() == [False, False, True, False]
    assert guard.failure == "took longer than 30 s for sample 2 of 4" and guard.dropped == 1


def test_an_answer_of_the_wrong_shape_stops_even_when_dropping():
    with pytest.raises(RewardError, match="shape"):
        guarded(torch.ones(3), on_error="drop")(SAMPLES, unconditional(4))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.booleans())
def test_the_cache_gives_the_same_answers_in_fewer_calls(numbers, again):
    x = torch.tensor(numbers, dtype=torch.float32)[:, None]
    cond = {"prompt": ["even" if i % 2 == 0 else "odd" for i in numbers]}
    plain = Guard(fails_on(set()))
    cached = Guard(fails_on(set()), cache=True)
    for _ in range(1 + again):
        assert cached(x, cond).equal(plain(x, cond))
    assert plain.calls == len(numbers) * (1 + again)
    assert cached.calls == len(set(numbers))


class Unsure:
    """Twice the sample, but for 1, and how sure that is."""

    def __init__(self):
        self.guards: dict[str, Guard] = {}
        self.answers: dict[str, Tensor] = {}

    def __call__(self, x: Tensor, c: Any) -> Tensor:
        self.answers = {"spread": x[:, 0] ** 2}
        return fails_on({1})(x, c)


@pytest.mark.parametrize("failing", [{"on_error": "drop"}, {"on_error": "penalty", "penalty": -1.0}], ids=str)
def test_what_parts_said_of_remembered_samples_is_remembered(failing):
    """Also where some are new, one has no valid reward, all are known, or a checkpoint lies between."""
    plain, cached, later = (
        Guard(Unsure(), **failing),
        *(Guard(Unsure(), cache=True, **failing) for _ in range(2)),
    )
    for rows in ([0, 2], [1, 2, 0], [3, 3, 1, 2], [2, 0, 1, 3], [3]):
        x, cond = SAMPLES[rows], unconditional(len(rows))
        torch.testing.assert_close(cached(x, cond), plain(x, cond), equal_nan=True)
        assert cached.parts.keys() == plain.parts.keys() == {"spread"}
        assert cached.parts["spread"].equal(plain.parts["spread"])
    assert cached.calls == 6 < plain.calls  # three good ones once each, and the bad one each time
    later.load_state_dict(cached.state_dict())
    later(SAMPLES[[3]], unconditional(1))
    assert later.calls == cached.calls and later.parts["spread"].equal(cached.parts["spread"])
    state = cached.state_dict()
    del state["told"]  # a run of before has none
    later = Guard(Unsure(), cache=True, **failing)
    later.load_state_dict(state)
    later(SAMPLES[[3, 0]], unconditional(2))
    assert not later.parts, "what is not known of all is not shown of some"


def test_the_cache_knows_conditions_and_names_the_right_sample():
    lengths: Any = lambda x, c: [float(len(p)) for p in c["prompt"]]  # noqa: E731
    guard = Guard(lengths, cache=True)
    same = torch.zeros(2, 1)
    assert guard(same, {"prompt": ["a", "abc"]}).tolist() == [1, 3]
    for error, came in ((None, "returned nan"), (ValueError("no"), "raised ValueError .no.")):
        picky = Guard(fails_on({3}, error), cache=True)
        picky(SAMPLES[:3], unconditional(3))
        with pytest.raises(RewardError, match=f"{came} for sample 3 of 4"):
            picky(SAMPLES, unconditional(4))


def test_the_cache_forgets_failures():
    broken = {2}
    guard = Guard(lambda x, c: fails_on(broken)(x, c), on_error="drop", cache=True)
    assert guard(SAMPLES, unconditional(4)).isnan().tolist() == [False, False, True, False]
    broken.clear()
    assert guard(SAMPLES, unconditional(4)).tolist() == [0, 2, 4, 6]
    assert guard.calls == 5


def test_counters_and_answers_travel_with_a_checkpoint():
    guard = Guard(fails_on({1}), on_error="drop", cache=True)
    guard(SAMPLES, unconditional(4))
    resumed = Guard(fails_on({1}), on_error="drop", cache=True)
    resumed.load_state_dict(guard.state_dict())
    assert (resumed.calls, resumed.dropped) == (4, 1)
    assert resumed(SAMPLES[[0, 2, 3]], unconditional(3)).tolist() == [0, 4, 6]
    assert resumed.calls == 4


@pytest.mark.parametrize("as_list", [False, True])
def test_gradients_pass_through(as_list):
    x = SAMPLES.clone().requires_grad_()
    squares: Any = lambda x, c: list(x[:, 0] ** 2) if as_list else x[:, 0] ** 2  # noqa: E731
    Guard(squares)(x, unconditional(4)).sum().backward()
    assert x.grad is not None and x.grad.equal(2 * SAMPLES)


def test_half_precision_samples_and_conditions_can_be_cached():
    guard = Guard(lambda x, c: x[:, 0], cache=True)
    cond = {"embed": torch.ones(4, 2, dtype=torch.bfloat16)}
    assert guard(SAMPLES.bfloat16(), cond).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda images, prompts, metadata: images.sum(1), r"takes 3 \(images, prompts, metadata\)"),
        (lambda images: images.sum(1), r"takes 1 \(images\)"),
        (lambda x, c, *, scale: x.sum(1), r"takes 3 \(x, c, scale\)"),
    ],
)
def test_a_reward_of_other_arguments_is_refused_before_anything_is_drawn(reward, message):
    with pytest.raises(RewardError, match=message):
        Guard(reward)


def test_what_can_take_samples_and_conditions_is_a_reward():
    class Judge(torch.nn.Module):
        def forward(self, x: Tensor, c: Any) -> Tensor:
            return x[:, 0]

    every: list[Any] = [Judge(), lambda x, c, scale=1: x[:, 0], lambda *given: given[0][:, 0]]
    for reward in every:
        assert Guard(reward)(SAMPLES, unconditional(4)).tolist() == [0, 1, 2, 3]


class Oracle:
    """Raises if it sees some of the bad samples, and remembers for which it gave an answer."""

    def __init__(self, bad: set[int], error: BaseException):
        self.bad, self.error, self.asked, self.answered = bad, error, 0, []

    def __call__(self, x: Tensor, c: Any) -> Tensor:
        rows = [int(i) for i in x[:, 0]]
        self.asked += 1
        if self.bad & set(rows):
            raise self.error
        self.answered += rows
        return x[:, 0]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.sets(st.integers(0, 69), min_size=1), st.booleans(), st.booleans())
def test_no_answer_is_paid_twice(count: int, bad: set[int], cache: bool, drop: bool):
    bad = {row for row in bad if row < count} or {0}
    oracle = Oracle(bad, OSError("busy"))
    guard = Guard(oracle, on_error="drop" if drop else "stop", cache=cache)
    x, cond = torch.arange(float(count))[:, None], unconditional(count)
    if drop:
        assert guard(x, cond).isnan().nonzero()[:, 0].tolist() == sorted(bad)
        assert guard.failure == f"raised OSError (busy) for sample {min(bad)} of {count}"
    else:
        with pytest.raises(RewardError, match=rf"OSError \(busy\) for sample {min(bad)} of {count} "):
            guard(x, cond)
        assert guard.calls <= 2 * count and oracle.asked <= 2 + count.bit_length()
    assert len(oracle.answered) == len(set(oracle.answered))
    before, known = guard.calls, len(oracle.answered)
    oracle.bad = set()
    assert guard(x, cond).tolist() == list(range(count))
    assert guard.calls - before == (count - known if cache else count)
    assert guard.failure == ""


@pytest.mark.parametrize("error", [SystemExit(2), type("Panic", (BaseException,), {})("rust")])
def test_an_exit_is_a_failure_of_the_reward(error: BaseException):
    with pytest.raises(RewardError, match=f"raised {type(error).__name__} .* for sample 2 of 4"):
        Guard(Oracle({2}, error))(SAMPLES, unconditional(4))
    value = Guard(Oracle({2}, error), on_error="drop")(SAMPLES, unconditional(4))
    assert value.isnan().tolist() == [False, False, True, False]


@pytest.mark.parametrize("on_error", ["stop", "drop"])
def test_ctrl_c_is_not(on_error: Any):
    with pytest.raises(KeyboardInterrupt):
        Guard(Oracle({2}, KeyboardInterrupt()), on_error=on_error)(SAMPLES, unconditional(4))


def test_where_every_sample_fails_the_first_cause_is_named():
    reference = GaussianPolicy(torch.nn.Identity(), cosine(3), shape=(2,))
    raises: Any = Oracle(set(range(9)), OSError("no licence"))
    invalid: Any = lambda x, c: [NAN] * 4  # noqa: E731
    for reward, cause in ((raises, "raised OSError .no licence."), (invalid, "returned nan")):
        objective = Objective(Guard(reward, "dock", on_error="drop"), reference, 1.0)
        with pytest.raises(RewardError, match=f"'dock' is valid for 0 of 4 .*: it {cause} for sample 0 of 4"):
            objective.score(SAMPLES, unconditional(4))


def test_answers_are_kept_though_the_reward_uses_its_memory_again():
    memory = torch.zeros(4)
    guard = Guard(lambda x, c: memory.copy_(x[:, 0]))
    first = guard(SAMPLES, unconditional(4))
    guard(SAMPLES + 1, unconditional(4))
    assert first.tolist() == [0, 1, 2, 3]


def test_a_reward_that_changes_its_input_keeps_the_gradient():
    x = SAMPLES.clone().requires_grad_()
    Guard(lambda x, c: x.mul_(2).square()[:, 0])(x, unconditional(4)).sum().backward()
    assert x.grad is not None and x.grad.equal(8 * SAMPLES)
    assert x.detach().equal(SAMPLES)
