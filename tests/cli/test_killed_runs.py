"""A run of a recipe, at its defaults or under a constraint, is killed, goes on as if unbroken, is sampled."""

import json
from pathlib import Path

import pytest
from commands import Command, environment
from killed import FILTERED, SMALL, alone, broken, differences, make_home, unbroken

from difftilt.cli.runs import RECIPES
from difftilt.data.lock import LOCK
from difftilt.data.owned import beside

OWN = Path(__file__).with_name("own_reward.py")
RUNS = {
    "digits": ["digits"],
    "digits, first noise tuned": ["digits", "--tune-start", "--eta", "0.5"],
    "dna": ["dna"],
    "dna, constrained": ["dna", "--gc", "0.25", "0.75", "--forbidden", "GATC", "--template", "NNGANNNN"],
    "molecules": ["molecules", *FILTERED, "--model", "{home}/models/molecules"],
    "molecules, its KL constrained": [
        "molecules",
        "--model",
        "{home}/models/molecules",
        "--target-kl",
        "0.5",
    ],
    "protein": ["protein"],
    "protein, constrained": ["protein", "--charged", "0.25", "0.5", "--template", "XDXX"],
    "sequences": ["sequences", "--reward", f"{OWN}:lengths"],
    "sequences, constrained": [
        *("sequences", "--reward", f"{OWN}:lengths", "--template", "NNG", "--forbidden", "GATC"),
        *("--share", "GC", "0.25", "0.75"),
    ],
    "utr": ["utr"],
    "utr, its KL constrained": ["utr", "--target-kl", "0.5"],
}
KIND = {words[0]: words for name, words in RUNS.items() if "," not in name}  # each recipe as it is
BLIND = """
def charge(sequences, cond):
    return [sum({"K": 1.0, "D": -1.0}.get(letter, 0.0) for letter in sequence) for sequence in sequences]
"""
QUICK = ("digits", "dna", "sequences", "molecules")  # the others are variants of these
SHORT = ["--rounds", "3", "--batch", "32", "--evaluate", "32", "--save-every", "1"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home: Path = tmp_path_factory.mktemp("home")
    with environment(**make_home(home)):
        yield home


def test_every_recipe_of_the_package_is_killed_twice():
    every = {*RECIPES} - {"pipeline"}  # whose runs are broken where its tiny pipelines are
    assert sorted(words[0] for words in RUNS.values()) == sorted([*every] * 2)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name not in QUICK else name for name in RUNS]
)
def test_a_killed_run_goes_on_and_is_sampled(name, home, tmp_path):
    folder = tmp_path / "run"
    words = ["finetune", *(word.replace("{home}", str(home)) for word in RUNS[name]), *SHORT, "--out"]
    whole, operations = unbroken([*words, str(tmp_path / "whole")], tmp_path / "whole")
    seen = broken([*words, str(folder)], folder, operations // 2, alone)
    assert seen["killed"] and seen["resumed"] and not differences(folder, whole), seen
    ended = Command(["sample", str(folder), "--count", "8"], tmp_path).wait()
    assert ended.code == 0 and "samples:" in ended.out, ended


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in KIND]
)
def test_a_reward_that_tells_no_samples_apart_is_named(name, home, tmp_path):
    """As one that takes tokens for letters: nothing raises, and every sample gets 0."""
    (tmp_path / "blind.py").write_text(BLIND)
    words = ["finetune", *(word.replace("{home}", str(home)) for word in KIND[name])]
    ended = Command(
        [*words, *SHORT, "--reward", f"{tmp_path}/blind.py:charge", "--out", str(tmp_path / "run")], tmp_path
    ).wait()
    told = "the reward is 0 for all 32 samples of the pretrained model"
    assert ended.code == 0 and told in ended.err, ended
    assert told in json.loads((tmp_path / "run" / "summary.json").read_text())["warnings"][0]
    assert told in (tmp_path / "run" / "report.html").read_text()


BEGINNINGS = {
    "finetune": ["finetune", "digits", *SMALL, "--reward", "ink", "--steps", "2"],
    "lab": ["lab", "init", "dna", "--data", "{home}/assay.csv", "--budget", "20", "--bad-rows", "drop"],
    "pretrain": ["pretrain", "sequences", "--data", "{home}/assay.csv", "--steps", "20", "--batch", "32"],
    "reward": ["reward", "fit", "--data", "{home}/assay.csv", "--anyway", "--steps", "2", "--members", "2"],
    "value": ["value", "fit", "dna", *SMALL],
}


@pytest.mark.parametrize("name", BEGINNINGS)
def test_a_command_killed_in_its_first_write_can_be_typed_again(name, home, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for left in (LOCK, beside(folder / "run.json").name):
        (folder / left).touch()
    words = [word.format(home=home) for word in BEGINNINGS[name]]
    ended = Command([*words, "--out", str(folder)], tmp_path).wait()
    assert ended.code == 0, ended
