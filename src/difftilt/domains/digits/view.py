"""How digits look, and how far they are from real ones."""

from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image

from difftilt.data.atomic import atomic_file
from difftilt.domains.digits.model import asked, digits_policy, load_split, state_of
from difftilt.evaluation.evaluate import ScoredSamples
from difftilt.evaluation.metrics import diversity, two_sample
from difftilt.experiment.job import View
from difftilt.policy import rollout
from difftilt.shapes import State

NOTE = (
    "Energy distances between the pixels, in [-1, 1], of generated and of all real images of the digit,"
    " unbiased: 0 for equal distributions, and negative at times. The last line halves the real images."
)


def digits_view(target: int | None = None, steps: int = 1) -> View:
    """How digits look.

    Args:
        target: The digit whose real images they are compared with, if any.
        steps: Of the conditional model that they are compared with, too.
    """
    compare = None if target is None else partial(distances, target=target, steps=steps)
    return View(
        draw=draw,
        diversity=lambda sample: diversity(state_of(sample)).value,
        distances=compare,
        distances_note=NOTE,
    )


def distances(sample: State, target: int, steps: int) -> dict[str, tuple[float, float]]:
    """Energy distances to the real images of the target digit, each with its standard error."""
    real = state_of(real_images(target))
    half = real[torch.randperm(len(real), generator=torch.Generator().manual_seed(0))]
    conditional = state_of(rollout(digits_policy(steps), asked(len(sample), target)).sample)
    return {
        f"tuned model to real {target}s": two_sample(state_of(sample), real),
        f"conditional model to real {target}s": two_sample(conditional, real),
        f"real {target}s to real {target}s": two_sample(half[::2], half[1::2]),
    }


def real_images(digit: int) -> State:
    """All real images of one digit."""
    split = load_split()
    parts = (split.proxy, split.gold, split.held_out)
    return torch.cat([part.image[part.label == digit] for part in parts])


def draw(seen: ScoredSamples, path: Path, columns: int = 12, rows: int = 5, scale: int = 4) -> None:
    """Writes the first samples as one PNG, dark ink on white."""
    pixels = ((1 - seen.sample[: columns * rows, 0]) * 255).round().to(torch.uint8)
    missing = columns * rows - len(pixels)
    pixels = F.pad(F.pad(pixels, (1, 1, 1, 1), value=255), (0, 0, 0, 0, 0, missing), value=255)
    side = pixels.shape[-1]
    sheet = pixels.view(rows, columns, side, side).transpose(1, 2).reshape(rows * side, columns * side)
    picture = Image.fromarray(sheet.cpu().numpy())
    large = picture.resize((columns * side * scale, rows * side * scale), Image.Resampling.NEAREST)
    with atomic_file(path.with_suffix(".png")) as file:
        large.save(file)
