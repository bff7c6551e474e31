"""Constrained chains against every short sequence and every state, listed one by one."""

import copy
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from difftilt.algorithms.ppo import PPO
from difftilt.conditions import unconditional
from difftilt.data.vocabulary import DNA, all_sequences, place_values, spell
from difftilt.exact import landscape
from difftilt.networks import constraint
from difftilt.networks.automaton import Automaton, both, count_range, forbid, gc_range
from difftilt.networks.constraint import Completions, Constrained, accepted, constrain
from difftilt.objective import Objective
from difftilt.policy import check_ratio, rollout
from difftilt.processes.masked import MaskedPolicy
from difftilt.training.fit import fit
from difftilt.transition import one_hot

LENGTH, ALPHA = 4, 0.3
RULE = both(forbid(["SS", "AG"], LENGTH, DNA, both_strands=True), gc_range(0.5, 0.75, LENGTH, DNA))


class Table(nn.Module):
    """Any function of the state: a row of logits for each."""

    def __init__(self, categories, length, scale=1.0):
        super().__init__()
        self.logits = nn.Parameter(scale * torch.randn((categories + 1) ** length, length, categories))

    def forward(self, x, t, cond):
        return self.logits[(x.argmax(-1) * place_values(x.shape[2], x.shape[1])).sum(1)]


class Linear(nn.Module):
    """Reads one-hot states, so that their gradients flow."""

    def __init__(self, categories, length):
        super().__init__()
        self.layer = nn.Linear((categories + 1) * length, categories * length)

    def forward(self, x, t, cond):
        return self.layer(x.flatten(1)).view(len(x), -1, x.shape[2] - 1)


def chain(seed, categories, length, scale=1.0, start=None) -> MaskedPolicy:
    torch.manual_seed(seed)
    return MaskedPolicy(Table(categories, length, scale), categories, length, start=start)


def completions(x, automaton):
    """The sequences that obey and agree with the tokens of a partly masked one."""
    count = len(automaton.moves[0])
    choices = [range(count) if token == count else [token] for token in x]
    return [y for y in itertools.product(*choices) if automaton.accepts(y)]


def by_hand(logits, x, automaton):
    """Of each masked position: the softmax of the logits over the tokens of some completion."""
    probs, mask = {}, len(automaton.moves[0])
    for i in (i for i, token in enumerate(x) if token == mask):
        can = sorted({y[i] for y in completions(x, automaton)})
        weights = [math.exp(logits[i][token]) for token in can]
        probs[i] = {token: w / sum(weights) for token, w in zip(can, weights, strict=True)}
    return probs


@st.composite
def problems(draw):
    """Moves and ends of any automaton, and where the chain starts."""
    letters, states = draw(st.integers(2, 3)), draw(st.integers(1, 4))
    state = st.integers(0, states - 1)
    moves = draw(st.lists(st.tuples(*[state] * letters), min_size=states, max_size=states))
    ends = draw(st.lists(st.booleans(), min_size=states, max_size=states))
    start = draw(st.lists(st.sampled_from([letters, letters, *range(letters)]), min_size=4, max_size=4))
    start[draw(st.integers(0, 3))] = letters
    return tuple(moves), tuple(ends), start


@settings(max_examples=60, deadline=None, derandomize=True)
@given(problems())
def test_the_chain_draws_all_that_obeys_and_nothing_else(problem):
    moves, ends, start = problem
    automaton, count = Automaton(moves, ends, LENGTH), len(moves[0])
    policy = chain(0, count, LENGTH, start=torch.tensor(start)).requires_grad_(False)
    good = completions(start, automaton)
    if not good:
        with pytest.raises(ValueError, match="no sequence that starts from"):
            constrain(policy, automaton)
        return
    policy = constrain(policy, automaton)
    law = landscape.evaluate(Objective(no_reward, policy, 1.0), policy).law
    drawn = all_sequences(count, LENGTH)[law > 0]
    assert [tuple(x) for x in drawn.tolist()] == good
    assert law.sum().item() == pytest.approx(1, abs=1e-10)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(problems())
def test_of_every_state_the_possible_tokens_are_those_of_its_completions(problem):
    moves, ends, _ = problem
    automaton, count = Automaton(moves, ends, LENGTH), len(moves[0])
    every, whole = all_sequences(count + 1, LENGTH), all_sequences(count, LENGTH)
    good = whole[torch.tensor([automaton.accepts(y) for y in whole.tolist()])]
    agree = ((every[:, None] == good) | (every[:, None] == count)).all(2)
    can = (agree[:, :, None, None] & (good[:, :, None] == torch.arange(count))).any(1)
    network = Constrained(Table(count, LENGTH), automaton)
    hidden = every == count
    assert torch.equal(network.possible(every), can)
    x = one_hot(every, count + 1).float()
    raw, logits = (f(x, every[:, 0], {}) for f in (network.network, network))
    left = can | ~hidden[..., None] | ~agree.any(1)[:, None, None]  # of no use where nothing obeys
    assert torch.equal(logits, torch.where(left, raw, -math.inf))


def test_a_preferred_constraint_is_obeyed_besides_unless_there_is_no_way():
    first, second = forbid(["AC"], LENGTH, DNA), count_range("AC", 4, 4, LENGTH, DNA)
    every = all_sequences(4, LENGTH)
    good, best = accepted(first, every), accepted(first, every) & accepted(second, every)
    assert good.tolist() == [first.accepts(x) for x in every.tolist()] and 0 < best.sum() < good.sum()
    policy = constrain(chain(0, 4, LENGTH), first, second).requires_grad_(False)
    law = landscape.evaluate(Objective(no_reward, policy, 1.0), policy).law
    assert law[~good].sum() == 0 and law[best].min() > 0
    # CA.. and ..CA can each be filled in, and yet C and A may meet in the middle as AC
    assert 0.7 < law[best].sum() < 1 and law.sum().item() == pytest.approx(1, abs=1e-6)


def no_reward(x, cond):
    return torch.zeros(len(x))


def reward(x, cond):
    return (x.double() @ torch.tensor([1.0, -2.0, 0.5, 1.5], dtype=torch.float64)).sin()


def test_the_kl_is_that_of_the_conditioned_guesses():
    """sum over states of P(x_t) times the mean over masked positions of KL(p_i || q_i), written out."""
    automaton = RULE
    policy, reference = (constrain(chain(seed, 4, LENGTH), automaton) for seed in (1, 2))
    tables = [p.network.get_parameter("network.logits").tolist() for p in (policy, reference)]
    law, kl = {(4,) * LENGTH: 1.0}, 0.0
    for _ in range(LENGTH):
        after = {}
        for x, mass in law.items():
            row = sum(token * 5**k for k, token in enumerate(reversed(x)))
            guess, base = (by_hand(table[row], x, automaton) for table in tables)
            for i, token in [(place, token) for place in guess for token in guess[place]]:
                p = mass * guess[i][token] / len(guess)
                kl += p * math.log(guess[i][token] / base[i][token])
                y = (*x[:i], token, *x[i + 1 :])
                after[y] = after.get(y, 0.0) + p
        law = after
    found = landscape.evaluate(Objective(reward, reference.requires_grad_(False), ALPHA), policy)
    assert found.kl.item() == pytest.approx(kl, rel=1e-5)
    expected = [law.get(tuple(x), 0.0) for x in all_sequences(4, LENGTH).tolist()]
    assert found.law.tolist() == pytest.approx(expected, abs=1e-6)
    sampled = Objective(reward, reference, ALPHA).sample(policy, unconditional(4000)).stats()
    assert abs(sampled["kl_nats"] - kl) < 4 * sampled["kl_nats_se"]


def test_a_network_that_wants_what_is_forbidden_obeys():
    automaton = both(forbid(["AA", "AC"], 12, DNA), gc_range(0.25, 0.25, 12, DNA))
    network = Constrained(nn.Identity(), automaton)
    torch.manual_seed(0)
    policy = MaskedPolicy(Linear(4, 12), 4, 12)
    with torch.no_grad():
        policy.network.get_parameter("layer.bias").view(12, 4)[:, 0] += 12.0  # an A, at odds of 1e5
    policy = constrain(policy, automaton)
    path = rollout(policy, unconditional(200))
    words = spell(path.sample, DNA)
    assert all("AA" not in x and "AC" not in x and x.count("G") + x.count("C") == 3 for x in words)
    assert sum(x.count("A") for x in words) / len(words) > 4
    assert path.log_prob.isfinite().all()
    check_ratio(policy, path)
    assert network.possible(path.states.flatten(0, 1)).any(2).all()


def test_gradients_stay_finite_where_tokens_are_impossible():
    """0 log 0 in the KL, in the density and in straight-through draws, over a whole chain of draws."""
    torch.manual_seed(0)
    pretrained = MaskedPolicy(Linear(4, LENGTH), 4, LENGTH)
    policy, reference = (constrain(pretrained, RULE) for _ in range(2))
    nn.init.normal_(policy.network.get_parameter("network.layer.weight"))
    cond = unconditional(64)
    x, kl, log_p = policy.initial(cond).rsample(), torch.zeros(64), torch.zeros(64)
    states = []
    for t in range(LENGTH, 0, -1):
        time = torch.full((64,), t)
        step, base = policy(x, time, cond), reference(x, time, cond)
        states.append(x)
        x, kl = step.rsample(), kl + step.kl(base)
        log_p = log_p + policy(states[-1].detach().argmax(-1), time, cond).log_prob(x.detach().argmax(-1))
    assert all(x.requires_grad for x in states[1:])
    assert all(RULE.accepts(word) for word in x.argmax(-1).tolist())
    assert kl.min() > 0.01
    for gain in (policy.decode(x, cond)[..., 0].sum(), kl.sum(), log_p.sum()):
        (slope,) = torch.autograd.grad(
            gain, policy.network.get_parameter("network.layer.weight"), retain_graph=True
        )
        assert slope.isfinite().all()
        assert slope.abs().max() > 1e-3


def test_one_hot_states_are_the_same_states():
    policy = constrain(chain(0, 4, LENGTH), RULE)
    x = torch.tensor([[4, 2, 4, 4], [4, 4, 4, 4], [1, 4, 4, 2]])
    soft = one_hot(x, 5).float().requires_grad_()
    hard_law, soft_law = (policy.clean(y, torch.full((3,), 2), unconditional(3)) for y in (x, soft))
    assert torch.equal(hard_law, soft_law)
    assert (hard_law == 0).any()


def test_parts_of_a_batch_give_what_the_whole_gives(monkeypatch):
    every = all_sequences(5, LENGTH)
    whole = Constrained(nn.Identity(), RULE).possible(every)
    monkeypatch.setattr(constraint, "MEMORY", 1000)
    assert torch.equal(Constrained(nn.Identity(), RULE).possible(every), whole)
    assert 0 < whole.double().mean() < 1


def test_a_state_is_followed_once_for_a_chain_and_its_copies_and_memory_is_bounded(monkeypatch):
    network = Constrained(Table(4, LENGTH), RULE)
    states, asked = all_sequences(5, LENGTH), []
    whole = network.possible(states)
    find = Completions._possible_in_part
    monkeypatch.setattr(
        Completions, "_possible_in_part", lambda self, x: asked.append(len(x)) or find(self, x)
    )
    few = states[torch.tensor([3, 600, 3, 44])]
    assert network.possible(few).equal(whole[[3, 600, 3, 44]]) and asked == []
    monkeypatch.setattr(constraint, "REMEMBERED", 200 * LENGTH * network.always.kinds)
    fresh = Constrained(network.network, RULE)
    fresh.possible(few)
    assert asked == [3] and copy.deepcopy(fresh).possible(few[:3]).equal(whole[[3, 600, 3]]) and asked == [3]
    for part in states.split(70):
        assert fresh.possible(part).equal(whole[(part * place_values(5, LENGTH)).sum(1)])
        assert len(fresh.always._known._rows) <= 200


@pytest.mark.gpu
def test_a_chain_that_moves_forgets_what_was_found_elsewhere():
    network, states = Constrained(Table(4, LENGTH), RULE), all_sequences(5, LENGTH)
    here = network.possible(states)
    there = copy.deepcopy(network).to("cuda").possible(states.to("cuda"))
    assert there.is_cuda and there.cpu().equal(here) and not network.possible(states).is_cuda


def test_the_optimum_is_the_tilted_law_of_the_constrained_chain():
    """alpha log Z over what obeys; masked policies come close, for the order of positions is not theirs."""
    reference = constrain(chain(0, 4, LENGTH, scale=0.0), RULE).requires_grad_(False)
    objective = Objective(reward, reference, ALPHA)
    base, solved = landscape.evaluate(objective, reference), landscape.solve(objective)
    scores = landscape.score(objective, reference)
    tilted = base.law * (scores / ALPHA).exp()
    assert solved.optimum.item() == pytest.approx(ALPHA * tilted.sum().log().item(), rel=1e-9)
    assert (solved.law > 0).tolist() == [RULE.accepts(x) for x in all_sequences(4, LENGTH).tolist()]
    best = landscape.reachable(objective, scores).item()
    assert base.objective + 0.4 < best  # it pays to learn
    assert 0.01 < solved.optimum.item() - best < 0.02  # what the order of the positions would bring


def test_ppo_learns_within_the_constraint():
    torch.manual_seed(0)
    policy = constrain(chain(0, 4, LENGTH, scale=0.1), RULE)
    reference = copy.deepcopy(policy).requires_grad_(False)
    objective = Objective(reward, reference, ALPHA)
    best = landscape.reachable(objective).item()
    before = landscape.evaluate(objective, policy).objective.item()
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.2)
    list(fit(policy, objective, PPO(minibatches=2), [unconditional(512)] * 12, optimizer))
    after = landscape.evaluate(objective, policy)
    assert all(RULE.accepts(x) for x in rollout(policy, unconditional(500)).sample.tolist())
    assert after.law.sum().item() == pytest.approx(1, abs=1e-10)
    assert 0.85 < (after.objective.item() - before) / (best - before) < 1


@pytest.mark.parametrize(
    ("rule", "distance", "nats"),
    [
        (forbid(["CG"], 6, DNA), 0.065, 0.0132),
        (gc_range(0, 1 / 3, 6, DNA), 0.209, 0.1211),
        (gc_range(0.5, 0.5, 6, DNA), 0.0, 0.0),
    ],
    ids=["CpG", "poor", "half"],
)
def test_the_constrained_chain_is_not_the_chain_given_the_constraint(rule, distance, nats):
    """The figures of the docstring; one count alone leaves the same freedom wherever a path begins."""
    policy = constrain(chain(0, 4, 6, scale=0.0), rule).requires_grad_(False)
    law = landscape.evaluate(Objective(no_reward, policy, 1.0), policy).law
    given = torch.tensor([rule.accepts(x) for x in all_sequences(4, 6).tolist()]).double()
    given = given / given.sum()
    assert (law - given).abs().sum().item() / 2 == pytest.approx(distance, abs=1e-3)
    assert landscape.kl(law, given).item() == pytest.approx(nats, abs=1e-4)


def test_the_chain_that_came_stays_as_it_is():
    pretrained = chain(0, 4, LENGTH, start=torch.tensor([4, 2, 4, 4]))
    policy = constrain(pretrained, RULE)
    with torch.no_grad():
        policy.network.get_parameter("network.logits").zero_()
    assert isinstance(pretrained.network, Table)
    assert pretrained.network.logits.abs().max() > 1
    path = rollout(policy, unconditional(50))
    assert path.states.shape == (4, 50, LENGTH)
    assert all(RULE.accepts(x) and x[1] == 2 for x in path.sample.tolist())


@pytest.mark.parametrize(
    ("settings", "rule", "message"),
    [
        ({"steps": 2}, RULE, "one step for each of the 4 masked positions, but got 'positions' with 2 steps"),
        ({"unmasking": "bernoulli", "steps": 4}, RULE, "but got 'bernoulli' with 4 steps"),
        ({"start": torch.tensor([4, 1, 2, 4])}, RULE, r"starts from \[4, 1, 2, 4\], where 4 is the mask"),
        ({}, both(gc_range(0, 0, 4, DNA), forbid(["W"], 4, DNA)), "no sequence that starts from"),
        ({}, forbid(["A"], 5, DNA), "on 5 tokens of 4 kinds, but the chain draws 4 of 4"),
        ({}, forbid(["A"], 4, "ABC"), "on 4 tokens of 3 kinds, but the chain draws 4 of 4"),
    ],
)
def test_what_cannot_be_constrained_is_refused(settings, rule, message):
    with pytest.raises(ValueError, match=message):
        constrain(MaskedPolicy(Table(4, 4), 4, 4, **settings), rule)


def test_two_constraints_are_combined_first():
    once = constrain(chain(0, 4, LENGTH), RULE)
    with pytest.raises(ValueError, match=r"combine the constraints with both\(\)"):
        constrain(once, RULE)
