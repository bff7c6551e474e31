"""Every way to steer samples from the command line, and the soft values that steer them.

To add a sampler, add its class to `Guidance`: its name and its help come from the class and its module.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from difftilt.objective import Objective, Value
from difftilt.samplers.best_of_n import BestOfN
from difftilt.samplers.discrete_guidance import DiscreteGuidance
from difftilt.samplers.mcmc import MCMC
from difftilt.samplers.smc import SMC
from difftilt.samplers.svdd import SVDD
from difftilt.samplers.value_guidance import ValueGuidance
from difftilt.steering import Sampler
from difftilt.values.nested import NestedMonteCarlo
from difftilt.values.tweedie import PosteriorMean

Guidance = SMC | SVDD | BestOfN | ValueGuidance | DiscreteGuidance | MCMC
# weights correct for what proposes, so it need not be the pretrained chain
CORRECTING = (SMC, SVDD, BestOfN)
# what a setting of an abstract type may be
CHOICES: Mapping[Any, tuple[Any, Any]] = {Sampler: (Guidance, SMC())}
VALUES: Mapping[str, Callable[[Objective], Value]] = {
    "posterior-mean": PosteriorMean,
    "second-order": partial(PosteriorMean, order=2),
    "nested": NestedMonteCarlo,
}


def concrete(hint: Any) -> Any:
    """What a setting with this annotation may be: an abstract type becomes all that can stand for it."""
    return CHOICES[hint][0] if hint in CHOICES else hint
