"""One-flip guidance: exact where one position is drawn per step, the optimal rates in the limit elsewhere."""

import pytest
import torch
from enumeration import Table, evaluate, every_state, laws, masked_table
from paths import path_kl

from difftilt.conditions import unconditional
from difftilt.data.vocabulary import place_values
from difftilt.exact import landscape, sampler_laws
from difftilt.exact.toy import gmm, gmm_schedule
from difftilt.guidance.flip import Flip
from difftilt.guidance.flip_guided import FlipGuided
from difftilt.objective import Objective
from difftilt.policy import rollout
from difftilt.processes.gaussian import GaussianPolicy
from difftilt.processes.masked import MaskedPolicy
from difftilt.processes.noise import FixedLarge
from difftilt.processes.uniform import UniformPolicy
from difftilt.samplers.discrete_guidance import DiscreteGuidance
from difftilt.samplers.smc import SMC
from difftilt.transition import Categorical, one_hot
from difftilt.values.network import ValueNetwork
from difftilt.values.tweedie import PosteriorMean

CATEGORIES, LENGTH, ALPHA = 2, 3, 0.4
WEIGHT = torch.tensor([[0.3, -0.8, 0.1], [0.9, -0.2, 0.4], [-0.5, 0.7, -0.3]], dtype=torch.float64)


def reward(x, cond):
    return (x.double() @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)).sin()


def linear(x, t=None, cond=None):
    """A value, and a reward, that is linear in one-hot vectors; the mask has a weight too."""
    return (one_hot(x, 3).double() * WEIGHT).sum((1, 2))


def problem(score=reward, **settings):
    torch.manual_seed(0)
    return Objective(score, masked_table(CATEGORIES, LENGTH, **settings), ALPHA)


def wrong_value(x, t, c):
    digits = place_values(CATEGORIES + 1, x.shape[1])
    return torch.sin((x * digits).sum(1) + 2.0 * t).double() * 0.5


def law_of(drawn, categories=CATEGORIES):
    index = (drawn.x_0 * place_values(categories, drawn.x_0.shape[1])).sum(1)
    return torch.bincount(index, minlength=categories ** drawn.x_0.shape[1]) / len(drawn.x_0)


@pytest.mark.parametrize("start", [None, torch.tensor([2, 1, 2])], ids=["masks", "frozen"])
def test_with_the_exact_value_it_is_the_optimum(start):
    """Also where the guesses contradict each other, so that p* prefers some orders and no masked policy
    is p*: position and token are tilted together.
    """
    objective = problem(start=start)
    solved = landscape.solve(objective)
    found = sampler_laws.evaluate_flips(objective, FlipGuided(objective.reference, objective, solved.value))
    assert found.objective.item() == pytest.approx(solved.optimum.item(), abs=1e-10)
    torch.testing.assert_close(found.law, solved.law, rtol=0, atol=1e-10)
    if start is None:
        assert landscape.reachable(objective) < solved.optimum - 0.01


def test_samples_agree_with_the_exact_law():
    objective = problem()
    exact = sampler_laws.evaluate_flips(objective, FlipGuided(objective.reference, objective, wrong_value))
    torch.manual_seed(0)
    drawn = DiscreteGuidance().draw(objective, wrong_value, unconditional(8000))
    row = drawn.summary()
    assert (law_of(drawn) - exact.law).abs().sum().item() / 2 < 0.015
    for name, expected in (("reward", exact.reward), ("kl_nats", exact.kl), ("objective", exact.objective)):
        assert abs(row[name] - expected.item()) < 4 * row[f"{name}_se"]
    solved = landscape.solve(objective)
    assert abs(row["log_z"] - solved.optimum.item() / ALPHA) < 4 * row["log_z_se"] < 0.1
    assert (exact.law - solved.law).abs().sum() > 0.1


def test_a_path_has_the_kl_of_its_steps():
    """Position and token are compared with a uniform position: the KL of a flip from a resampling."""
    objective = problem()
    guided = FlipGuided(objective.reference, objective, wrong_value)
    torch.manual_seed(0)
    path = rollout(guided, unconditional(2000))
    kl = path_kl(guided, objective.reference, path).sum(0)
    exact = sampler_laws.evaluate_flips(objective, guided).kl.item()
    assert abs(kl.mean().item() - exact) < 4 * kl.std().item() / 2000**0.5


@pytest.mark.parametrize("steps", [2, 6])
def test_positions_on_their_own_are_reweighed_one_by_one(steps):
    """p_i(y) ~ p_pre,i(y) exp(v(x with y at i) / alpha), and what is no x_0 is no reward's to score."""

    def of_tokens(x, cond):
        assert (x < CATEGORIES).all()
        return reward(x, cond)

    objective = problem(of_tokens, steps=steps, unmasking="bernoulli")
    guided = FlipGuided(objective.reference, objective, wrong_value)
    for t in range(1, steps + 1):
        for state in ([2, 2, 2], [2, 0, 2], [1, 2, 0]):
            x, time = torch.tensor([state]), torch.tensor([t])
            base = objective.reference(x, time, unconditional(1))
            found = guided(x, time, unconditional(1))
            assert isinstance(base, Categorical) and isinstance(found, Categorical)
            masks = state.count(2)
            for i in range(LENGTH):
                weights = []
                for y in range(CATEGORIES + 1):
                    after = x.clone()
                    after[0, i] = y
                    last = t == 1 and masks > 1
                    if t == 1 and y < CATEGORIES and state[i] == 2 and masks == 1:
                        value = of_tokens(after, {})
                    else:
                        value = wrong_value(after, time if last else time - 1, {})
                    weights.append(base.probs[0, i, y].item() * (value / ALPHA).exp().item())
                expected = torch.tensor(weights, dtype=torch.float64)
                torch.testing.assert_close(found.probs[0, i], expected / expected.sum(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("length", [1, 2])
def test_uniform_chains_reach_the_optimum_as_steps_shrink(length):
    """With one position at once; with two to first order: the gap halves with the step."""
    torch.manual_seed(0)
    states = every_state(3, length)
    score = torch.randn(len(states), dtype=torch.float64)
    logits = torch.randn(3**length, length, 3, dtype=torch.float64)
    gaps = []
    for steps in (4, 8, 16):
        reference = UniformPolicy(Table(logits), 3, length, steps=steps).double().requires_grad_(False)
        objective = Objective(lambda x, c: score[(x * place_values(3, length)).sum(1)], reference, ALPHA)
        v = [score]
        for t in range(1, steps + 1):
            time = torch.full((len(states) ** 2,), t)
            step = reference(states.repeat_interleave(len(states), 0), time, unconditional(len(time)))
            kernel = step.log_prob(states.repeat(len(states), 1)).view(len(states), -1)
            v.append(ALPHA * (kernel + v[-1] / ALPHA).logsumexp(1))
        table = torch.stack(v)

        def value(x, t, c, table=table):
            return table[t, (x * place_values(3, length)).sum(1)]

        start = laws(reference, states)[-1]
        guided = FlipGuided(reference, objective, value)
        found, kl = evaluate(guided, reference, states, score)
        gaps.append((start @ v[-1] - (found - ALPHA * kl)).item())
    if length == 1:
        assert max(map(abs, gaps)) < 1e-12
    else:
        assert gaps[0] > 0.01 and gaps[1] < 0.7 * gaps[0] and gaps[2] < 0.6 * gaps[1]


KINDS = [{}, {"steps": 2}, {"steps": 4, "unmasking": "bernoulli"}]


@pytest.mark.parametrize("settings", KINDS, ids=["one", "several", "bernoulli"])
def test_taylor_is_exact_where_the_value_is_linear(settings):
    objective = problem(lambda x, c: linear(x), **settings)
    exact, taylor = (
        FlipGuided(objective.reference, objective, linear, how=how) for how in ("exact", "taylor")
    )
    differs = False
    for t in range(1, objective.reference.steps + 1):
        masks = int(objective.reference.left[t])  # pyright: ignore[reportArgumentType, reportIndexIssue]
        x = torch.tensor([[2, 2, 2][:masks] + [1, 0, 1][masks:]] * 2)
        rows = (x, torch.full((2,), t), unconditional(2))
        found, expected, base = (policy(*rows) for policy in (taylor, exact, objective.reference))
        assert type(found) is type(expected)
        name = "joint" if isinstance(found, Flip) else "probs"
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-5, atol=1e-9)
        differs |= found.kl(base).max().item() > 0.1  # pyright: ignore[reportArgumentType]
    assert differs


def test_taylor_takes_value_networks_and_refuses_values_without_a_gradient():
    objective = problem()
    network = ValueNetwork(objective.reference, unconditional(2), width=8)
    torch.manual_seed(0)
    for weight in network.parameters():
        torch.nn.init.normal_(weight)
    drawn = DiscreteGuidance(how="taylor").draw(objective, network, unconditional(100))
    assert drawn.kl.mean() > 0.01 and drawn.reward_calls == 100
    for value in (PosteriorMean(objective), landscape.solve(objective).value):
        with pytest.raises(ValueError, match="taylor guidance needs a value with a gradient in one-hot"):
            DiscreteGuidance(how="taylor").draw(objective, value, unconditional(4))


def test_only_tokens_are_flipped():
    levels = gmm_schedule(5)
    reference = GaussianPolicy(gmm(levels), levels, (1,), noise=FixedLarge())
    objective = Objective(lambda x, c: x[:, 0], reference, 0.5)
    with pytest.raises(ValueError, match="needs steps that draw tokens, but got Gaussian"):
        DiscreteGuidance().draw(objective, lambda x, t, c: x[:, 0], unconditional(2))


def test_a_table_that_does_not_know_a_state_is_refused():
    """Two positions per step: the table knows no state in between."""
    objective = problem(start=torch.tensor([2, 2, 1]), steps=1)
    with pytest.raises(ValueError, match="the value is -inf at every state that one change leads to"):
        DiscreteGuidance().draw(objective, landscape.solve(objective).value, unconditional(2))


def test_changes_whose_reward_failed_are_not_drawn():
    objective = problem(lambda x, c: torch.where(x[:, 0] == 1, torch.nan, reward(x, c)))
    objective.reward.on_error = "drop"
    guided = FlipGuided(objective.reference, objective, wrong_value)
    x = torch.tensor([[2, 0, 1], [1, 2, 1]])
    step = guided(x, torch.ones(2, dtype=torch.long), unconditional(2))
    assert isinstance(step, Flip)
    assert step.joint[0, 0].tolist() == [1, 0, 0]
    base = objective.reference.clean(x, torch.ones(2, dtype=torch.long), unconditional(2))  # pyright: ignore
    torch.testing.assert_close(step.joint[1, 1, :2], base[1, 1])  # all of them: it is as before


def test_rewards_are_asked_once_per_change():
    objective = problem()
    drawn = DiscreteGuidance().draw(objective, wrong_value, unconditional(10))
    assert drawn.reward_calls == 10 * (CATEGORIES + 1)  # of the last step, and the sample's own
    assert drawn.network_calls == {"forward": 10 * LENGTH, "backward": 0}  # shared with the KL's
    table = Table(torch.randn(9, 2, 3, dtype=torch.float64))
    reference = UniformPolicy(table, 3, 2, steps=4).double().requires_grad_(False)
    objective = Objective(lambda x, c: x.double().sum(1), reference, ALPHA)
    drawn = DiscreteGuidance().draw(objective, lambda x, t, c: x.double().sum(1), unconditional(10))
    assert drawn.reward_calls == 10 * (1 + 2 * 2 + 1)  # x itself, two positions with two other tokens


def test_nothing_is_asked_where_nothing_can_change():
    objective = problem(lambda x, c: pytest.fail("the reward was asked"), steps=4, unmasking="bernoulli")
    x, t = torch.tensor([[0, 1, 1]]), torch.tensor([1])
    for how in ("exact", "taylor"):
        guided = FlipGuided(objective.reference, objective, linear, how=how)
        base = objective.reference(x, t, unconditional(1))
        assert guided(x, t, unconditional(1)).kl(base).item() == 0


def test_a_guided_chain_proposes_for_others():
    objective = problem()
    solved = landscape.solve(objective)
    guided = FlipGuided(objective.reference, objective, solved.value)
    torch.manual_seed(0)
    drawn = SMC(particles=4).draw(objective, solved.value, unconditional(20), guided)
    torch.testing.assert_close(drawn.log_z, (solved.optimum / ALPHA).expand(20), atol=1e-9, rtol=0)


def test_parts_that_fit_into_memory_draw_the_same_law():
    objective = problem()
    assert isinstance(objective.reference, MaskedPolicy) and isinstance(objective.reference.network, Table)
    rows, asked = [], []

    def value(x, t, c):
        asked.append(len(x))
        return wrong_value(x, t, c)

    for memory in (1024.0, 0.1):
        objective.reference.network.seen.clear()
        asked.clear()
        torch.manual_seed(0)
        drawn = DiscreteGuidance(memory=memory).draw(objective, value, unconditional(2000))
        rows.append((drawn.summary(), max(objective.reference.network.seen), max(asked)))
    (whole, most, most_asked), (parts, few, few_asked) = rows
    assert few < 500 < most and few_asked < 500 and most_asked > 2 * most
    for name in ("reward", "log_z"):
        assert abs(parts[name] - whole[name]) < 4 * (parts[f"{name}_se"] + whole[f"{name}_se"])
