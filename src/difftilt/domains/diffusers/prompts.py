"""What a pipeline makes of prompts, each encoded once and remembered while there is room, and of images."""

import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from difftilt.settings import UsageError

ROOM = 2**30  # bytes that encodings of prompts may take


class Ragged(Exception):  # noqa: N818  (not an error: such prompts go through the network apart)
    """Encodings of prompts differ in shape, and cannot share a pass."""


class RememberedPrompts:
    """A pipeline's `encode_prompt`, one prompt at a time; the longest unused is forgotten first.

    Args:
        encode: The pipeline's own.
        room: Bytes that encodings may take.
    """

    def __init__(self, encode: Callable[..., Any], room: int = ROOM):
        self._encode, self._signature, self._room = encode, inspect.signature(encode), room
        self._known: OrderedDict[str, Any] = OrderedDict()
        self._held = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = dict(self._signature.bind(*args, **kwargs).arguments)
        prompts = given.get("prompt")
        if not isinstance(prompts, list):
            return self._one(given)
        rows = [
            {name: _entry(name, value, i, len(prompts)) for name, value in given.items()}
            for i in range(len(prompts))
        ]
        return _stacked([self._one(row) for row in rows])

    @torch.no_grad()
    def _one(self, given: dict[str, Any]) -> Any:
        key = repr(sorted(given.items()))
        if key not in self._known:
            rest = given.pop("kwargs", {})
            self._known[key] = self._encode(**given, **rest)
            self._held += _bytes(self._known[key])
        self._known.move_to_end(key)
        made = self._known[key]
        while self._held > self._room:
            self._held -= _bytes(self._known.popitem(last=False)[1])
        return made


def opened(image: Any) -> Any:
    """An image from its file, or as it is.

    Raises:
        ValueError: If the file holds none.
    """
    if not isinstance(image, str | Path):
        return image
    try:
        with Image.open(image) as found:
            return found.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{image} cannot be read as an image ({error})") from error


def with_images(rows: Sequence[Mapping[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """Rows of prompts whose `image`, if they have one, is named such that it is found from anywhere.

    Args:
        folder: From which the files are named.

    Raises:
        UsageError: If a file holds no image.
    """
    found = []
    for row in rows:
        path = (folder / str(row["image"])).resolve() if "image" in row else None
        try:
            opened(path)
        except ValueError as error:
            raise UsageError(f"prompt {str(row['prompt'])[:40]!r}: {error}") from error
        found.append({**row, **({} if path is None else {"image": str(path)})})
    return found


def alike(images: list[Any]) -> list[Any]:
    """Images, if they are of one size, and can share a pass."""
    sizes = {image.size if isinstance(image, Image.Image) else tuple(image.shape) for image in images}
    if len(sizes) > 1:
        raise Ragged
    return images


def _entry(name: str, value: Any, i: int, count: int) -> Any:
    """What one prompt is told of an argument that lists something for each."""
    return value[i] if "prompt" in name and isinstance(value, list) and len(value) == count else value


def _stacked(rows: Sequence[Any]) -> Any:
    """The encodings of several prompts, as the pipeline would have made them of all at once."""
    first = rows[0]
    if isinstance(first, Tensor):
        if len({row.shape for row in rows}) > 1:
            raise Ragged
        # what has no row per prompt, such as the positions of Flux, is the same for all
        return torch.cat(list(rows)) if first.shape[:1] == (1,) else first
    if isinstance(first, tuple):
        return tuple(_stacked(items) for items in zip(*rows, strict=True))
    return [item for row in rows for item in row] if isinstance(first, list) else first


def _bytes(made: Any) -> int:
    if isinstance(made, Tensor):
        return made.nbytes
    return sum(map(_bytes, made)) if isinstance(made, tuple | list) else 0
