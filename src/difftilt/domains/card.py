"""What the model cards of pretrained networks say: how they were made, and what was measured of them."""

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from difftilt.networks.bundle import Numbers


def made(settings: Mapping[str, Any], seconds: float, threads: int, version: str) -> Numbers:
    """How networks were made, for `config`.

    Args:
        settings: Of pretraining.
        seconds: Of processor time.
        version: Of torch.
    """
    return {
        "settings": dict(settings),
        "processor_seconds": round(seconds),
        "threads": threads,
        "torch": version,
    }


def said(**options: Any) -> Numbers:
    """Those options that have a value, paths as texts."""
    given = {name: value for name, value in options.items() if value is not None}
    return {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}


def command(words: Sequence[str], about: Numbers) -> str:
    """What to type to make networks again.

    Args:
        words: The recipe, and what else is no setting of pretraining.
        about: What `made` says.
    """
    options = ((f"--{name.replace('_', '-')}", str(value)) for name, value in about["settings"].items())
    return shlex.join(["difftilt", "pretrain", *words, *(word for pair in options for word in pair)])


def shown(found: Any) -> Any:
    """What was measured, as a model card shows it: a pair is a number and its standard error, NaN none."""
    if isinstance(found, Mapping):
        return {name: shown(value) for name, value in found.items()}
    if isinstance(found, tuple | list) and len(found) == 2:
        return "none" if math.isnan(found[0]) else "{:.3f} ± {:.3f}".format(*found)
    return found
