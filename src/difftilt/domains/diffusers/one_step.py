"""The call of a pipeline, run for one step: what it hands to its scheduler is the network's output.

On a shallow copy of the pipeline the scheduler's `step` ends the call. Packing, time scaling, guidance and
the choice of an expert stay the pipeline's own, and the pipeline stays as it was. With no timesteps the same
call decodes.
"""

import contextlib
import copy
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from difftilt.conditions import batch_size, context, take
from difftilt.domains.diffusers.prompts import Ragged, RememberedPrompts, alike, opened
from difftilt.shapes import Cond, Output, Sample, State

PROMPT, NEGATIVE, IMAGE = "prompt", "negative_prompt", "image"  # conditions that a pipeline reads
ANY = "a photo"  # a prompt where it makes no difference which


class _Stopped(Exception):  # noqa: N818  (the way out of a call)
    """Carries what a pipeline handed to its scheduler."""

    def __init__(self, output: Tensor, sample: Tensor, scheduler: Any):
        self.output, self.sample, self.scheduler = output, sample, scheduler


class OneStep(nn.Module):
    """A pipeline as a network of rows of one time: maps (x, time, cond) to what it hands to its scheduler.

    Args:
        pipe: With a prompt. Its denoisers are this module's.
        steps: Its inference steps.
        call: What else its call is given, such as guidance_scale. A negative prompt is that of rows whose
            condition has none.

    Attributes:
        scheduler: As the pipeline sets it up.
        shape: Of one state.
    """

    def __init__(self, pipe: Any, steps: int, call: dict[str, Any]):
        super().__init__()
        self.denoisers = nn.ModuleDict(denoisers_of(pipe))
        self.steps, self._call, self._view = steps, call, _quiet(pipe)
        self._skips = "self.interrupt" in inspect.getsource(type(pipe).__call__)
        self._edits = takes_images(pipe)
        with torch.no_grad(), self._ending(lambda kind: {"step": _stop}) as view:
            first = _stopped(lambda: self._asked(view, {PROMPT: [ANY]}, "latent"))
        if first is None:
            raise ValueError(f"a {type(pipe).__name__} never asks its scheduler for a step")
        self.scheduler, self.shape = first.scheduler, tuple(first.sample.shape[1:])
        if first.output.shape != first.sample.shape:
            raise ValueError(
                f"the network's output has shape {tuple(first.output.shape[1:])}, but a state"
                f" {self.shape}: such as learned variances, which no chain here has"
            )
        self.scheduler.__class__ = type(pipe.scheduler)
        self._times: list[float] = self.scheduler.timesteps.tolist()

    def forward(self, x: State, time: Tensor, cond: Cond) -> Output:
        return _in_passes(self._step, x, time, cond)

    @torch.no_grad()
    def deployed(self, x: State, cond: Cond, generator: torch.Generator) -> Sample:
        """The images of the pipeline's own call, with its own scheduler, from x_T: what its users see.

        Args:
            generator: Of the noise that its scheduler may draw at each step.
        """
        start = x / self._scale().to(x)

        def run(x: State, time: Tensor, cond: Cond) -> Sample:
            view = copy.copy(self._view)
            view._skip, view.scheduler = lambda: False, copy.deepcopy(view.scheduler)
            view.prepare_latents = _starting_at(view.prepare_latents, x)
            return self._asked(view, cond, "pt", generator)[0]

        return _in_passes(run, start, start.new_zeros(len(x)), cond)

    def _scale(self) -> Tensor:
        """What the pipeline's scheduler multiplies its first latents by before the network sees them."""
        own, one = copy.deepcopy(self.scheduler), torch.ones(1)
        scaled = "scale_model_input" in dir(own)
        return own.scale_model_input(one, own.timesteps[0]) if scaled else one

    def images(self, x: State) -> Sample:
        """Latents to images or videos in [0, 1], by the pipeline's own means."""
        times = torch.empty(0, device=x.device)
        with self._ending(lambda kind: _at(kind, times), x) as view:
            return self._asked(view, {PROMPT: [ANY] * len(x)}, "pt")[0]

    def __deepcopy__(self, memo: dict[int, Any]) -> "OneStep":
        raise ValueError(
            "a pipeline is tuned through adapters and is not copied: pass the reference that lora(policy)"
            " returns"
        )

    def _step(self, x: State, time: Tensor, cond: Cond) -> Output:
        here, skipped = time[:1], 0
        if self._skips:  # to where the pipeline would be, so that it counts its steps as it does
            here, skipped = self.scheduler.timesteps.to(x.device), self._times.index(time[0].item())
        with self._ending(lambda kind: {**_at(kind, here), "step": _stop}, x, skipped) as view:
            end = _stopped(lambda: self._asked(view, cond, "latent"))
        if end is None:
            raise ValueError(f"a {type(view).__name__} took no step at time {time[0].item()}")
        return end.output

    def _asked(self, view: Any, cond: Cond, kind: str, generator: torch.Generator | None = None) -> Any:
        """The pipeline's call, with gradients."""
        if PROMPT not in cond:
            raise ValueError(f"a pipeline reads condition '{PROMPT}', a text per sample, but got {[*cond]}")
        count, call = batch_size(cond), dict(self._call)
        if NEGATIVE in cond or NEGATIVE in call:
            call[NEGATIVE] = list(cond.get(NEGATIVE, [call.get(NEGATIVE)] * count))
        if IMAGE in cond and self._edits:
            call[IMAGE] = alike([opened(image) for image in cond[IMAGE]])
        if generator is None:  # the global ones do not move
            generator = torch.Generator(view._execution_device).manual_seed(0)
        return inspect.unwrap(type(self._view).__call__)(
            view, prompt=list(cond[PROMPT]), num_inference_steps=self.steps, output_type=kind,
            generator=generator, return_dict=False, **call,
        )  # fmt: skip

    @contextlib.contextmanager
    def _ending(
        self, changes: Callable[[type], dict[str, Any]], x: State | None = None, skipped: int = 0
    ) -> Iterator[Any]:
        """A copy of the pipeline with a changed scheduler, which starts at x and skips some of its steps."""
        view, left = copy.copy(self._view), iter(range(skipped))
        view._skip = lambda: next(left, None) is not None
        view.scheduler = changed(view.scheduler, changes(type(view.scheduler)))
        if x is not None:
            view.prepare_latents = _starting_at(view.prepare_latents, x)
        yield view


class Unconditional(nn.Module):
    """A pipeline without prompts, such as that of DDPM: the network is its UNet, and samples are images."""

    def __init__(self, pipe: Any, steps: int):
        super().__init__()
        self.denoisers = nn.ModuleDict(denoisers_of(pipe))
        self.scheduler = copy.deepcopy(pipe.scheduler)
        self.scheduler.set_timesteps(steps)
        size, unet = pipe.unet.config["sample_size"], pipe.unet.config
        sides = (size, size) if isinstance(size, int) else tuple(size)
        self.shape = (unet["in_channels"], *sides)
        if unet["out_channels"] != unet["in_channels"]:
            raise ValueError(f"got a network of {unet['out_channels']} channels out of {unet['in_channels']}")

    def forward(self, x: State, time: Tensor, cond: Cond) -> Output:
        unet = self.denoisers["unet"]
        return unet(x.to(next(unet.parameters()).dtype), time).sample

    def images(self, x: State) -> Sample:
        """States to images in [0, 1]."""
        return (x / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def deployed(self, x: State, cond: Cond, generator: torch.Generator) -> Sample:
        """The images that the pipeline's scheduler makes of x_T, as in `OneStep`."""
        own = copy.deepcopy(self.scheduler)
        for time in own.timesteps:
            x = own.step(self(x, time, cond), time, x, generator=generator).prev_sample
        return self.images(x)


def _in_passes(run: Callable[[State, Tensor, Cond], Any], x: State, time: Tensor, cond: Cond) -> Any:
    """What a pipeline makes of all rows: of each prompt's apart, where encodings differ in shape."""
    try:
        return run(x, time, cond)
    except Ragged:
        ids = context({name: cond[name] for name in (PROMPT, NEGATIVE, IMAGE) if name in cond})
        rows = [(ids == number).nonzero()[:, 0] for number in ids.unique()]
        made = [run(x[part], time[part], take(cond, part)) for part in rows]
        return torch.cat(made)[torch.cat(rows).argsort()]


def takes_images(pipe: Any) -> bool:
    """Whether each prompt of a pipeline may come with an image, such as one to be edited."""
    return IMAGE in inspect.signature(type(pipe).__call__).parameters


def denoisers_of(pipe: Any) -> dict[str, nn.Module]:
    """The parts of a pipeline that denoise, by name."""
    parts = pipe.components.items()
    return {k: p for k, p in parts if isinstance(p, nn.Module) and k.startswith(("unet", "transformer"))}


def changed(thing: Any, members: dict[str, Any]) -> Any:
    """A shallow copy of something, of a subclass with some members of its own."""
    own = copy.copy(thing)
    own.__class__ = type(type(thing).__name__, (type(thing),), members)
    return own


def handed(kind: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Any, Tensor]:
    """Output, timestep and sample as they are given to the `step` of a scheduler of some class."""
    given = inspect.signature(kind.step).bind(None, *args, **kwargs).arguments  # pyright: ignore[reportAttributeAccessIssue]
    return given["model_output"], given["timestep"], given["sample"]


def plain(pipe: Any) -> Any:
    """A copy of a pipeline that draws no bar and passes its images on as they are, unmarked and unchecked."""
    own = copy.copy(pipe)
    own.set_progress_bar_config(disable=True)
    for name in ("safety_checker", "watermark"):
        if getattr(own, name, None) is not None:
            setattr(own, name, None)
    return own


def _quiet(pipe: Any) -> Any:
    """The copy of a pipeline that all steps start from."""
    device, view = pipe._execution_device, plain(pipe)  # asked once, since that walks through all modules
    view.encode_prompt = RememberedPrompts(pipe.encode_prompt)
    view.maybe_free_model_hooks = lambda: None
    members = {
        "_execution_device": property(lambda own: device),
        "interrupt": property(lambda own: own._skip()),
    }
    return changed(view, members)


def _stop(scheduler: Any, *args: Any, **kwargs: Any) -> None:
    output, _, sample = handed(type(scheduler).__mro__[1], args, kwargs)
    raise _Stopped(output, sample, scheduler)


def _stopped(call: Callable[[], Any]) -> _Stopped | None:
    try:
        call()
    except _Stopped as end:
        return end
    return None


def _at(kind: type, times: Tensor) -> dict[str, Any]:
    """Members of a scheduler that has these timesteps, whatever it is asked for, and leaves x as it is."""

    @functools.wraps(kind.set_timesteps)  # pyright: ignore[reportAttributeAccessIssue]  (pipelines look at its arguments)
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> None:
        self.timesteps, self.num_inference_steps = times, len(times)

    def scale_model_input(self: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return sample

    return {"set_timesteps": set_timesteps, "scale_model_input": scale_model_input, "init_noise_sigma": 1.0}


def _starting_at(prepare: Callable[..., Any], x: State) -> Callable[..., Any]:
    """A `prepare_latents` whose latents are x."""

    @functools.wraps(prepare)
    def prepare_latents(*args: Any, **kwargs: Any) -> Any:
        made = prepare(*args, **kwargs)
        latents, *rest = made if isinstance(made, tuple | list) else (made,)
        latents = x.to(latents.dtype)
        return (latents, *rest) if isinstance(made, tuple | list) else latents

    return prepare_latents
