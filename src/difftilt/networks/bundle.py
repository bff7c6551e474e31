"""Pretrained networks in a folder: weights, what they were built with, and a model card.

config.json          how the networks are built, and how they were made
NAME.safetensors     weights, float16 on disk and float32 in memory
quality.json         what was measured of them
README.md            the model card
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import torch.nn as nn
from safetensors.torch import save_file
from torch import Tensor

from difftilt.data.atomic import atomic_folder
from difftilt.data.read import UnreadableError, read_json, read_tensors
from difftilt.data.store import cache
from difftilt.data.typed import misfit

HOME = "DIFFTILT_HOME"  # the variable that names another folder than ~/.cache/difftilt
Network = TypeVar("Network", bound=nn.Module)
Numbers = dict[str, Any]  # as JSON holds them


@dataclass(frozen=True)
class Bundle:
    """A folder of pretrained networks.

    Args:
        config: What `save_bundle` was given.
        what: Such as `model of 5' UTRs`; for messages.
    """

    folder: Path
    config: Numbers
    what: str

    def known(self, hint: type) -> Any:
        """What the config says of the entries that a TypedDict names.

        Raises:
            UnreadableError: If they are others than it allows.
        """
        found = {name: self.config.get(name) for name in get_type_hints(hint)}
        if wrong := misfit(found, hint):
            file = self.folder / "config.json"
            raise UnreadableError(f"{file} is none of a {self.what} ({wrong}); name another folder")
        return found

    @contextmanager
    def whole(self) -> Iterator[None]:
        """What goes wrong while networks are built and filled is told as a folder without a whole model."""
        try:
            yield
        except (ValueError, TypeError, RuntimeError) as error:
            raise UnreadableError(f"{self.folder} holds no whole model ({error}); make it anew") from None

    def load(self, name: str, network: Network) -> Network:
        """Puts the weights of that name into a network of their shapes."""
        weights = read_tensors(self.folder / f"{name}.safetensors")
        network.load_state_dict({key: weight.float() for key, weight in weights.items()})
        return network

    def frozen(self, name: str, network: Network) -> Network:
        """The same of a network that only judges."""
        return self.load(name, network).eval().requires_grad_(False)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Tensors that were kept beside the networks, as they are on disk."""
        return read_tensors(self.folder / f"{name}.safetensors")


def load_bundle(folder: Path, what: str, how: str, option: str = "--weights") -> Bundle:
    """The networks of a folder.

    Args:
        what: Such as `model of 5' UTRs`; for the message.
        how: How to make one, as a clause that follows a colon.
        option: That names another folder.

    Raises:
        ValueError: If the folder holds none.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(
            f"{folder} holds no {what} (config.json is missing): {how}, or name its folder with {option}"
        )
    return Bundle(folder, read_json(path), what)


def save_bundle(
    folder: Path,
    networks: Mapping[str, nn.Module],
    config: Numbers,
    judge: Callable[[Path], tuple[Numbers, str]],
    tensors: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> None:
    """Writes networks, and what is measured of them once they are written, and puts all in place at once.

    Args:
        judge: Maps the folder, which has everything but these, to what is measured and to the model card.
        tensors: What else is kept, by file name.
    """
    with atomic_folder(folder) as new:
        for name, network in networks.items():
            weights = {key: weight.half() for key, weight in network.state_dict().items()}
            save_file(weights, new / f"{name}.safetensors")
        for name, values in (tensors or {}).items():
            save_file(dict(values), new / f"{name}.safetensors")
        (new / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        found, card = judge(new)
        (new / "quality.json").write_text(json.dumps(found, indent=2) + "\n")
        (new / "README.md").write_text(card)


def shipped_folder(domain: str) -> Path:
    """Where the weights lie that come with the package, of one of `difftilt.domains`."""
    return Path(str(resources.files(f"difftilt.domains.{domain}") / "weights"))


def user_folder(name: str) -> Path:
    """Where this user's own models of that name lie: ~/.cache/difftilt/models, or below DIFFTILT_HOME."""
    home = os.environ.get(HOME)
    return (Path(home) if home else cache(HOME)) / "models" / name
