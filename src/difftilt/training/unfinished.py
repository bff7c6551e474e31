"""Training that is not a run, and goes on where it was stopped when the same command is given again.

What has been reached is kept in files beside the folder that is to be written, until it is:

    models/mine.unfinished-1f0c53a2     weights, optimizer and schedule; the number tells trainings apart
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer

from difftilt.data.atomic import atomic_file, check_own
from difftilt.data.owned import delete
from difftilt.data.read import UnreadableError, parse_json, read_tensors
from difftilt.shapes import Stateful
from difftilt.training.pretrain import warm_cosine
from difftilt.training.signals import Preempted, watch_signals
from difftilt.training.tree import Packed, Tree, pack, unpack

EVERY = 60.0  # seconds between two savings, but for those that a signal asks for
PLAIN = "plain"  # the tensor that holds what is none, as JSON

Row = dict[str, float]


class Unfinished:
    """The trainings behind one folder.

    Args:
        out: The folder that is to be written.
        told: Settings that tell these trainings from others.
        data: What is learned from, likewise.

    Raises:
        ValueError: If the folder holds what may not be replaced.
    """

    def __init__(self, out: Path, told: Mapping[str, Any], data: Mapping[str, Tensor]):
        check_own(out)  # before anything is learned that could not be written there
        self._earlier, self._out, self._told = 0.0, out, _digest({**told, "data": _digest(data)})
        self._busy, self._saved = time.process_time(), time.monotonic()
        self._files: list[Path] = []

    def rows(
        self,
        what: str,
        loop: Callable[..., Iterator[Row]],
        optimizer: Optimizer,
        steps: int,
        **others: Stateful,
    ) -> Iterator[Row]:
        """The rows of a training's gradient steps that are still to be made, with a progress bar.

        The learning rate rises and falls as in `warm_cosine`.

        Args:
            what: Is trained.
            loop: The training, which is called with `optimizer`, `steps` and `start`, its first step; a step
                depends on its number and on what changes.
            others: All else that changes, also what the caller changes between two rows.

        Raises:
            Preempted: After SIGINT, SIGTERM or SIGUSR1, once the step is done and what is reached is saved.
        """
        schedule = warm_cosine(optimizer, steps)
        states: dict[str, Any] = {**others, "optimizer": optimizer, "schedule": schedule}
        file = self._file(what, states)
        start = self._load(file, states) if file.exists() else 0
        if start:
            print(f"{what}: goes on after step {start} of {steps}, which {file} kept")
        rows = loop(optimizer=optimizer, steps=steps, start=start)
        with watch_signals() as stop:
            for done, row in enumerate(track(rows, what, total=steps, completed=start), start + 1):
                schedule.step()
                yield row
                if stop.number or time.monotonic() - self._saved > EVERY:
                    self._save(file, done, states)
                if stop.number:
                    raise Preempted(stop.number, done, "step")
            self._save(file, steps, states)  # what follows may be stopped, too

    def seconds(self) -> float:
        """Processor time that was spent on them so far, also by earlier processes."""
        return self._earlier + time.process_time() - self._busy

    def remove(self) -> None:
        """Removes the files, once the folder is written."""
        for file in self._files:
            delete(file.parent, [file.name])

    def _file(self, what: str, states: Mapping[str, Stateful]) -> Path:
        begun = {name: state.state_dict() for name, state in states.items()}
        name = _digest({"told": self._told, "what": what, "begun": _digest(begun)})
        out = self._out.absolute()  # "." has no name
        return out.with_name(f"{out.name}.unfinished-{name[:8]}")

    def _load(self, file: Path, states: Mapping[str, Stateful]) -> int:
        try:
            tensors = read_tensors(file)
            plain = parse_json(bytes(tensors.pop(PLAIN).tolist()), file)
            tree = unpack(Packed(plain, tensors))
            for name, state in states.items():
                state.load_state_dict(tree["states"][name])
            done, seconds = int(tree["done"]), float(tree["seconds"])
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError):
            raise UnreadableError(
                f"{file} is not what a training left there; remove it to begin that training anew"
            ) from None
        self._earlier = max(self._earlier, seconds)
        self._files.append(file)
        return done

    def _save(self, file: Path, done: int, states: Mapping[str, Stateful]) -> None:
        inner = {name: state.state_dict() for name, state in states.items()}
        packed = pack({"done": done, "seconds": self.seconds(), "states": inner})
        plain = torch.frombuffer(bytearray(json.dumps(packed.plain).encode()), dtype=torch.uint8)
        with atomic_file(file) as new:
            save_file({**packed.tensors, PLAIN: plain}, new)
        self._saved = time.monotonic()
        if file not in self._files:
            self._files.append(file)


def _digest(tree: Tree) -> str:
    """A number of what a tree holds, in hexadecimal digits."""
    packed, found = pack(tree), hashlib.sha256()
    found.update(json.dumps(packed.plain, sort_keys=True).encode())
    for name in sorted(packed.tensors):
        found.update(name.encode() + packed.tensors[name].numpy().tobytes())
    return found.hexdigest()
