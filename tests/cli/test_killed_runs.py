"""A run of a recipe, at its defaults or under a constraint, is killed, goes on, and is sampled."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import invented
import pytest

from difftilt.cli.main import main
from difftilt.cli.runs import RECIPES

OWN = Path(__file__).with_name("own_recipe.py")
RUNS = {
    "digits": ["digits", "--rounds", "6"],
    "digits, first noise tuned": ["digits", "--rounds", "6", "--tune-start", "--eta", "0.5"],
    "dna": ["dna", "--rounds", "12"],
    "dna, constrained": [
        *("dna", "--rounds", "12", "--gc", "0.25", "0.75"),
        *("--forbidden", "GATC", "--template", "NNGANNNN"),
    ],
    "protein": ["protein", "--rounds", "12"],
    "protein, constrained": ["protein", "--rounds", "12", "--charged", "0.25", "0.5", "--template", "XDXX"],
    "sequences": ["sequences", "--rounds", "8", "--reward", f"{OWN}:lengths"],
    "sequences, constrained": [
        *("sequences", "--rounds", "8", "--reward", f"{OWN}:lengths"),
        *("--share", "GC", "0.25", "0.75", "--forbidden", "GATC", "--template", "NNG"),
    ],
    "utr": ["utr", "--rounds", "8"],
    "utr, its KL constrained": ["utr", "--rounds", "8", "--target-kl", "0.5"],
}
SHORT = ["--batch", "32", "--evaluate", "32"]


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory):
    """A user's folders, with invented data and barely trained models where the repository has none."""
    home = tmp_path_factory.mktemp("home")
    invented.gb1(home / "data")
    invented.utrs(home / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIFFTILT_DATA", str(home / "data"))
        patch.setenv("DIFFTILT_HOME", str(home))
        main(["pretrain", "protein", "--steps", "2", "--batch", "32"])
        assay = str(invented.assay(home / "assay.csv"))
        main(["pretrain", "sequences", "--data", assay, "--steps", "20", "--batch", "32"])
        main(["pretrain", "utr", "--steps", "2", "--oracle-steps", "2", "--batch", "32"])
        yield


def test_every_recipe_of_the_package_is_killed_twice():
    assert sorted(words[0] for words in RUNS.values()) == sorted([*RECIPES] * 2)


@pytest.mark.parametrize("name", RUNS)
def test_a_killed_run_goes_on_and_is_sampled(name, tmp_path, capsys):
    folder = tmp_path / "run"
    words = ["finetune", *RUNS[name], *SHORT, "--save-every", "1", "--out", str(folder)]
    run = subprocess.Popen([sys.executable, "-m", "difftilt.cli", *words], stderr=subprocess.DEVNULL)
    for _ in range(1200):
        if (folder / "checkpoints" / "round-000002").exists() or run.poll() is not None:
            break
        time.sleep(0.05)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL, "the kill came after the end"
    assert not (folder / "summary.json").exists()
    main(["resume", str(folder)])
    assert json.loads((folder / "summary.json").read_text())["rounds"] == int(RUNS[name][2])
    rows = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows == list(range(1, len(rows) + 1))  # none lost, none twice
    main(["sample", str(folder), "--count", "8"])
    assert "samples:" in capsys.readouterr().out
