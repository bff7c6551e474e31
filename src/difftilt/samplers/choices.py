"""Every way to steer samples, by its name on the command line, and the soft values that steer them.

To add a sampler, add its class to `AnySampler`: its name and its help come from the class and its module.
"""

from collections.abc import Callable, Mapping
from functools import partial

from difftilt.objective import Objective, Value
from difftilt.samplers.best_of_n import BestOfN
from difftilt.samplers.discrete_guidance import DiscreteGuidance
from difftilt.samplers.mcmc import MCMC
from difftilt.samplers.smc import SMC
from difftilt.samplers.svdd import SVDD
from difftilt.samplers.value_guidance import ValueGuidance
from difftilt.values.nested import NestedMonteCarlo
from difftilt.values.tweedie import PosteriorMean

AnySampler = SMC | SVDD | BestOfN | ValueGuidance | DiscreteGuidance | MCMC
# weights correct for what proposes, so it need not be the pretrained chain
CORRECTING = (SMC, SVDD, BestOfN)
VALUES: Mapping[str, Callable[[Objective], Value]] = {
    "posterior-mean": PosteriorMean,
    "second-order": partial(PosteriorMean, order=2),
    "nested": NestedMonteCarlo,
}
