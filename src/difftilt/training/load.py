"""What a run has saved, from its newest good checkpoint."""

from pathlib import Path
from typing import Any, NoReturn

from difftilt.objective import Algorithm
from difftilt.policy import Policy
from difftilt.training import checkpoint
from difftilt.training.checkpoint import CheckpointError
from difftilt.training.own import Own
from difftilt.training.state import Saved, load_weights
from difftilt.training.train import Totals


def load_policy(folder: Path, policy: Policy, *, average: bool = True) -> int:
    """Puts the weights of a run's newest good checkpoint into a policy built as the run's was.

    Args:
        folder: Of the run.
        average: Prefer the moving average of the weights, if the run kept one.

    Returns:
        How many rounds the weights were trained for.
    """
    path = _newest(folder)
    averaged = checkpoint.read(path, "ema") if average else None
    load_weights(policy, (checkpoint.read(path, "policy") or {}) | (averaged or {}))
    return _saved(path)["rounds"]


def load_algorithm(folder: Path, algorithm: Algorithm) -> int:
    """Puts what a run's algorithm learned into one that was set up as the run's was: a value, a critic.

    Returns:
        How many rounds it was trained for.
    """
    path = _newest(folder)
    try:
        algorithm.load_state_dict(_own(path, 0)["algorithm"])
    except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"{path} does not hold what this algorithm learns ({' '.join(str(error).split())[:200]}); name"
            " the run of another one"
        ) from error
    return _saved(path)["rounds"]


def load_alpha(folder: Path) -> float | None:
    """The alpha that a run with a target KL had reached at its newest good checkpoint."""
    path = checkpoint.newest(folder / "checkpoints")
    controller = None if path is None else _saved(path)["kl_controller"]
    return controller and controller.get("alpha")


def rounds_done(folder: Path) -> int:
    """For how many rounds a run has been trained; it is finished if its training asks for no more."""
    path = checkpoint.newest(folder / "checkpoints")
    return 0 if path is None else _saved(path)["rounds"]


def load_totals(folder: Path) -> Totals:
    """What a run has cost up to its newest good checkpoint."""
    path = _newest(folder)
    training = _saved(path)
    own = [_own(path, rank) for rank in range(training["processes"])]
    return Totals(
        rounds=training["rounds"],
        steps=training["steps"],
        reward_calls=sum(part["reward"]["calls"] for part in own),
        network_calls=sum(part["forward"] for part in own),
        network_calls_backward=sum(part["backward"] for part in own),
        seconds=training["seconds"],
    )


def _newest(folder: Path) -> Path:
    path = checkpoint.newest(folder / "checkpoints")
    if path is None:
        raise ValueError(f"there is no checkpoint in {folder / 'checkpoints'}; train the run first")
    return path


def _saved(path: Path) -> dict[str, Any]:
    return checkpoint.read(path, "training", Saved) or _lacks(path, "training.json")


def _own(path: Path, rank: int) -> dict[str, Any]:
    return checkpoint.read(path, f"process-{rank}", Own) or _lacks(path, f"process-{rank}.json")


def _lacks(path: Path, name: str) -> NoReturn:
    raise CheckpointError(f"{path / name} is missing; bring the checkpoint back from a copy")
