"""Networks for tokens: what they see, and which symmetries they keep."""

import pytest
import torch
import torch.nn.functional as F

from difftilt.networks.sequence import MLP, BothStrands, Corrected, WordValues

LENGTH, LETTERS = 6, 4
MAKERS = {
    "mlp": lambda: MLP(LETTERS, LENGTH, width=16),
    "words": lambda: MLP(LETTERS, LENGTH, width=16, window=3),
    "strands": lambda: BothStrands(MLP(LETTERS, LENGTH, width=16, window=3)),
}


def states(count: int = 64) -> torch.Tensor:
    torch.manual_seed(0)
    return F.one_hot(torch.randint(LETTERS + 1, (count, LENGTH)), LETTERS + 1).float()


def ask(network, x):
    return network(x, torch.ones(len(x), dtype=torch.long), {})


@pytest.fixture(params=MAKERS)
def network(request):
    torch.manual_seed(1)
    return MAKERS[request.param]()


def test_every_position_sees_every_other(network):
    x = states(1).repeat(1 + LENGTH, 1, 1)
    for i in range(LENGTH):  # row 1 + i differs from row 0 at position i
        x[1 + i, i] = x[0, i].roll(1)
    logits = ask(network, x).detach()
    assert logits.shape == (1 + LENGTH, LENGTH, LETTERS)
    moved = (logits[1:] - logits[0]).abs().amax(2)
    assert (moved > 1e-6).all()


def test_relaxed_letters_give_the_same_numbers_and_a_gradient_everywhere(network):
    x = states()
    relaxed = x.clone().requires_grad_()
    torch.testing.assert_close(ask(network, relaxed), ask(network, x))
    ask(network, relaxed).square().sum().backward()
    assert relaxed.grad is not None
    assert (relaxed.grad.abs().amax(2) > 0).all()


def test_relaxed_words_are_the_mean_over_words():
    """With no layer above, the hidden units are a sum of rows: those of a mixed letter are mixed alike."""
    network = MLP(LETTERS, LENGTH, width=8, depth=0, window=2)
    seen = []
    network.logits.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    mixed = states(1)
    mixed[0, 2] = torch.tensor([0.25, 0.75, 0, 0, 0])
    ends = mixed.repeat(2, 1, 1)
    ends[:, 2] = F.one_hot(torch.tensor([0, 1]), LETTERS + 1).float()

    def hidden(x):
        ask(network, x)
        return seen.pop()

    network.letters.weight.data.zero_()
    with torch.no_grad():
        network.words.mul_(1e-3)  # where silu is nearly half the identity
    first, second = hidden(ends)
    torch.testing.assert_close(
        hidden(mixed.requires_grad_())[0], 0.25 * first + 0.75 * second, atol=1e-6, rtol=0
    )
    assert (first - second).abs().max() > 1e-5


def values(strands: bool = False) -> WordValues:
    torch.manual_seed(2)
    network = WordValues(LETTERS, LENGTH, (6, 4, 3), both_strands=strands)
    torch.nn.init.normal_(network.numbers)
    return network


def test_word_values_are_one_number_per_next_state():
    """g(x with y at i) is the same whatever x it is reached from, up to the words without i."""
    network = values()
    x = torch.randint(LETTERS, (1, LENGTH))
    full = F.one_hot(x, LETTERS + 1).float()
    spans = [(start, size) for size in (6, 4, 3) for start in range(LENGTH - size + 1)]
    place = [(LETTERS + 1) ** torch.arange(size).flip(0) for _, size in spans]
    for i in range(LENGTH):
        masked = full.clone()
        masked[0, i] = F.one_hot(torch.tensor(LETTERS), LETTERS + 1).float()
        for letter in range(LETTERS):
            x[0, i] = letter
            rows = [
                network.get_buffer(f"row_{start}_{size}")[(x[0, start : start + size] * p).sum()]
                for (start, size), p in zip(spans, place, strict=True)
                if start <= i < start + size
            ]
            expected = network.numbers[torch.stack(rows)].sum()
            torch.testing.assert_close(ask(network, masked)[0, i, letter], expected)
        x[0, i] = full[0, i].argmax()


def test_word_values_of_both_strands_share_their_numbers():
    x = states(256)
    both, one = values(strands=True), values()
    torch.testing.assert_close(ask(both, complement(x)), ask(both, x).flip(1, 2))
    assert (ask(one, complement(x)) - ask(one, x).flip(1, 2)).abs().max() > 0.1
    assert both.numbers.numel() < one.numbers.numel()


def test_a_correction_starts_from_the_base_and_leaves_it_as_it_is():
    base = MAKERS["strands"]()
    network = Corrected(base, WordValues(LETTERS, LENGTH, (6, 3)))
    x = states()
    torch.testing.assert_close(ask(network, x), ask(base, x), rtol=0, atol=0)
    trained = [name for name, p in network.named_parameters() if p.requires_grad]
    assert trained == ["correction.numbers"]


@pytest.mark.parametrize("words", [(), (0, 3), (3, 7)])
def test_words_fit_the_sequence(words):
    with pytest.raises(ValueError, match="words have 1 to 6 letters"):
        WordValues(LETTERS, LENGTH, words)


def complement(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x[..., :4].flip(1, 2), x[..., 4:].flip(1)], -1)


def test_both_strands_have_one_answer():
    torch.manual_seed(1)
    network = MAKERS["strands"]()
    x = states(256)  # a few are their own mirror images
    assert (complement(x) == x).flatten(1).all(1).any()
    expected = ask(network, x).flip(1, 2)
    torch.testing.assert_close(ask(network, complement(x)), expected, rtol=0, atol=0)
    assert (ask(network.network, complement(x)) - ask(network.network, x).flip(1, 2)).abs().max() > 0.01


@pytest.mark.parametrize("window", [-1, LENGTH + 1])
def test_a_window_fits_the_sequence(window):
    with pytest.raises(ValueError, match="window must lie between 0 and the length"):
        MLP(LETTERS, LENGTH, window=window)
