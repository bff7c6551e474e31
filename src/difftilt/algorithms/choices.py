"""Every algorithm, by its name on the command line, and settings that papers published.

To add an algorithm, add its class to `AnyAlgorithm`: name and help come from the class and its module.
"""

import copy
import typing
from collections.abc import Mapping

from difftilt.algorithms.adjoint_matching import AdjointMatching
from difftilt.algorithms.backprop import Backprop
from difftilt.algorithms.distill import Distill
from difftilt.algorithms.dpo import DPO
from difftilt.algorithms.grpo import GRPO
from difftilt.algorithms.local_search import LocalSearch
from difftilt.algorithms.nft import NFT
from difftilt.algorithms.path_consistency import PathConsistency
from difftilt.algorithms.ppo import PPO
from difftilt.algorithms.reward_weighted import RewardWeighted
from difftilt.algorithms.trajectory_balance import TrajectoryBalance
from difftilt.objective import Algorithm
from difftilt.settings import choose, kebab

AnyAlgorithm = (
    PPO
    | GRPO
    | Backprop
    | AdjointMatching
    | RewardWeighted
    | PathConsistency
    | TrajectoryBalance
    | NFT
    | DPO
    | Distill
    | LocalSearch
    | Algorithm
)
# name: (settings, one line of help)
PRESETS: Mapping[str, tuple[Algorithm, str]] = {
    "ddpo-sf": (
        PPO(epochs=1, minibatches=1, kl="reward"),
        "DDPO-SF (Black et al., 2024): PPO as one step of REINFORCE.",
    ),
    "ddpo-is": (
        PPO(advantage="context", epochs=1, kl="reward"),
        "DDPO-IS (Black et al., 2024): PPO less each context's running mean.",
    ),
    "dpok": (
        PPO(advantage="critic", kl="loss"),
        "DPOK (Fan et al., 2023): PPO with a critic, and the KL in the loss.",
    ),
    "rloo": (
        PPO(advantage="leave_one_out", epochs=1, kl="reward"),
        "RLOO (Ahmadian et al., 2024): PPO less the mean of the other samples.",
    ),
    "dance-grpo": (
        GRPO(epochs=1, share=0.6, shared_noise=True),
        "DanceGRPO (Xue et al., 2025): GRPO on a share of the steps, from one x_T per context.",
    ),
    "flow-grpo-fast": (
        GRPO(epochs=1, window=2),
        "Flow-GRPO-Fast (Liu et al., 2025): GRPO with noise at two steps, anywhere, and none elsewhere.",
    ),
    "mix-grpo": (
        GRPO(epochs=1, window=4, slide=25),
        "MixGRPO (Li et al., 2025): GRPO with noise in a window of steps that slides to the data.",
    ),
    "awm": (
        NFT(form="advantage", consistency=1.0),
        "AWM (Xue et al., 2025): denoising losses of one's own samples, weighted by their advantage.",
    ),
    "diffusion-dpo": (
        DPO(form="denoising"),
        "Diffusion-DPO (Wallace et al., 2024): DPO on samples that are noised again.",
    ),
}


def make_algorithm(name: str) -> Algorithm:
    """The algorithm of that name on the command line, with its default settings."""
    known = {kebab(option.__name__): option for option in typing.get_args(AnyAlgorithm)[:-1]}
    presets = {
        preset: lambda settings=settings: copy.deepcopy(settings) for preset, (settings, _) in PRESETS.items()
    }
    return choose("algorithm", name, {**known, **presets})()
