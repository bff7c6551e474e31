"""The moving average, the counter of network calls, and the log."""

import pytest
import torch
import torch.nn as nn
from torch.utils.checkpoint import checkpoint

from difftilt.networks.micro_batch import MicroBatch
from difftilt.networks.network_calls import NetworkCalls
from difftilt.training.ema import EMA
from difftilt.training.log import MetricLog


def test_the_average_is_the_weighted_sum_of_the_weights():
    model = nn.Linear(1, 1, bias=False)
    values = torch.randn(6)
    model.weight.data.fill_(values[0])
    ema = EMA(model, 0.8)
    for value in values[1:]:
        model.weight.data.fill_(value)
        ema.update()
    share = torch.tensor([0.8**5] + [0.2 * 0.8 ** (5 - k) for k in range(1, 6)])
    assert share.sum().item() == pytest.approx(1)
    torch.testing.assert_close(ema.state_dict()["weight"].squeeze(), (share * values).sum())


def test_the_average_is_lent_and_given_back_even_after_an_error():
    model = nn.Linear(3, 3)
    ema, trained = EMA(model, 0.5), torch.randn(3, 3)
    first = model.weight.detach().clone()
    model.weight.data.copy_(trained)
    with pytest.raises(KeyError), ema.applied():
        assert torch.equal(model.weight, first)
        raise KeyError
    assert torch.equal(model.weight, trained)


def test_frozen_weights_are_not_averaged():
    model = nn.Linear(3, 3)
    model.bias.requires_grad_(False)
    assert set(EMA(model, 0.5).state_dict()) == {"weight"}
    with pytest.raises(ValueError, match=r"but got one of \['bias'\]"):
        EMA(model, 0.5).load_state_dict({"bias": torch.zeros(3)})


class Twice(nn.Module):
    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x) + self.network(x)


def test_samples_are_counted_once_forwards_and_backwards():
    inner = nn.Linear(2, 2)
    outer, counter, x = Twice(inner), NetworkCalls(), torch.randn(5, 2)
    with counter.watching([inner, outer, outer]):
        y = outer(x)  # the inner one within the outer one is the same call
        assert (counter.forward, counter.backward) == (5, 0)
        inner(x[:3])
        with torch.no_grad():
            inner(x[:1])
        assert (counter.forward, counter.backward) == (9, 0)
        y.sum().backward()
        assert (counter.forward, counter.backward) == (9, 5)
    outer(x)
    assert counter.forward == 9


@pytest.mark.parametrize("reentrant", [True, False])
def test_what_is_computed_again_is_not_counted(reentrant):
    network, counter, x = nn.Linear(2, 2), NetworkCalls(), torch.randn(5, 2, requires_grad=True)
    with counter.watching([network]):
        checkpoint(network, x, use_reentrant=reentrant).square().sum().backward()
    assert (counter.forward, counter.backward) == (5, 5)


def test_micro_batches_count_as_their_whole():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, x, time, cond):
            return self.linear(x)

    network, counter = MicroBatch(Net(), 2), NetworkCalls()
    with counter.watching([network]):
        network(torch.randn(5, 2), torch.zeros(5), {}).sum().backward()
    assert (counter.forward, counter.backward) == (5, 5)


def test_a_failing_network_does_not_upset_the_counter():
    network, counter = nn.Linear(2, 2), NetworkCalls()
    with counter.watching([network]):
        with pytest.raises(RuntimeError):
            network(torch.randn(5, 3))
        network(torch.randn(4, 2))
    assert counter.forward == 4


def test_the_log_is_cut_back(tmp_path):
    log = MetricLog(tmp_path / "metrics.jsonl")
    log.write({"a": 1 / 3})
    offset = log.flush()
    log.write({"a": 2.0})
    log.write({"a": 2.0})
    log.close()
    again = MetricLog(tmp_path / "metrics.jsonl", offset)
    again.write({"a": 3.0})
    again.sync()
    again.close()
    assert (tmp_path / "metrics.jsonl").read_text() == f'{{"a": {1 / 3!r}}}\n{{"a": 3.0}}\n'
