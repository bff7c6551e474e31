import math

import pytest
import torch

from difftilt.evaluation.metrics import diversity, frechet, two_sample


def normal(n: int, mean: float = 0.0, std: float = 1.0, seed: int = 0, dimensions: int = 3) -> torch.Tensor:
    draw = torch.randn(n, dimensions, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return mean + std * draw


def test_energy_distance_of_two_points_is_what_its_definition_says():
    x, y = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[2.0], [2.0], [5.0]])
    between = sum(abs(a - b) for a in (0, 1, 3) for b in (2, 2, 5)) / 9
    within_x, within_y = (1 + 3 + 2) / 3, (0 + 3 + 3) / 3
    assert two_sample(x, y).value == pytest.approx(2 * between - within_x - within_y)


def test_energy_distance_of_equal_laws_is_unbiased():
    values = torch.tensor(
        [two_sample(normal(12, seed=i), normal(20, seed=i + 999)).value for i in range(500)]
    )
    error = values.std() / len(values) ** 0.5
    assert abs(values.mean()) < 4 * error
    # the biased estimate, with zeros on the diagonals, is off by E|X - X'| (1/12 + 1/20): far beyond that
    assert diversity(normal(500)).value * (1 / 12 + 1 / 20) > 20 * error


def test_energy_distance_does_not_depend_on_the_order_or_on_the_sides():
    x, y = normal(30), normal(40, 1.0, seed=1)
    there, back = two_sample(x, y), two_sample(y.flip(0), x.flip(0))
    assert there.value == pytest.approx(back.value)
    assert there.se == pytest.approx(back.se)


def test_energy_distance_of_two_normals_in_one_dimension():
    # E|N(m, s^2)| in closed form
    def mean_abs(m: float, s: float) -> float:
        density = math.exp(-((m / s) ** 2) / 2) / math.sqrt(2 * math.pi)
        return 2 * s * density + m * math.erf(m / s / math.sqrt(2))

    exact = 2 * mean_abs(1.0, (1 + 4) ** 0.5) - mean_abs(0.0, 2**0.5) - mean_abs(0.0, 8**0.5)
    estimate = two_sample(normal(2000, dimensions=1), normal(2000, 1.0, 2.0, seed=1, dimensions=1))
    assert abs(estimate.value - exact) < 4 * estimate.se
    assert estimate.se < exact / 10


@pytest.mark.parametrize("metric", ["energy", "diversity"])
def test_the_jackknife_error_is_the_scatter_over_repetitions(metric):
    def estimate(i: int):
        x, y = normal(40, seed=i), normal(60, 1.0, seed=i + 999)
        return two_sample(x, y) if metric == "energy" else diversity(x)

    found = [estimate(i) for i in range(300)]
    scatter = torch.tensor([e.value for e in found]).std().item()
    stated = torch.tensor([e.se**2 for e in found]).mean().sqrt().item()
    assert stated == pytest.approx(
        scatter, rel=0.15
    )  # 1 / sqrt(2 * 300) = 4 %, and twice the error would fail


def test_diversity_of_a_line_and_of_copies():
    assert diversity(torch.tensor([[0.0], [1.0], [2.0]])).value == pytest.approx(4 / 3)
    assert diversity(torch.ones(5, 1, 8, 8)) == (0, 0)


def test_frechet_distance_of_a_shift_and_of_a_stretch():
    x = normal(400)
    assert frechet(x, x + 2).value == pytest.approx(3 * 4)
    variances = torch.cov(x.T).trace().item()
    assert frechet(x, 3 * x).value == pytest.approx(4 * x.mean(0).square().sum().item() + 4 * variances)
    assert frechet(x, x).value == pytest.approx(0, abs=1e-6)


def test_frechet_distance_of_covariances_that_do_not_commute():
    x, y = normal(500), normal(500, seed=1) @ torch.tensor([[2.0, 1, 0], [0, 1, 1], [0, 0, 1]]).double()
    product = torch.cov(x.T) @ torch.cov(y.T)
    root = torch.linalg.eigvals(product).real.sqrt().sum()
    traces = torch.cov(x.T).trace() + torch.cov(y.T).trace()
    shift = (x.mean(0) - y.mean(0)).square().sum()
    assert frechet(x, y).value == pytest.approx((shift + traces - 2 * root).item())


def test_the_bootstrap_error_is_about_the_scatter_over_repetitions():
    torch.manual_seed(0)
    found = [frechet(normal(100, seed=i), normal(100, 1.0, seed=i + 999), resamples=30) for i in range(60)]
    scatter = torch.tensor([e.value for e in found]).std().item()
    stated = torch.tensor([e.se for e in found]).mean().item()
    assert stated == pytest.approx(scatter, rel=0.4)


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match="3 or more"):
        two_sample(normal(2), normal(5))
    with pytest.raises(ValueError, match="4 or more"):
        frechet(normal(3), normal(9))
