"""Contracts of every transition: what it draws, what it says of the draw, and how far it is from another."""

import inspect
import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from difftilt import transition
from difftilt.guidance.flip import Flip, as_flip
from difftilt.processes.jacobi import Histogram, edges
from difftilt.transition import Categorical, Gaussian, Joined, Resampling, Transition, event_sum

DRAWS = 20_000


@dataclass(frozen=True)
class Case:
    """Two distributions of one kind on a small event, and every state of it with its weight."""

    law: Transition
    other: Transition
    states: Tensor  # of one row
    weights: Tensor


def double(values: list) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def gaussian_case() -> Case:
    law = Gaussian(double([[0.3, -1.0]]), double([[0.5, 1.2]]))
    other = Gaussian(double([[0.0, -0.5]]), double([[0.7, 1.0]]))
    line = torch.linspace(-12, 12, 801, dtype=torch.float64)
    states = torch.cartesian_prod(line, line)
    return Case(law, other, states, torch.full((len(states),), (24 / 800) ** 2, dtype=torch.float64))


def categorical_case() -> Case:
    law = Categorical(double([[[0.2, 0.5, 0.3], [0.0, 0.9, 0.1]]]))
    other = Categorical(double([[[0.1, 0.6, 0.3], [0.2, 0.3, 0.5]]]))
    states = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    return Case(law, other, states, torch.ones(9, dtype=torch.float64))


def resampling_case() -> Case:
    """Two masks, 2, of which one is replaced by 0 or 1."""
    x, eligible, count = torch.tensor([[2, 2]]), torch.ones(1, 2), torch.ones(1, dtype=torch.long)
    law = Resampling(x, eligible, double([[[0.2, 0.8, 0.0], [0.9, 0.1, 0.0]]]), count)
    other = Resampling(x, eligible, double([[[0.6, 0.4, 0.0], [0.5, 0.5, 0.0]]]), count)
    states = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    return Case(law, other, states, torch.ones(9, dtype=torch.float64))


def flip_case() -> Case:
    """One of two tokens, 2 and 0, becomes another."""
    x = torch.tensor([[2, 0]])
    law = Flip(x, double([[[0.1, 0.3, 0.0], [0.0, 0.4, 0.2]]]))
    other = Flip(x, double([[[0.3, 0.2, 0.0], [0.0, 0.1, 0.4]]]))
    states = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    return Case(law, other, states, torch.ones(9, dtype=torch.float64))


def joined_case() -> Case:
    """One row of one part: the orders of several are tested below."""
    case = categorical_case()
    row = torch.zeros(1, dtype=torch.long)
    return Case(Joined([(row, case.law)]), Joined([(row, case.other)]), case.states, case.weights)


def histogram_case() -> Case:
    """Two numbers of three cells each, of which every one is cut into forty parts."""
    law = Histogram(double([[[0.2, 0.5, 0.3], [0.1, 0.8, 0.1]]]))
    other = Histogram(double([[[0.1, 0.6, 0.3], [0.2, 0.3, 0.5]]]))
    share = (torch.arange(40, dtype=torch.float64) + 0.5) / 40
    middle = (edges(3)[:-1, None] + edges(3).diff()[:, None] * share).flatten()
    width = edges(3).diff().repeat_interleave(40) / 40
    weights = torch.cartesian_prod(width, width).prod(1)
    return Case(law, other, torch.cartesian_prod(middle, middle), weights)


CASES = {
    Gaussian: gaussian_case,
    Histogram: histogram_case,
    Categorical: categorical_case,
    Resampling: resampling_case,
    Flip: flip_case,
    Joined: joined_case,
}


def kinds(base: type = Transition) -> list[type]:
    below = [kind for child in base.__subclasses__() for kind in kinds(child)]
    own = base.__module__.startswith("difftilt.") and not inspect.isabstract(base)
    own = own and base.__name__ != "Given"  # known states, of which there is nothing to draw
    return [base, *below] if own else below


@pytest.fixture(params=kinds(), ids=lambda kind: kind.__name__)
def case(request) -> Case:
    """Of every transition that the package knows: a new one must be added to `CASES`."""
    torch.manual_seed(0)
    return CASES[request.param]()


def spread(law: Transition, count: int) -> Transition:
    """The distribution of one row, as `count` equal rows."""
    if isinstance(law, Joined):
        return Joined([(torch.arange(count), spread(law.parts[0][1], count))])
    fields = {name: value.expand(count, *value.shape[1:]) for name, value in vars(law).items()}
    return type(law)(**fields)


def test_probabilities_sum_to_one(case):
    log_prob = spread(case.law, len(case.states)).log_prob(case.states)
    assert log_prob.exp() @ case.weights == pytest.approx(1, abs=1e-9)


def test_draws_follow_the_density(case):
    """The mean of log_prob and of the state itself, by enumeration and by drawing."""
    laws = spread(case.law, len(case.states))
    mass = laws.log_prob(case.states).exp() * case.weights
    draws = spread(case.law, DRAWS)
    x = draws.sample()
    for f in (lambda law, x: law.log_prob(x), lambda law, x: (x.double() * double([1.0, 2.0])).sum(1).sin()):
        values = f(draws, x)
        exact = mass @ torch.where(mass > 0, f(laws, case.states), 0)
        assert abs(values.mean() - exact) < 4 * values.std() / DRAWS**0.5


def test_kl_is_the_mean_log_ratio(case):
    law, other = spread(case.law, DRAWS), spread(case.other, DRAWS)
    x = law.sample()
    ratio = law.log_prob(x) - other.log_prob(x)
    assert abs(ratio.mean() - case.law.kl(case.other).item()) < 4 * ratio.std() / DRAWS**0.5


def test_kl_is_exact_and_zero_only_from_itself(case):
    count = len(case.states)
    log_p = spread(case.law, count).log_prob(case.states)
    log_q = spread(case.other, count).log_prob(case.states)
    exact = case.weights @ torch.where(log_p > -math.inf, log_p.exp() * (log_p - log_q), 0)
    assert case.law.kl(case.other).item() == pytest.approx(exact.item(), abs=1e-7)
    assert case.law.kl(case.law).item() == 0
    assert case.law.kl(case.other).item() > 0.01


def test_a_tempered_law_is_the_power_of_the_density(case):
    """log p_T = log p / T + constant, and it is a distribution."""
    count = len(case.states)
    log_p = spread(case.law, count).log_prob(case.states)
    tempered = spread(case.law.tempered(2.0), count).log_prob(case.states)
    assert tempered.exp() @ case.weights == pytest.approx(1, abs=1e-9)
    possible = log_p > -math.inf
    for chosen in (case.states[:, 0] == 2, case.states[:, 0] != 2):  # positions are drawn as before
        difference = (tempered - log_p / 2)[possible & (chosen if isinstance(case.law, Resampling) else True)]
        assert difference.max() - difference.min() < 1e-9
    assert case.law.tempered(1.0).kl(case.law).item() == pytest.approx(0, abs=1e-12)


def test_densities_are_sums_in_double_precision(case):
    assert case.law.log_prob(case.law.sample()).dtype == torch.float64
    assert case.law.kl(case.other).dtype == torch.float64
    assert not case.law.sample().requires_grad


def test_a_sum_over_many_dimensions_is_a_sum():
    """16,384 dimensions, as a latent image has."""
    mean, std = torch.randn(2, 4, 64, 64), torch.rand(2, 4, 64, 64) + 0.1
    x = mean + std * torch.randn_like(mean)
    exact = torch.distributions.Normal(mean.double(), std.double()).log_prob(x.double()).sum((1, 2, 3))
    torch.testing.assert_close(Gaussian(mean, std).log_prob(x), exact, rtol=0, atol=1e-3)
    values = torch.ones(1, 2**24 + 3)  # more than float32 can count to
    assert event_sum(values).item() == 2**24 + 3


def test_gaussian_draws_carry_the_gradient_of_the_expectation():
    """Finite differences with the same noise, and E sin(x) = sin(mean) exp(-std^2 / 2)."""
    mean, std = double([[0.3, -1.0]]).requires_grad_(), double([[0.5, 1.2]]).requires_grad_()

    def draw(mean: Tensor, std: Tensor) -> Tensor:
        torch.manual_seed(0)
        return Gaussian(mean, std).rsample().sin()

    assert torch.autograd.gradcheck(draw, (mean, std))
    rows = Gaussian(mean.expand(DRAWS, 2), std.expand(DRAWS, 2))
    found = torch.autograd.grad(rows.rsample().sin().mean(0).sum(), (mean, std))
    value = (mean.sin() * (-std.square() / 2).exp()).sum()
    for a, b in zip(found, torch.autograd.grad(value, (mean, std)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=4 / DRAWS**0.5)


def test_categorical_draws_are_one_hot_and_straight_through():
    """The gradient is exact where the function is linear: E f(x) = sum_k p_k f_k."""
    probs = categorical_case().law.probs.clone().requires_grad_()  # pyright: ignore[reportAttributeAccessIssue]
    f = torch.randn(2, 3, dtype=torch.float64)
    x = Categorical(probs).rsample()
    assert x.detach().eq(0).logical_or(x.detach().eq(1)).all() and x.sum(-1).eq(1).all()
    (found,) = torch.autograd.grad((x * f).sum(), probs)
    (exact,) = torch.autograd.grad((probs * f).sum(), probs)
    assert found.equal(exact)


def test_flips_are_one_hot_and_straight_through():
    """The gradient is exact where the function is linear: the mean of the next state."""
    joint = flip_case().law.joint.clone().requires_grad_()  # pyright: ignore[reportAttributeAccessIssue]
    f = torch.randn(2, 3, dtype=torch.float64)
    x = torch.tensor([[2, 0]])
    drawn = Flip(x, joint).rsample()
    assert drawn.detach().eq(0).logical_or(drawn.detach().eq(1)).all() and drawn.sum(-1).eq(1).all()
    assert (drawn.argmax(-1) != x).sum() == 1
    (found,) = torch.autograd.grad((drawn * f).sum(), joint)
    gain = f - f.gather(-1, x[0][:, None])
    torch.testing.assert_close(found[0], gain)


def test_a_flip_is_compared_with_the_resampling_of_one_position():
    """Which is a flip whose position is drawn uniformly."""
    case = resampling_case()
    law, other = as_flip(case.law), as_flip(case.other)
    assert isinstance(case.other, Resampling)
    count = len(case.states)
    expected = spread(case.law, count).log_prob(case.states)
    torch.testing.assert_close(spread(law, count).log_prob(case.states), expected)
    assert law.kl(case.other).item() == pytest.approx(case.law.kl(case.other).item(), abs=1e-12)
    assert law.kl(case.other).item() == law.kl(other).item() > 0.01
    several = Resampling(torch.full((1, 2), 2), torch.ones(1, 2), torch.ones(1, 2, 3) / 3, torch.tensor([2]))
    for step in (several, categorical_case().law):
        with pytest.raises(ValueError, match="a flip changes one position per step, but got a"):
            as_flip(step)


@pytest.mark.parametrize("value", ["kl", "log_prob"])
def test_impossible_categories_have_finite_gradients(value):
    """Where torch.distributions gives NaN."""
    logits = double([[[0.5, 0.1, -math.inf]]]).requires_grad_()
    other = double([[[0.2, 0.4, -math.inf]]])

    def gradient(number: Tensor) -> Tensor:
        return torch.autograd.grad(number.sum(), logits, retain_graph=True)[0]

    probs = logits.softmax(-1)
    law = Categorical(probs)
    number = law.kl(Categorical(other.softmax(-1))) if value == "kl" else law.log_prob(torch.tensor([[1]]))
    assert number.isfinite().all()
    assert gradient(number).isfinite().all() and gradient(number)[..., 2].eq(0).all()
    assert gradient(number).abs().max() > 0.01
    if value == "kl":
        p = torch.distributions.Categorical(logits=logits)
        q = torch.distributions.Categorical(logits=other)
        assert gradient(torch.distributions.kl_divergence(p, q)).isnan().any()


def test_an_impossible_draw_is_told():
    law = categorical_case().law
    assert law.log_prob(torch.tensor([[0, 0]])).item() == -math.inf
    assert law.kl(Categorical(double([[[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]]]))).item() == math.inf


def test_nearly_equal_variances_lose_no_digits():
    """KL of std 1 + e from std 1 is e^2 per dimension; log and squares in float32 would give noise."""
    e = 1e-4
    wide = Gaussian(torch.zeros(1, 1000), torch.full((1, 1000), 1 + e))
    kl = wide.kl(Gaussian(torch.zeros(1, 1000), torch.ones(1, 1000))).item()
    assert kl == pytest.approx(1000 * e**2, rel=5e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_refused(dtype):
    half = torch.ones(1, 2, dtype=dtype)
    for law in (lambda: Gaussian(half, half), lambda: Categorical(half / 2)):
        with pytest.raises(ValueError, match=r"need float32 or better, but got torch\.\w+16; lift"):
            law()


def test_joined_laws_answer_in_the_order_of_the_rows():
    mean, std = torch.arange(5.0)[:, None].double(), torch.full((5, 1), 1e-3, dtype=torch.float64)
    rows = [torch.tensor([3, 0]), torch.tensor([4, 1, 2])]

    def joined(shift: float) -> Joined:
        return Joined([(i, Gaussian(mean[i] + shift * mean[i], std[i])) for i in rows])

    whole, x = Gaussian(mean, std), mean + 1e-3 * torch.randn_like(mean)
    assert joined(0).log_prob(x).equal(whole.log_prob(x))
    torch.testing.assert_close(joined(0).kl(joined(1e-3)), whole.kl(Gaussian(mean * 1.001, std)))
    torch.testing.assert_close(joined(0).sample(), mean, rtol=0, atol=0.01)
    torch.testing.assert_close(joined(0).rsample(), mean, rtol=0, atol=0.01)


def test_only_laws_that_cover_the_same_rows_can_be_compared():
    law = Gaussian(torch.zeros(1, 1), torch.ones(1, 1))
    first, second = (Joined([(torch.tensor([i]), law), (torch.tensor([1 - i]), law)]) for i in (0, 1))
    with pytest.raises(ValueError, match="cover different rows"):
        first.kl(second)


def test_shapes_are_checked_while_the_tests_run():
    with pytest.raises(Exception, match="std"):
        transition.Gaussian(torch.zeros(3, 2), torch.ones(3))
