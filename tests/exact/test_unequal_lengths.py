"""All strings of up to five letters over three, of which one has two signs, listed and walked one by one."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from difftilt.algorithms.ppo import PPO
from difftilt.conditions import unconditional
from difftilt.data.vocabulary import Vocabulary, place_values
from difftilt.exact import landscape
from difftilt.networks.automaton import both, count_range, ended, forbid, share_range
from difftilt.networks.constraint import constrain
from difftilt.networks.sequence import Corrected, WordValues
from difftilt.objective import Objective
from difftilt.policy import rollout
from difftilt.processes.masked import MaskedPolicy
from difftilt.training.fit import fit

WORDS = Vocabulary(("a", "bc", "d"), 0, 5)
END, MASK, LENGTH = 3, 4, 5
STRINGS = [word for size in range(LENGTH + 1) for word in itertools.product(range(3), repeat=size)]
ROWS = torch.tensor([[*word, *[END] * (LENGTH - len(word))] for word in STRINGS])
PLACES = (ROWS * place_values(4, LENGTH)).sum(1)
ALPHA = 1.0


class Table(nn.Module):
    """Any function of the state: a row of logits for each."""

    def __init__(self, scale: float):
        super().__init__()
        self.logits = nn.Parameter(scale * torch.randn((MASK + 1) ** LENGTH, LENGTH, 4))

    def forward(self, x, t, cond):
        return self.logits[(x.argmax(-1) * place_values(5, LENGTH)).sum(1)]


def chain(seed: int, scale: float = 1.0) -> MaskedPolicy:
    torch.manual_seed(seed)
    return constrain(MaskedPolicy(Table(scale), 4, LENGTH), ended(WORDS))


def reward(sample, cond) -> Tensor:
    words = WORDS.spell(sample)
    return torch.tensor([word.count("bc") - 0.75 * ("ad" in word) - 0.125 * len(word) for word in words])


def guesses(policy: MaskedPolicy, shown: tuple[int, ...]) -> Tensor:
    """Of every string, if only those positions are shown: the probabilities of its own tokens, by hand."""
    states = torch.full_like(ROWS, MASK)
    states[:, shown] = ROWS[:, shown]
    logits = policy.get_parameter("network.network.logits")[
        (states * place_values(5, LENGTH)).sum(1)
    ].detach()
    agrees = (ROWS[:, None, shown] == ROWS[None, :, shown]).all(2)  # strings that it may still become
    possible = agrees.double() @ nn.functional.one_hot(ROWS, 4).double().flatten(1) > 0
    return (
        logits.masked_fill(~possible.view(-1, LENGTH, 4), -torch.inf)
        .softmax(2)
        .gather(2, ROWS[..., None])[..., 0]
    )


def walked(policy: MaskedPolicy, reference: MaskedPolicy) -> tuple[Tensor, Tensor]:
    """Each string's probability over all orders of its positions, and its share in KL(paths || paths)."""
    none = torch.zeros(len(ROWS))
    paths: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {(): (none + 1, none)}
    for size in range(LENGTH):
        for shown in itertools.combinations(range(LENGTH), size):
            mass, cost = paths[shown]
            p, q = guesses(policy, shown), guesses(reference, shown)
            for i in set(range(LENGTH)) - set(shown):
                chance, ratio = p[:, i] / (LENGTH - size), (p[:, i] / q[:, i]).log()
                now = tuple(sorted((*shown, i)))
                before = paths.get(now, (none, none))
                paths[now] = before[0] + mass * chance, before[1] + (cost + mass * ratio) * chance
    return paths[tuple(range(LENGTH))]


def on_strings(law: Tensor) -> Tensor:
    """The law of the strings, if all else has no probability."""
    assert law[PLACES].sum().item() == pytest.approx(law.sum().item(), abs=1e-12)
    return law[PLACES]


def test_the_exact_numbers_of_unequal_lengths_are_those_of_the_list_of_strings(double):
    policy, reference = chain(1), chain(2)
    objective = Objective(reward, reference, ALPHA)
    scores = reward(ROWS, {})
    base, _ = walked(reference, reference)
    law, cost = walked(policy, reference)
    assert len(set(WORDS.spell(ROWS))) == len(ROWS) == 364 and law.sum().item() == pytest.approx(1, abs=1e-12)

    found = landscape.evaluate(objective, policy)
    assert torch.allclose(on_strings(found.law), law, rtol=0, atol=1e-9)
    assert found.objective.item() == pytest.approx((law @ scores - ALPHA * cost.sum()).item(), abs=1e-9)

    best = landscape.solve(objective)
    tilted = base * (scores / ALPHA).exp()
    assert best.optimum.item() == pytest.approx(ALPHA * tilted.sum().log().item(), abs=1e-9)
    assert torch.allclose(on_strings(best.law), tilted / tilted.sum(), rtol=0, atol=1e-9)


def test_ppo_reaches_the_best_policy_of_unequal_lengths():
    reference = chain(0, 0.3).requires_grad_(False)
    own = Corrected(reference.get_submodule("network.network"), WordValues(4, LENGTH, [5, 3, 2]))
    policy = constrain(MaskedPolicy(own, 4, LENGTH), ended(WORDS))
    objective = Objective(reward, reference, ALPHA)
    optimizer = torch.optim.Adam(policy.parameters(), 0.1)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.02, 40)
    torch.manual_seed(0)
    ppo = PPO(advantage="path", epochs=1, minibatches=2, kl="reward")
    for _ in fit(policy, objective, ppo, [unconditional(1024)] * 40, optimizer):
        schedule.step()
    best, reached = landscape.reachable(objective), landscape.evaluate(objective, policy).objective
    assert -1e-6 < (best - reached).item() / ALPHA < 0.02
    drawn = rollout(policy, unconditional(64)).sample
    assert {tuple(row) for row in drawn.tolist()} <= {tuple(row) for row in ROWS.tolist()}


def shares(word: str) -> float:
    """Of a and d among the letters."""
    return sum(map(word.count, "ad")) / len(word.replace("bc", "b"))


RULES = {
    "motif": (forbid(["abc"], LENGTH, WORDS.alphabet), lambda word: "abc" not in word),
    "count": (count_range(["bc"], 1, 2, LENGTH, WORDS.alphabet), lambda word: 1 <= word.count("bc") <= 2),
    "share": (
        share_range(["a", "d"], 0.5, 0.75, LENGTH, WORDS.alphabet),
        lambda word: not word or 0.5 <= shares(word) <= 0.75,
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_constraints_hold_for_texts_of_any_length(name):
    rule, holds = RULES[name]
    rule = both(ended(WORDS), rule)
    assert [rule.accepts(row) for row in ROWS.tolist()] == [holds(word) for word in WORDS.spell(ROWS)]


@pytest.mark.parametrize(("shortest", "longest"), [(0, 3), (2, 4), (3, 3)])
def test_rows_that_spell_no_text_are_none_of_the_chain(shortest, longest):
    words = Vocabulary(("a", "bc"), shortest, longest)
    rule = ended(words)
    rows = list(itertools.product(range(len(words.alphabet)), repeat=longest))
    sizes = range(shortest, longest + 1)
    texts = [word for size in sizes for word in itertools.product(words.letters, repeat=size)]
    spelled = set(map(tuple, words.encode(map("".join, texts)).tolist()))
    assert {row for row in rows if rule.accepts(row)} == spelled
