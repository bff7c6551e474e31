"""Whether a pipeline, run one step at a time, does what it does in a whole run."""

import copy
import inspect
import math
from typing import Any

import torch
from torch import Tensor

from difftilt.domains.diffusers.one_step import (
    ANY,
    PROMPT,
    OneStep,
    Unconditional,
    changed,
    handed,
    plain,
)
from difftilt.shapes import Sample, State

ROUNDING = 1000  # times the precision of a number, by which outputs may differ; at most `COARSEST`
COARSEST = 0.05

Seen = list[tuple[State, Any, Tensor]]
Run = tuple[Seen, State, Sample]  # see `watched`


@torch.no_grad()
def check_step(step: OneStep | Unconditional, pipe: Any, run: Run) -> float:
    """Makes sure that single steps do what they do within a whole run of the pipeline.

    Args:
        run: As `watched`.

    Returns:
        The largest difference, as a share of the largest number.

    Raises:
        ValueError: If outputs or images differ by more than rounding.
    """
    cond = {PROMPT: [ANY]}
    seen, x_0, image = run
    worst = 0.0
    for number, (x, time, want) in enumerate(seen, 1):
        found = apart(step(x, torch.as_tensor(time, device=x.device).reshape(1), cond), want)
        worst = max(worst, found)
        _check_close(found, want.dtype, f"the output of step {number} of {len(seen)}", pipe)
    found = apart(step.images(x_0), image)
    _check_close(found, x_0.dtype, "the decoded image", pipe)
    return max(worst, found)


@torch.no_grad()
def watched(pipe: Any, steps: int, call: dict[str, Any]) -> Run:
    """A whole run: what the network saw, when, and answered at each step; its last latents; and its image."""
    seen: Seen = []
    given: list[State] = []  # to the network, in the scale that the scheduler brings it to
    last: list[State] = []
    kind = type(pipe.scheduler)

    def scale_model_input(self: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        given.append(kind.scale_model_input(self, sample, *args, **kwargs))
        return given[-1]

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        output, time, sample = handed(kind, args, kwargs)
        x = given.pop()[: len(sample)] if given else sample
        given.clear()
        seen.append((x, time, output))
        answer = kind.step(self, *args, **kwargs)
        last[:] = [answer[0] if isinstance(answer, tuple) else answer.prev_sample]
        return answer

    members: dict[str, Any] = {"step": step}
    if "scale_model_input" in dir(kind):
        members["scale_model_input"] = scale_model_input
    own = plain(pipe)
    own.scheduler = changed(copy.deepcopy(pipe.scheduler), members)
    generator = torch.Generator(pipe.device).manual_seed(0)
    settings = {"num_inference_steps": steps, "generator": generator, "return_dict": False, **call}
    if PROMPT in inspect.signature(type(pipe).__call__).parameters:
        image = own(prompt=ANY, output_type="pt", **settings)[0]
    else:
        image = torch.as_tensor(own(output_type="np", **settings)[0]).movedim(-1, 1)
    return seen, last[0], image


def apart(got: Tensor, want: Tensor) -> float:
    """The largest difference, as a share of the largest number; infinite where one is no number."""
    got, want = got.double().cpu(), want.double().cpu()
    if got.shape != want.shape:
        return math.inf
    share = (got - want).abs().max() / want.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    return share.nan_to_num(nan=math.inf).item()


def _check_close(found: float, dtype: torch.dtype, what: str, pipe: Any) -> None:
    allowed = min(ROUNDING * torch.finfo(dtype).eps, COARSEST)
    if found > allowed:
        raise ValueError(
            f"{what} of this {type(pipe).__name__} differs from that of a whole run by {found:.2g} of the"
            f" largest number, where {allowed:.1g} would be rounding, so it cannot be trained one step at a"
            " time; leave out the settings of its call that depend on the step before"
        )
