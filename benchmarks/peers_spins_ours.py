"""What `peers.py` has difftilt do on spins, in a process of its own: trajectory balance on a masked chain."""

import json
import sys
from typing import Any

import torch
import torch.nn as nn
from accelerate import Accelerator
from peers_clock import report
from peers_spins import BATCH, RATE, SPINS, UPDATES, Net, couplings, distance
from torch.nn.functional import one_hot

from difftilt import MaskedPolicy, Objective, TrajectoryBalance, fit, unconditional
from difftilt.training.settings import Training


class Logits(nn.Module):
    """The network as a chain asks it."""

    def __init__(self):
        super().__init__()
        self.net = Net(2 * SPINS)

    def forward(self, x: torch.Tensor, t: torch.Tensor, cond: Any) -> torch.Tensor:
        return self.net(x).view(-1, SPINS, 2)


class Uniform(nn.Module):
    """A reference that knows nothing: its optimum is exp(r / alpha) itself."""

    def forward(self, x: torch.Tensor, t: torch.Tensor, cond: Any) -> torch.Tensor:
        return x.new_zeros(len(x), SPINS, 2)


def run(asked: dict[str, Any]) -> None:
    """Epochs of so many updates."""
    torch.manual_seed(asked["seed"])
    torch.set_num_threads(1)
    strength = couplings()

    def reward(spins: torch.Tensor, cond: Any) -> torch.Tensor:
        s = 2.0 * spins - 1
        return ((s @ strength) * s).sum(1)

    policy, reference = MaskedPolicy(Logits(), 2, SPINS), MaskedPolicy(Uniform(), 2, SPINS)
    objective = Objective(reward, reference, alpha=1.0)
    algorithm = TrajectoryBalance(minibatches=1)
    optimizer = torch.optim.Adam(policy.parameters(), RATE)
    training, accelerator = Training(seed=asked["seed"]), Accelerator(cpu=True)

    def epoch(number: int) -> None:
        conds = [unconditional(BATCH)] * UPDATES
        start = number * UPDATES
        list(fit(policy, objective, algorithm, conds, optimizer, training, accelerator, start=start))

    def decide(states: torch.Tensor) -> torch.Tensor:
        tokens = policy.network(one_hot(states, 3).float(), states[:, 0], {}).softmax(-1)
        unset = (states == 2).float()
        return tokens * (unset / unset.sum(1, keepdim=True))[..., None]

    report(epoch, asked["epochs"], lambda: distance(decide))


if __name__ == "__main__":
    run(json.loads(sys.argv[2]))
