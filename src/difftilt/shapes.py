"""Names for shapes, used in every signature. Checked at run time by the tests, free otherwise."""

from collections.abc import Mapping

from jaxtyping import Float, Int, Shaped
from torch import Tensor

State = Shaped[Tensor, "batch *event"]  # x_t: floats, integer tokens, or one-hot relaxed tokens
States = Shaped[Tensor, "state batch *event"]  # x_T, ..., x_0
Step = Int[Tensor, " batch"]  # t: transitions left, T, ..., 1
PerSample = Float[Tensor, " batch"]  # one number per sample or row
PerStep = Float[Tensor, "step batch"]  # one number per decision of a chain, in sampling order
Real = Float[Tensor, "batch *event"]
Probs = Float[Tensor, "batch *position category"]
Scalar = Float[Tensor, ""]
Index = Int[Tensor, " row"]
Levels = Float[Tensor, " level"]  # one number per noise level, the least noisy first
Times = Shaped[Tensor, " level"]  # what a network is told at each level
Statistic = Float[Tensor, "*step batch"]  # PerSample or PerStep
Cond = Mapping[str, Tensor | list[str]]  # every value has length batch
