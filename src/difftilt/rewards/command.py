"""A reward that another program computes: samples go in as lines of text, numbers come out as lines."""

import shlex
import subprocess
from collections.abc import Callable

import torch

from difftilt.rewards.process_tree import kill_group
from difftilt.shapes import Cond, PerSample, Sample


class CommandReward:
    """Runs a command once per batch: one line per sample on its standard input, one number per line back.

    The command is split into words as a shell would, but no shell runs it. A line that says `nan`, or nothing
    but blanks, is a sample without a valid reward, for the guard to stop at or to drop. A command that is not
    let to its end is killed with all that it has started.

    Args:
        command: Such as `./dock.sh --receptor 1abc.pdb`.
        spell: Writes samples as lines.
        timeout: Seconds that one batch may take, above 0; in `Workers` a batch is a single sample.

    Raises:
        ValueError: When it is called, if the command fails, takes too long, or answers with other than one
            number per sample; the sentence holds the last line of its error output.
    """

    def __init__(self, command: str, spell: Callable[[Sample], list[str]], timeout: float):
        words = shlex.split(command)
        if not words:
            raise ValueError("the reward 'command:' names no command; give one, such as command:./score.sh")
        self.__name__ = f"command:{command}"
        self.words, self._spell, self._timeout = words, spell, timeout

    def __call__(self, sample: Sample, cond: Cond) -> PerSample:
        lines = self._spell(sample)
        try:
            done = _run(self.words, "\n".join(lines) + "\n", self._timeout)
        except subprocess.TimeoutExpired:
            raise ValueError(
                f"{self.words[0]} took longer than {self._timeout:g} seconds for {len(lines)} samples; raise"
                " --reward-timeout, or score fewer at a time with --batch"
            ) from None
        except OSError as error:
            raise ValueError(f"{self.words[0]} cannot be run: {error.strerror or error}") from None
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["it said nothing on its error output"])[-1]
            raise ValueError(f"{self.words[0]} ended with code {done.returncode}: {said[:200]}")
        return torch.tensor(
            _numbers(done.stdout.splitlines(), len(lines), self.words[0]), dtype=torch.float64
        )


def _run(words: list[str], text: str, timeout: float) -> subprocess.CompletedProcess[str]:
    """Runs a program in a process group of its own, of which nothing is left if it is not let to its end."""
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, text=True, process_group=0) as process:
        try:
            said, errors = process.communicate(text, timeout)
        except BaseException:
            kill_group(process.pid)
            raise
    return subprocess.CompletedProcess(words, process.returncode, said, errors)


def _numbers(lines: list[str], count: int, name: str) -> list[float]:
    if len(lines) != count:
        raise ValueError(
            f"{name} got {count} samples and wrote {len(lines)} lines; write one number for each"
        )
    numbers = []
    for row, line in enumerate(lines, 1):
        try:
            numbers.append(float(line) if line.strip() else float("nan"))
        except ValueError:
            raise ValueError(f"{name} wrote {line[:60]!r} in line {row}; write one number per line") from None
    return numbers
