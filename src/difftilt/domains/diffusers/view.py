"""How images of prompts look to people: one sheet per prompt, with the prompt above it."""

import textwrap
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont

from difftilt.conditions import context, take
from difftilt.data.atomic import atomic_file
from difftilt.domains.diffusers.one_step import NEGATIVE, PROMPT
from difftilt.evaluation.evaluate import ScoredSamples
from difftilt.evaluation.metrics import diversity
from difftilt.experiment.job import View
from difftilt.rewards.image import pictures
from difftilt.shapes import Output, Real, Sample

SHEETS, COLUMNS = 8, 4  # prompts that are shown, and images of each
SIDE = 192  # pixels of an image on a sheet, at least
LINE, LETTER, GAP = 28, 12, 8  # pixels of a line of text, of a letter, and between images


def image_view() -> View:
    """Sheets per prompt, and the diversity of images made small."""
    return View(draw=draw, diversity=lambda sample: diversity(_small(still(sample))).value)


def draw(seen: ScoredSamples, path: Path) -> None:
    """Writes the first images of the first prompts, one PNG per prompt, beginning with a path."""
    asked = {name: seen.cond[name] for name in (PROMPT, NEGATIVE) if name in seen.cond}
    if not asked:
        _write(path.with_suffix(".png"), still(seen.sample)[: SHEETS * COLUMNS], "", seen.reward)
        return
    ids = context(asked)
    for number in ids.unique()[:SHEETS].tolist():
        rows = (ids == number).nonzero()[:COLUMNS, 0]
        text = take(asked, rows)[PROMPT][0]
        sample = still(seen.sample[rows.to(seen.sample.device)])
        _write(path.with_suffix(f".{number + 1}.png"), sample, text, seen.reward[rows.to(seen.reward.device)])


def still(sample: Sample) -> Output:
    """Images as they are, and of videos the middle frame."""
    return sample[:, sample.shape[1] // 2] if sample.ndim == 5 else sample


def _small(images: Real) -> Output:
    return F.adaptive_avg_pool2d(images.float(), 16).flatten(1)


def _write(path: Path, images: Real, text: str, reward: torch.Tensor) -> None:
    """A sheet: the prompt, the images in rows, and the reward of each below it."""
    scale = max(1, -(-SIDE // max(images.shape[-2:])))
    shown = [picture.convert("RGB") for picture in pictures(images, scale)]
    columns = min(COLUMNS, len(shown))
    width, height = shown[0].width + GAP, shown[0].height + LINE
    lines = textwrap.wrap(text, max(columns * width // LETTER, 8))
    top = LINE * len(lines)
    sheet = Image.new("RGB", (columns * width, top + -(-len(shown) // columns) * height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(LINE - 6)
    for i, line in enumerate(lines):
        pen.text((2, LINE * i), line, "black", font)
    for i, (picture, score) in enumerate(zip(shown, reward.tolist(), strict=True)):
        x, y = i % columns * width, top + i // columns * height
        sheet.paste(picture, (x, y))
        pen.text((x + 2, y + picture.height), f"{score:.4g}", "black", font)
    with atomic_file(path) as file:
        sheet.save(file)
