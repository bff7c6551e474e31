"""What `peers.py` has torchgfn do, in an environment of its own: trajectory balance on spins."""

import json
import sys
from typing import Any

import torch
from gfn.estimators import DiscretePolicyEstimator  # pyright: ignore[reportMissingImports]  # of its own
from gfn.gflownet import (  # pyright: ignore[reportMissingImports]
    LogPartitionVarianceGFlowNet,
    TBGFlowNet,
)
from gfn.gym.discrete_ebm import DiscreteEBM, IsingModel  # pyright: ignore[reportMissingImports]
from gfn.preprocessors import Preprocessor  # pyright: ignore[reportMissingImports]
from peers_clock import report
from peers_spins import BATCH, RATE, SPINS, UPDATES, Net, couplings, distance
from torch.nn.functional import one_hot

LOG_Z_RATE = 0.1  # of its own examples


class OneHot(Preprocessor):
    """Its states say -1 where nothing is set."""

    def preprocess(self, states: Any) -> torch.Tensor:
        return one_hot(states.tensor % 3, 3).float().flatten(1)


def run(asked: dict[str, Any]) -> None:
    """Epochs of so many updates, each with the log-probabilities that sampling has computed."""
    torch.manual_seed(asked["seed"])
    torch.set_num_threads(1)
    spins = DiscreteEBM(SPINS, IsingModel(couplings()))
    ahead = DiscretePolicyEstimator(Net(spins.n_actions), spins.n_actions, OneHot(3 * SPINS))
    back = DiscretePolicyEstimator.uniform(spins.n_actions, OneHot(3 * SPINS))
    scalar = asked["kind"] == "torchgfn"
    model = TBGFlowNet(pf=ahead, pb=back) if scalar else LogPartitionVarianceGFlowNet(pf=ahead, pb=back)
    groups = [{"params": list(ahead.parameters()), "lr": RATE}]
    if scalar:
        groups.append({"params": model.logz_parameters(), "lr": LOG_Z_RATE})
    optimizer = torch.optim.Adam(groups)

    def epoch(number: int) -> None:
        for _ in range(UPDATES):
            paths = model.sample_trajectories(spins, n=BATCH, save_logprobs=True)
            optimizer.zero_grad()
            model.loss(spins, paths, recalculate_all_logprobs=False).backward()
            optimizer.step()

    def decide(states: torch.Tensor) -> torch.Tensor:
        logits = ahead.module(one_hot(states, 3).float())[:, : 2 * SPINS].view(-1, 2, SPINS)
        chosen = logits.masked_fill(states[:, None] != 2, -torch.inf).flatten(1).softmax(1)
        return chosen.view(-1, 2, SPINS).transpose(1, 2)

    report(epoch, asked["epochs"], lambda: distance(decide))


if __name__ == "__main__":
    run(json.loads(sys.argv[2]))
