"""What can be checked of a pipeline that is about to be tuned, for `difftilt doctor`."""

import copy
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from difftilt.data.read import read_tensors
from difftilt.domains.diffusers.lora import coverage, save_lora
from difftilt.domains.diffusers.one_step import ANY, PROMPT
from difftilt.domains.diffusers.pipeline import step_of
from difftilt.domains.diffusers.self_check import Run, apart, check_step, watched
from difftilt.experiment.job import Finding
from difftilt.policy import level
from difftilt.processes.gaussian import GaussianPolicy
from difftilt.processes.noise import DDIM, Euler

# of first order
DETERMINISTIC = ("DDIMScheduler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler")
FAR = 0.02  # of the largest number, by which images may differ
CARDS = (16, 24, 48, 80)  # GiB of memory of common GPUs
SPARE = 0.8  # share of a card that can be planned with
GIB = 2**30


def pipeline_checks(policy: GaussianPolicy, pipe: Any, steps: int, call: dict[str, Any]) -> Iterator[Finding]:
    """The comparison with whole runs, the last step, and the adapters."""
    step, run = step_of(policy.network), watched(pipe, steps, call)
    try:
        found = check_step(step, pipe, run)
        yield Finding(f"Single steps are those of a whole run, up to {found:.1g} of the largest number.")
    except ValueError as error:
        yield Finding(f"{error}.".capitalize(), wrong=True)
    yield deployed(policy, type(pipe.scheduler).__name__, run)
    sigma = policy.sigma[0].item()
    yield Finding(f"The last step, which no adapter tunes, is taken from a noise of {sigma:.2g}.")
    for line in coverage(policy).splitlines():
        yield Finding(f"{line}.", wrong=" on 0 of " in line)
    yield reloaded(policy)
    yield memory(policy, pipe)


@torch.no_grad()
def deployed(policy: GaussianPolicy, kind: str, run: Run) -> Finding:
    """How far the chain without its noise ends from where the pipeline's own sampler does.

    Args:
        kind: The class of its scheduler.
        run: A whole run of the pipeline.
    """
    quiet = copy.copy(policy)
    quiet.noise = Euler(1e-6) if policy.prediction_type == "flow_prediction" else DDIM(1e-6)
    seen, _, image = run
    x, cond = seen[0][0].to(policy.sigma.dtype), {PROMPT: [ANY]}
    for t in range(policy.steps, 0, -1):
        x = quiet(x, level(x, t), cond).mean
    gap = apart(policy.decode(x, cond), image)
    text = f"Without its noise the chain ends {gap:.1g} of the largest number from the image of pipe(...)"
    if kind not in DETERMINISTIC:
        return Finding(f"{text}, whose {kind} takes other steps.")
    if gap > FAR:
        text += f", although both take the steps of {kind}: do they agree on what the network predicts"
        return Finding(f"{text} ({policy.prediction_type})?", wrong=True)
    return Finding(f"{text}.")


def reloaded(policy: GaussianPolicy) -> Finding:
    """Whether a saved adapter holds all that is tuned."""
    tuned = {name: p for name, p in policy.named_parameters() if "lora_" in name}
    with tempfile.TemporaryDirectory() as folder:
        save_lora(policy, folder)
        kept = [x for file in Path(folder).glob("*.safetensors") for x in read_tensors(file).values()]
    sizes = sum(p.numel() for p in tuned.values()), sum(x.numel() for x in kept)
    text = f"A saved adapter holds {len(kept)} tensors of {sizes[1]:,} numbers"
    if sizes[0] != sizes[1] or not sizes[0]:
        return Finding(f"{text}, but {sizes[0]:,} are tuned.", wrong=True)
    return Finding(f"{text}, which is all that is tuned.")


def memory(policy: GaussianPolicy, pipe: Any) -> Finding:
    """What weights take, and what a row keeps for its backward pass; how many rows GPUs hold of that."""
    fixed, row = planned(policy, pipe)
    text = f"Weights, gradients and Adam's state take {_shown(fixed)}, and a row keeps {_shown(row)} for its"
    text += " backward pass: "
    fitting = {card: int((card * GIB * SPARE - fixed) / max(row, 1)) for card in CARDS}
    if not any(rows > 0 for rows in fitting.values()):
        return Finding(f"{text}too much for a GPU of {CARDS[-1]} GiB; make images smaller.")
    told = ", ".join(f"{rows:,} on one of {card} GiB" for card, rows in fitting.items() if rows > 0)
    return Finding(f"{text}a micro-batch may have about so many rows on a GPU: {told}.")


def planned(policy: GaussianPolicy, pipe: Any) -> tuple[int, int]:
    """Bytes that weights, gradients and Adam's state take, and that a row keeps for its backward pass."""
    parts = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    weights = {p.data_ptr(): p.nbytes for part in parts for p in part.parameters()}
    tuned = {p.data_ptr(): p.nbytes for p in policy.parameters() if p.requires_grad}
    fixed = sum((weights | tuned).values()) + 3 * sum(tuned.values())  # gradients, and Adam's two means
    return fixed, kept_of_a_row(policy, {*weights, *tuned})


def kept_of_a_row(policy: GaussianPolicy, weights: set[int]) -> int:
    """Bytes that one step of one chain keeps for its backward pass, weights apart.

    Args:
        weights: Where these lie.
    """
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        if x.data_ptr() not in weights:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    cond = {PROMPT: [ANY]}
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        x = policy.initial(cond).sample()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            step = policy(x, level(x, policy.steps), cond)
    del step
    return sum(kept.values())


def _shown(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size > GIB else f"{size / 2**20:.1f} MiB"
