"""Every way to steer samples from the command line, and the soft values that steer them.

To add a sampler, add its class to `Guidance`: its name and its help come from the class and its module.
"""

import dataclasses
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

from difftilt.objective import Objective, Value
from difftilt.samplers.smc import SMC
from difftilt.samplers.value_guidance import ValueGuidance
from difftilt.steering import Sampler
from difftilt.values.tweedie import PosteriorMean

Guidance = SMC | ValueGuidance
# weights correct for what proposes, so it need not be the pretrained chain
CORRECTING = (SMC,)
# what a setting of an abstract type may be
CHOICES: Mapping[Any, tuple[Any, Any]] = {Sampler: (Guidance, SMC())}
VALUES: Mapping[str, Callable[[Objective], Value]] = {"posterior-mean": PosteriorMean}


def concrete(hint: Any) -> Any:
    """What a setting with this annotation may be: an abstract type becomes all that can stand for it."""
    return CHOICES[hint][0] if hint in CHOICES else hint


def offer(settings: type) -> Callable[..., Any]:
    """A function that makes the settings, whose own signature offers a choice for each abstract type."""
    hints = typing.get_type_hints(settings, include_extras=True)
    parameters = []
    for field in dataclasses.fields(settings):
        hint, default = CHOICES.get(hints[field.name], (hints[field.name], field.default))
        default = inspect.Parameter.empty if default is dataclasses.MISSING else default
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters.append(inspect.Parameter(field.name, kind, annotation=hint, default=default))

    def make(**fields: Any) -> Any:
        return settings(**fields)

    make.__doc__ = settings.__doc__
    make.__annotations__ = {p.name: p.annotation for p in parameters}
    make.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return make
