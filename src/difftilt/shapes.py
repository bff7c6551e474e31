"""Names for shapes, used in every signature. Checked at run time by the tests, free otherwise."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

State = Shaped[Tensor, "batch *event"]  # x_t: floats, integer tokens, or one-hot relaxed tokens
Next = Shaped[Tensor, "batch *next"]  # x_{t-1} drawn with gradients: one-hot where x_t may be tokens
States = Shaped[Tensor, "state batch *event"]  # x_T, ..., x_0
Step = Int[Tensor, " batch"]  # t: transitions left, T, ..., 1
PerSample = Float[Tensor, " batch"]  # one number per sample or row
PerStep = Float[Tensor, "step batch"]  # one number per decision of a chain, in sampling order
PerLevel = Float[Tensor, "level batch"]  # one number per state of a chain
Sample = Shaped[Tensor, "batch *sample"]  # what rewards score: a decoded x_0, in a shape of its own
Output = Float[Tensor, "batch *output"]  # a network's prediction
Real = Float[Tensor, "batch *event"]
Samples = Float[Tensor, "_ *event"]  # a set of samples, compared with another of its own size
Probs = Float[Tensor, "batch *position category"]
PerPosition = Float[Tensor, "batch *position"]
Tokens = Int[Tensor, "batch *position"]
Sequences = Int[Tensor, "_ _"]  # a set of them, compared with others of their own number and length
PerLetter = Float[Tensor, "_ _"]  # one number per position and letter
Where = Bool[Tensor, "batch *position"]  # whether something holds, per position
Options = Bool[Tensor, "batch *position category"]  # whether something holds, per position and token
OneHot = Shaped[Tensor, "batch *position category"]  # which may carry gradients, as floats
Counts = Int[Tensor, " batch"]  # whole numbers, one per sample
Scalar = Float[Tensor, ""]
Index = Int[Tensor, "_"]  # which rows; of no fixed length, since one signature may name several
Some = Float[Tensor, "_"]  # one number for some of the samples
Levels = Float[Tensor, " level"]  # one number per noise level, the least noisy first
Times = Shaped[Tensor, " level"]  # what a network is told at each level
Statistic = Float[Tensor, "*step batch"]  # PerSample or PerStep
Cond = Mapping[str, Any]  # a tensor, an array or a list of anything, one entry per sample
Members = Float[Tensor, "member batch"]  # one number per member of an ensemble and sample
Points = Float[Tensor, " point"]  # one number per point of a grid, or per state of a finite chain
Mask = Bool[Tensor, " point"]  # whether something holds, per point
LogWeights = Float[Tensor, "population particle"]
Particles = Int[Tensor, "population _"]  # which of them, by number
Weights = Float[Tensor, "from to"]  # one number per pair of states of a chain
Moves = Int[Tensor, "batch point"]  # which states each row's next ones are
Kernel = Float[Tensor, "batch point"]  # a distribution on the points per row
Kernels = Float[Tensor, "step point point"]
Values = Float[Tensor, "level point"]  # one function on the points per level
StateValues = Float[Tensor, "level state"]  # the same on states that are more than the points
Vector = Float[Tensor, " dimension"]
Matrix = Float[Tensor, "dimension dimension"]
Vectors = Float[Tensor, "step dimension"]
Matrices = Float[Tensor, "step dimension dimension"]


@runtime_checkable
class Stateful(Protocol):
    """What learns during a run, and is saved with it: tensors, numbers, texts, lists and dicts."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any], /) -> Any: ...
