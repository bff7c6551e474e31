"""Commands in poor surroundings: narrow, without letters, without a home, with nobody who reads."""

import os
import shlex
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Command, Ended, environment

from difftilt.cli import tables
from difftilt.cli.main import COMMANDS, main
from difftilt.cli.runs import RECIPES
from difftilt.domains.card import command
from difftilt.experiment import sample
from difftilt.experiment.record import describe

HELP = [
    ["--help"], ["--version"], ["recipes"], ["data", "list"],
    *([name, "--help"] for name in COMMANDS),
    *(["finetune", name, "--help"] for name in RECIPES),
    *([command, "digits", "--help"] for command in ("sample", "pretrain")), ["value", "fit", "dna", "--help"],
]  # fmt: skip
DRAW = ["sample", "digits", "--reward", "ink", "--steps", "1", "--count", "4", "--out", "out"]
SURROUNDINGS = {
    "one column": {"COLUMNS": "1"}, "no column": {"COLUMNS": "0"}, "less": {"COLUMNS": "-5"},
    "no number": {"COLUMNS": "x"}, "wide": {"COLUMNS": "100000"}, "ASCII": {"PYTHONIOENCODING": "ascii"},
    "Latin": {"PYTHONIOENCODING": "latin-1"}, "dumb": {"TERM": "dumb"}, "grey": {"NO_COLOR": "1"},
    "no home": {"HOME": ""}, "no such home": {"HOME": "/proc/none"}, "colours": {"FORCE_COLOR": "1"},
}  # fmt: skip
ALL = ("one column", "ASCII")  # in which all of the help is shown


def check(ended: Ended, code: int = 0) -> None:
    assert ended.code == code, ended
    assert "Traceback" not in ended.err and "Exception ignored" not in ended.err, ended.err
    assert len(ended.err.splitlines()) == (code not in (0, 141)), ended.err


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_help_and_numbers_are_shown_anywhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with environment(**SURROUNDINGS[name]):
        for words in HELP if name in ALL else HELP[-3:]:
            ended = Command(words, tmp_path).wait()
            check(ended)
            assert len(ended.out) > 4, words
        ended = Command(DRAW, tmp_path).wait()
        check(ended)
        assert ("+-" if name == "ASCII" else "±") in ended.out
        assert name != "wide" or max(map(len, ended.out.splitlines())) < 400
        wrong = Command(["finetune", "digits", "--alpah", "1"], tmp_path).wait()
        check(wrong, 2)


def test_nothing_is_cut_where_the_terminal_is_narrow(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    for words in (["data", "list"], ["recipes"]):
        main(words)
        assert "\u2026" not in capsys.readouterr().out, words
    for path in Path(str(tables.__file__)).parent.glob("*.py"):  # all others take the tables from there
        assert path.name == "tables.py" or "Table(" not in path.read_text(), path


def test_commands_that_people_are_told_can_be_typed(monkeypatch):
    words = ["pretrain", "sequences", "--data", "my plates/first.csv"]
    about = {"settings": {"learning_rate": 1e-3, "start": "a b"}}
    told = shlex.split(command(words[1:], about))
    assert told == ["difftilt", *words, "--learning-rate", "0.001", "--start", "a b"]
    monkeypatch.setattr(sys, "argv", ["difftilt", *words])
    assert shlex.split(describe(0, 1, "cpu")["command"]) == ["difftilt", *words]


def nobody_reads() -> None:
    reader, writer = os.pipe()
    os.dup2(writer, 1)
    os.close(reader)


def closed() -> None:
    os.close(1)
    sys.stdout = None  # as Python starts then


@pytest.mark.parametrize(("before", "code"), [(nobody_reads, 141), (closed, 0)])
def test_nobody_needs_to_read(before: Callable[[], None], code: int, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words in [*HELP[:4], *HELP[-3:], DRAW]:
        check(Command(words, tmp_path, before).wait(), code)
    assert (tmp_path / "out" / "sample-seed1.csv").exists()


def test_a_folder_that_is_gone(tmp_path):
    def before() -> None:
        gone = tmp_path / "gone"
        gone.mkdir()
        os.chdir(gone)
        gone.rmdir()

    ended = Command(DRAW, tmp_path, before).wait()
    check(ended, 2)
    assert "working directory has been deleted" in ended.err
    check(Command(["--help"], tmp_path, before).wait())


def test_a_user_without_a_home(tmp_path, monkeypatch):
    def homeless(_: type) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", classmethod(homeless))
    monkeypatch.chdir(tmp_path)
    for variable, words in (("DIFFTILT_DATA", ["data", "list"]), ("DIFFTILT_HOME", ["finetune", "utr"])):
        monkeypatch.delenv(variable, raising=False)
        ended = Command(words, tmp_path).wait()
        check(ended, 1)
        assert f"set {variable}" in ended.err
    check(Command(DRAW, tmp_path).wait())


def test_warnings_of_third_parties_are_left_out_and_others_are_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "import warnings\ndef score(x, c):\n    warnings.warn('mine')\n    print('hello')\n"
        "    return x.sum(1)\n"
    )
    original = sample.evaluate

    def before() -> None:
        warnings.resetwarnings()

        def warned(*args, **kwargs):
            warnings.warn_explicit("theirs", UserWarning, f"{os.__file__}", 1)
            warnings.warn_explicit("ours\nof two lines", UserWarning, sample.__file__, 1)
            return original(*args, **kwargs)

        sample.evaluate = warned

    reward = ["--reward", f"{tmp_path / 'mine.py'}:score"]
    ended = Command(["sample", "dna", *reward, "--count", "4", "--out", "out"], tmp_path, before).wait()
    assert ended.code == 0, ended.err
    assert "hello" in ended.out and "mine.py:3: UserWarning: mine" in ended.err
    assert ended.said == ["difftilt: warning: ours of two lines"]
    assert "theirs" not in ended.err


def test_help_comes_soon():
    """In processor time, as multiples of what torch takes, which recipes cannot do without."""

    def seconds(*words: str) -> float:
        before = os.times()
        subprocess.run([sys.executable, *words], check=True, capture_output=True)
        after = os.times()
        return after.children_user - before.children_user + after.children_system - before.children_system

    torch = seconds("-c", "import torch")
    assert seconds("-m", "difftilt.cli", "--help") < 0.3 * torch
    assert seconds("-m", "difftilt.cli", "report", "--help") < 0.6 * torch
    assert seconds("-m", "difftilt.cli", "finetune", "digits", "--help") < 1.9 * torch
