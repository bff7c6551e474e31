"""Random draws depend on (seed, round, process) alone, so that a resumed run repeats them bit for bit."""

import random

import numpy as np
import torch

# round numbers that no run reaches, for what is drawn outside of its rounds
EVALUATION, SETUP = 2**32 - 1, 2**32 - 2
DEALER = 2**32 - 1  # a process that no run has, for what all processes draw alike


def seed_round(seed: int, round: int, process: int = 0) -> None:
    """Seeds torch, numpy and Python for one round of one process.

    Args:
        seed: The run's seed, at least 0.
        round: Which round, from 0.
        process: Rank of the process.
    """
    words = np.random.SeedSequence([seed, round, process]).generate_state(3)
    torch.manual_seed(int(words[0]))
    np.random.seed(int(words[1]))
    random.seed(int(words[2]))
