"""Every algorithm of the command line, and the settings under which papers published some of them.

To add an algorithm, add its class to `Tuner`: its name and its help come from the class and its module.
"""

import copy
import dataclasses
import sys
import typing
from collections.abc import Mapping
from functools import partial
from inspect import Parameter, Signature
from typing import Annotated, Any

from tyro.conf import subcommand

from difftilt.algorithms.adjoint_matching import AdjointMatching
from difftilt.algorithms.backprop import Backprop
from difftilt.algorithms.distill import Distill
from difftilt.algorithms.grpo import GRPO
from difftilt.algorithms.nft import NFT
from difftilt.algorithms.path_consistency import PathConsistency
from difftilt.algorithms.ppo import PPO
from difftilt.algorithms.reward_weighted import RewardWeighted
from difftilt.algorithms.trajectory_balance import TrajectoryBalance
from difftilt.objective import Algorithm
from difftilt.options import choose, kebab, subcommands
from difftilt.recipes.guidances import CHOICES
from difftilt.recipes.record import settable

# name: (settings, one line of help)
PRESETS: Mapping[str, tuple[PPO, str]] = {
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
}


def _preset(name: str) -> Any:
    settings, line = PRESETS[name]
    return subcommand(name, default=settings, description=line)


class Offer:
    """Makes settings, and has a signature that offers a choice for each abstract type.

    Args:
        settings: A dataclass.
    """

    def __init__(self, settings: type):
        self._settings, hints, parameters = settings, settable(settings), []
        for field in dataclasses.fields(settings):
            if field.name in hints:
                hint, default = CHOICES.get(hints[field.name], (hints[field.name], field.default))
                hint = subcommands(field.name, hint, default)
                default = Parameter.empty if default is dataclasses.MISSING else default
                kind = Parameter.KEYWORD_ONLY
                parameters.append(Parameter(field.name, kind, annotation=hint, default=default))
        self.__signature__ = Signature(parameters)
        self.__annotations__ = {p.name: p.annotation for p in parameters}
        self.__doc__ = settings.__doc__

    def __call__(self, **fields: Any) -> Any:
        defaults = {p.name: p.default for p in self.__signature__.parameters.values()}
        given = {name: x for name, x in defaults.items() if x is not Parameter.empty}
        return self._settings(**(given | fields))


def _offered(settings: type) -> Any:
    line = (sys.modules[settings.__module__].__doc__ or "").partition("\n")[0]
    return subcommand(kebab(settings.__name__), constructor=Offer(settings), description=line)


Tuner = (
    PPO
    | GRPO
    | Backprop
    | AdjointMatching
    | RewardWeighted
    | PathConsistency
    | TrajectoryBalance
    | NFT
    | Annotated[Distill, _offered(Distill)]
    | Annotated[PPO, _preset("ddpo-sf")]
    | Annotated[PPO, _preset("ddpo-is")]
    | Annotated[PPO, _preset("dpok")]
    | Annotated[PPO, _preset("rloo")]
)


def make_algorithm(name: str) -> Algorithm:
    """The algorithm of that name on the command line, with its default settings."""
    classes = [option for option in typing.get_args(Tuner) if isinstance(option, type)]
    known = {kebab(option.__name__): Offer(option) for option in [*classes, Distill]}
    presets = {preset: partial(copy.deepcopy, settings) for preset, (settings, _) in PRESETS.items()}
    return choose("algorithm", name, {**known, **presets})()
