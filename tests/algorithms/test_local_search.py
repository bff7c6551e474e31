"""What local search finds, how its finds are weighed, and when it leaves the policy to its own chains."""

import copy

import pytest
import torch
from problems import reversal
from test_tokens import gap, problem
from torch import nn

from difftilt.algorithms.finds import Finds
from difftilt.algorithms.local_search import LocalSearch, _Round
from difftilt.algorithms.ppo import PPO
from difftilt.conditions import unconditional
from difftilt.exact import landscape, tabular
from difftilt.networks.automaton import forbid
from difftilt.networks.constraint import constrain
from difftilt.objective import Objective
from difftilt.processes.masked import MaskedPolicy
from difftilt.processes.uniform import UniformPolicy
from difftilt.training.fit import fit

LETTERS, LENGTH = 6, 4
NEEDLE = torch.tensor([5, 5, 5, 5])


class Blank(nn.Module):
    """Logits of their own for every state, or the same for all."""

    def __init__(self, low: float = 0.0):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(LENGTH * (LETTERS + 1), 64), nn.SiLU(), nn.Linear(64, LENGTH * LETTERS)
        )
        nn.init.zeros_(self.mlp.get_parameter("2.weight"))
        self.register_buffer("prior", torch.zeros(LETTERS).index_fill(0, torch.tensor([5]), -low))

    def forward(self, x, t, cond):
        return self.mlp(x.flatten(1)).view(len(x), LENGTH, LETTERS) + self.prior


def needle(low: float = 3.0, alpha: float = 0.03) -> tuple[Objective, MaskedPolicy]:
    """The fourth 5 in a row is what counts, and 5 is a letter that the model rarely draws."""
    torch.manual_seed(0)
    reference = MaskedPolicy(Blank(low), LETTERS, LENGTH)

    def reward(x, cond):
        return ((x == NEEDLE).sum(1) / 4.0) ** 3

    return Objective(reward, copy.deepcopy(reference).requires_grad_(False), alpha), reference


def searched(algorithm, objective, policy, rounds=20, batch=512):
    algorithm.setup(policy, unconditional(2))
    optimizer = torch.optim.Adam(policy.parameters(), 1e-2)
    return list(fit(policy, objective, algorithm, [unconditional(batch)] * rounds, optimizer))


def test_what_the_model_never_draws_is_found_and_learned():
    ppo, search = PPO(advantage="path", epochs=1, kl="reward"), LocalSearch(trial=20, proposals=1.0)
    left = []
    for algorithm in (ppo, search):
        objective, policy = needle()
        searched(algorithm, objective, policy, rounds=24, batch=192)
        best, found = landscape.solve(objective).law, landscape.evaluate(objective, policy).law
        left.append(1 - found[best.argmax()].item())
    assert left[1] < 0.1 < 0.99 < left[0]


@pytest.mark.parametrize("finish", ["objective", "coverage"])
@pytest.mark.parametrize("imitates", [True, False])
def test_each_way_of_learning_ends_at_p_r(finish, imitates):
    """By itself: imitation that never ends, and balance that begins with the second round."""
    objective, policy = problem()
    forever, at_once = LocalSearch(finish, slow=-1.0), LocalSearch(finish, near=1e9, slow=1e9, trial=1)
    algorithm = forever if imitates else at_once
    algorithm.setup(policy, unconditional(2))
    optimizer = torch.optim.Adam(policy.parameters(), 2e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.02, 30)
    for number in range(30):
        list(fit(policy, objective, algorithm, [unconditional(192)], optimizer, start=number))
        schedule.step()
    assert algorithm.imitates == imitates
    best, found = landscape.solve(objective).law, landscape.evaluate(objective, policy).law
    assert landscape.kl(best, found) < 0.02
    assert gap(objective, policy) < 0.05


def test_finds_are_held_once_and_weigh_as_p_r():
    objective, policy = problem()
    algorithm = LocalSearch(paths=60, proposals=1.0)
    searched(algorithm, objective, policy, rounds=3, batch=256)
    finds = algorithm.known()
    assert len(finds) == len(finds.x_0.unique(dim=0)) == 27
    law = torch.zeros(27, dtype=torch.float64)
    place = (finds.x_0 * torch.tensor([9, 3, 1])).sum(1)
    law[place] = finds.log_weight(objective.alpha).softmax(0)
    best = landscape.solve(objective).law
    assert (law - best).abs().max() < 0.03 * best.max()
    drawn = finds.draw(torch.zeros(20000, dtype=torch.long), objective.alpha)
    shares = torch.bincount(place[drawn], minlength=27) / 20000
    assert (shares - law).abs().max() < 0.02


def test_a_neighbour_is_asked_for_once_and_what_the_policy_draws_each_time():
    objective, policy = needle()
    asked: list[torch.Tensor] = []

    def reward(x, cond):
        asked.append(x)
        return (x == NEEDLE).sum(1).float()

    objective = Objective(reward, objective.reference, 0.1)
    algorithm = LocalSearch(proposals=1.0)
    algorithm.setup(policy, unconditional(2))
    reference = copy.deepcopy(policy)
    now = _Round(policy, reference, objective, unconditional(256), algorithm.known())
    for _ in range(4):
        algorithm._search(now)
    assert [len(x) for x in asked[:2]] == [256, 32]  # then neighbours, and both in turn
    every = torch.cat(asked[2::2])
    assert len(every.unique(dim=0)) == len(every) > 200
    assert not (every[:, None] == asked[0][None]).all(-1).any()
    assert len(algorithm.known()) == len(torch.cat(asked).unique(dim=0))


def test_neighbours_keep_what_stays_and_what_is_forbidden():
    torch.manual_seed(0)
    start = torch.tensor([LETTERS, 2, LETTERS, LETTERS])
    rule = forbid(["AC"], LENGTH, "ABCDEF")
    free = MaskedPolicy(Blank(), LETTERS, LENGTH, start=start)
    policy = constrain(free, rule)
    seen: list[torch.Tensor] = []

    def reward(x, cond):
        seen.append(x)
        return x.float().sum(1)

    objective = Objective(reward, copy.deepcopy(policy).requires_grad_(False), 1.0)
    searched(LocalSearch(slow=-1.0), objective, policy, rounds=6, batch=256)
    every = torch.cat(seen)
    assert len(every.unique(dim=0)) > 100
    assert (every[:, 1] == 2).all()
    assert not ((every[:, :-1] == 0) & (every[:, 1:] == 2)).any()


def test_long_sequences_and_broad_targets_are_left_to_the_policy_s_own_chains():
    torch.manual_seed(0)
    length = 30

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.logits = nn.Parameter(torch.zeros(length, 4))

        def forward(self, x, t, cond):
            return self.logits.expand(len(x), -1, -1)

    policy = UniformPolicy(Plain(), 4, length, steps=2)
    objective = Objective(
        lambda x, c: (x == 0).float().mean(1), copy.deepcopy(policy).requires_grad_(False), 0.05
    )
    algorithm = LocalSearch(trial=3)
    rows = searched(algorithm, objective, policy, rounds=5, batch=128)
    assert not algorithm.searches and not algorithm.imitates
    assert rows[0]["lack_nats"] > 20 and "lack_nats" not in rows[-1]


def test_a_walk_over_real_numbers_leaves_p_r_as_it_is():
    """Every find is a draw: weighed means are those of p_r, whichever way a draw came."""
    torch.manual_seed(0)
    made = reversal()
    algorithm = LocalSearch(trial=100, proposals=1.0, own=0.1, reach=4)
    cond = unconditional(4000)
    algorithm.setup(made.start, cond)
    for _ in range(4):
        next(iter(algorithm.losses(made.start, made.objective, cond)))
    finds = algorithm.known()
    assert len(finds) == 4000 * 4 and not finds.counted
    walked = slice(4000, 7600)
    for rows in (slice(None), walked):
        weight = finds.log_weight(made.objective.alpha)[rows].softmax(0)
        x = finds.x_0[rows, 0].double()
        mean, spread = weight @ x, weight @ x.square() - (weight @ x) ** 2
        assert mean == pytest.approx(2.0, abs=0.15)  # N(0, 1) tilted by exp(x / 0.5)
        assert spread == pytest.approx(1.0, abs=0.25)
    effective = [
        1 / finds.log_weight(0.5)[rows].softmax(0).square().sum().item() for rows in (slice(4000), walked)
    ]
    assert effective[1] > 2 * effective[0]  # in which the walk is worth its rewards


def passes(objective, policy, algorithm, batch):
    """Rows through both networks in the second round, which imitates."""
    rows: list[int] = []
    algorithm.setup(policy, unconditional(2))
    list(algorithm.losses(policy, objective, unconditional(batch)))
    for chain in (policy, objective.reference):
        chain.network.register_forward_hook(lambda m, i, o: rows.append(len(o)))
    list(algorithm.losses(policy, objective, unconditional(batch)))
    assert algorithm.imitates and algorithm._away > algorithm._lack
    return sum(rows)


def test_a_search_costs_the_passes_that_are_documented():
    batch, own, others = 128, 8, 56
    made = reversal()
    drawn = 2 * own * made.start.steps + others * 3 / 2  # neighbours go back one step or two
    assert passes(made.objective, made.start, LocalSearch(), batch) == drawn + 8 * batch
    objective, policy = needle()
    objective = Objective(lambda x, c: (x == 5).sum(1).float(), objective.reference, 0.05)
    algorithm, before = LocalSearch(), []
    original = algorithm._search

    def search(now):
        before.append(len(algorithm.known()))
        return original(now)

    algorithm._search = search
    found = passes(objective, policy, algorithm, batch)
    new = len(algorithm.known()) - before[1]
    assert found == 2 * own * LENGTH + others * 3 / 2 + (new + 64) * LENGTH + 8 * batch


def test_what_is_forgotten_weighs_least():
    finds = Finds(torch.zeros(1, 2, dtype=torch.long))
    x, number = torch.arange(10).view(5, 2), torch.zeros(5, dtype=torch.long)
    finds.add(x, number, torch.tensor([3.0, 1, 5, 2, 4]), torch.zeros(5))
    finds.forget(3, alpha=1.0)
    assert finds.reward.tolist() == [3, 5, 4]
    assert finds.fresh(x, number).tolist() == [1, 3]
    again = Finds(torch.zeros(1, 2, dtype=torch.long))
    again.load_state_dict(finds.state_dict())
    assert again.fresh(x, number).tolist() == [1, 3]
    real = Finds(torch.zeros(1, 2))
    real.add(x.float(), number, torch.tensor([3.0, 1, 5, 2, 4]), torch.zeros(5))
    real.forget(2, alpha=1.0)
    assert real.reward.tolist() == [2, 4]


def test_finds_of_one_context_are_not_those_of_another():
    finds = Finds(torch.zeros(1, 1, dtype=torch.long))
    number = finds.contexts({"prompt": ["a", "b", "a", "c"]})
    assert number.tolist() == [0, 1, 0, 2]
    finds.add(torch.tensor([[1], [1], [2]]), number[:3], torch.zeros(3), torch.tensor([0.0, 0, 50]))
    assert finds.has(number).tolist() == [0, 1, 2]
    drawn = finds.draw(torch.tensor([0, 1, 0, 1]), 1.0)
    assert finds.x_0[drawn, 0].tolist() == [2, 1, 2, 1]
    assert finds.log_mass(torch.tensor([1, 2]), 1.0).tolist() == [0, -torch.inf]
    assert finds.fresh(torch.tensor([[1], [2]]), torch.tensor([1, 1])).tolist() == [1]


def test_what_cannot_be_done_is_said():
    objective, policy = problem()
    algorithm = LocalSearch()
    with pytest.raises(ValueError, match=r"call setup\(policy, cond\)"):
        next(iter(algorithm.losses(policy, objective, unconditional(8))))
    algorithm.setup(policy, unconditional(2))
    chain = tabular.random_chain(3, 3)
    with pytest.raises(ValueError, match="local search needs a chain that reverses a noising process"):
        next(iter(algorithm.losses(chain, objective, unconditional(8))))
