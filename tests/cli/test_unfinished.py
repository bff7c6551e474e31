"""A training that is stopped goes on with the same command, and ends as one that was not."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import invented
import pytest
from killed import environment

from difftilt.cli import interruption, pretrain
from difftilt.cli.pretrain import PRETRAIN, pretrain_command
from difftilt.data.read import UnreadableError
from difftilt.domains.digits import pretrain as digits
from difftilt.domains.molecules import pretrain as molecules
from difftilt.training import pretrain as loops
from difftilt.training import unfinished
from difftilt.training.signals import Preempted
from difftilt.training.unfinished import Unfinished

SMALL = {
    "digits": ["--steps", "3", "--classifier-steps", "2", "--batch", "8"],
    "dna": ["--steps", "6", "--batch", "16", "--width", "8", "--rows", "16"],
    "molecules": ["--data", "own.smi", "--merges", "12", "--steps", "20", "--batch", "4", "--drawn", "100"],
    "protein": ["--steps", "6", "--batch", "16", "--width", "8", "--rows", "16"],
    "sequences": ["--data", "assay.csv", "--steps", "20", "--batch", "16", "--width", "8"],
    "utr": ["--steps", "2", "--oracle-steps", "2", "--batch", "16"],
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    invented.gb1(home / "data")
    invented.utrs(home / "data")
    invented.assay(home / "assay.csv")
    (home / "own.smi").write_text("\n".join(invented.MOLECULES))
    before = Path.cwd()
    os.chdir(home)
    network = mock.patch.object(molecules, "NETWORK", {"width": 16, "depth": 1, "heads": 2})
    unmeasured = mock.patch.multiple(digits, quality=lambda folder: {}, card=lambda about, found: "")
    with environment(DIFFTILT_DATA=str(home / "data"), DIFFTILT_HOME=str(home)), network, unmeasured:
        yield home
    os.chdir(before)


@pytest.fixture(autouse=True)
def unwatched(monkeypatch):
    """This process goes on after a command that was stopped."""
    monkeypatch.setattr(interruption, "watch", interruption.Watch())
    monkeypatch.setattr(pretrain, "watch", interruption.watch)


def stopped_after(savings: int) -> Callable[..., None]:
    """A saving that is followed by Ctrl-C once there were so many."""
    save, left = Unfinished._save, iter(range(savings - 1, -1, -1))

    def saved(*args):
        save(*args)
        if not next(left):
            raise KeyboardInterrupt

    return saved


def weights(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("*.safetensors")}


@pytest.mark.parametrize("recipe", PRETRAIN)
def test_what_was_stopped_goes_on(recipe, home, monkeypatch, capsys):
    """Twice; of those that train several networks the second time in another one."""
    words, broken = [recipe, *SMALL[recipe]], f"broken-{recipe}"
    pretrain_command([*words, "--out", f"whole-{recipe}"])
    monkeypatch.setattr(unfinished, "EVERY", 0.0)
    for savings in (2, 3):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Unfinished, "_save", stopped_after(savings))
            pretrain_command([*words, "--out", broken])
        assert [*home.glob(f"{broken}.unfinished-*")] and not (home / broken).exists()
    capsys.readouterr()
    pretrain_command([*words, "--out", broken])
    assert "goes on after step" in capsys.readouterr().out
    assert weights(home / f"whole-{recipe}") == weights(home / broken)
    assert not [*home.glob("*unfinished*")]


def test_another_training_for_the_same_folder_begins_anew(home, monkeypatch, capsys):
    words = ["sequences", *SMALL["sequences"], "--out", "other"]
    monkeypatch.setattr(unfinished, "EVERY", 0.0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Unfinished, "_save", stopped_after(2))
        pretrain_command(words)
    (kept,) = home.glob("other.unfinished-*")
    capsys.readouterr()
    pretrain_command([*words, "--seed", "1"])
    assert "goes on" not in capsys.readouterr().out
    assert kept.exists(), "what the first one has reached is still there"
    kept.write_bytes(kept.read_bytes()[:-9])
    with pytest.raises(UnreadableError, match=f"{kept.name} .* remove it to begin"):
        pretrain_command(words)


def test_a_signal_loses_no_step(home, monkeypatch, capsys):
    words = ["sequences", *SMALL["sequences"]]
    pretrain_command([*words, "--out", "unbroken"])
    step, left = loops._step, iter(range(6, -1, -1))

    def signalled(*args):
        if not next(left):
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*args)

    with (
        monkeypatch.context() as patch,
        pytest.raises(Preempted, match="stopped after step 7 and can be"),
    ):
        patch.setattr(loops, "_step", signalled)
        pretrain_command([*words, "--out", "signalled"])
    assert "goes on" not in capsys.readouterr().out
    pretrain_command([*words, "--out", "signalled"])
    assert "goes on after step 7 of 20" in capsys.readouterr().out
    assert weights(home / "unbroken") == weights(home / "signalled")


@pytest.mark.parametrize("recipe", PRETRAIN)
def test_a_folder_that_may_not_be_replaced_is_refused_before_the_first_step(recipe, home, monkeypatch):
    (home / f"theirs-{recipe}").mkdir()
    (home / f"theirs-{recipe}" / "thesis.tex").touch()
    monkeypatch.setattr(loops, "_step", None)
    with pytest.raises(ValueError, match=r"thesis\.tex that difftilt did not write"):
        pretrain_command([recipe, *SMALL[recipe], "--out", f"theirs-{recipe}"])
    assert not [*home.glob("theirs-*.unfinished-*")]
