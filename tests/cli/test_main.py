"""The command line as a stranger meets it: help everywhere, and one sentence for whatever is wrong."""

import json
import os
import random
import string

import pytest
import torch

from difftilt.cli.main import COMMANDS, main
from difftilt.cli.options import parse
from difftilt.cli.runs import RECIPES, recipe_of
from difftilt.rewards.scoring import guarded
from difftilt.settings import choose

LINES = int(os.environ.get("DIFFTILT_LINES", "200"))
NUMBERS = {
    "alpha": "0.1", "steps": "20", "rounds": "3", "batch": "8", "learning-rate": "1e-3", "max-norm": "1",
    "ema-decay": "0.9", "save-every": "1", "evaluate": "8", "seed": "0", "target": "3",
    "algorithm.clip": "0.2", "algorithm.epochs": "1", "algorithm.minibatches": "2",
}  # fmt: skip
COUNTS = {"steps", "rounds", "batch", "save-every", "evaluate", "seed", "target", "algorithm.epochs"}
CHOICES = {
    "reward": "class",
    "schedule": "linear",
    "mixed-precision": "no",
    "advantage": "batch",
    "kl": "both",
}
TOO_LOW = {
    "alpha": "0",
    "ema-decay": "-0.1",
    "seed": "-1",
    "target": "-1",
    "evaluate": "1",
    "algorithm.clip": "0",
}


def outcome(words: list[str], capsys) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stop:
        main(words)
        pytest.fail(f"accepted: {words}")
    code = stop.value.code
    return (code if isinstance(code, int) else 0), capsys.readouterr().err


def misspell(word: str, rng: random.Random) -> str:
    i = rng.randrange(len(word))
    return rng.choice([word[:i] + word[i + 1 :], word[:i] + rng.choice(string.ascii_lowercase) + word[i:]])


def wrong_line(rng: random.Random) -> list[str]:
    """A command line with exactly one mistake, of a random kind."""
    start = ["finetune", "digits"]
    name = rng.choice(list(NUMBERS))
    sound = [
        w for other in rng.sample(list(NUMBERS), 2) for w in (f"--{other}", NUMBERS[other]) if other != name
    ]
    kind = rng.randrange(10)
    if kind == 0:
        return [misspell(rng.choice(list(COMMANDS)), rng) + "q", "digits"]
    if kind == 1:
        return ["finetune", misspell("digits", rng) + "z", *sound]
    if kind == 2:
        return [*start, *sound, f"--{misspell(name, rng)}x", NUMBERS[name]]
    if kind == 3:
        return [
            *start,
            *sound,
            f"--{name}",
            rng.choice(["", "three", "1,5", "0x", "--", "1e", "[1]", "ü", "nan?"]),
        ]
    if kind == 4:
        return [*start, *sound, f"--{name}", TOO_LOW.get(name, rng.choice(["0", "-1", "-3"]))]
    if kind == 5:
        return [
            *start,
            *sound,
            f"--{rng.choice(sorted(COUNTS))}",
            rng.choice(["1.5", "nan", "inf", "1e400", "True"]),
        ]
    if kind == 6:
        return [
            *start,
            *sound,
            f"--{(option := rng.choice(list(CHOICES)))}",
            misspell(CHOICES[option], rng) + "w",
        ]
    if kind == 7:
        return [*start, f"algorithm:{misspell('ppo', rng)}z", *sound]
    if kind == 8:
        fact = rng.choice(["calls", "hours", "memory-gib", "reward-seconds", "recipe", "differentiabel"])
        return ["advise", f"--{fact}", rng.choice(["-2", "many", "1e400", "nan", ""])]
    command = rng.choice(["sample", "resume", "report"])
    return [command, "".join(rng.choices(string.ascii_letters + "/.", k=8))]


def test_wrong_command_lines_get_one_sentence_each(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = random.Random(0)
    for _ in range(LINES):
        words = wrong_line(rng)
        code, message = outcome(words, capsys)
        assert code != 0, words
        assert message.startswith("difftilt: "), words
        assert len(message.strip().splitlines()) == 1, (words, message)
        assert "Traceback" not in message, words
        assert len(message) > 25, words
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["finetun", "digits"], "finetune"),
        (["finetune", "digit"], "digits"),
        (["finetune", "digits", "--alpa", "1"], "--alpha"),
        (["finetune", "digits", "--reward", "clas"], "class"),
        (["finetune", "digits", "algorithm:pp"], "algorithm:ppo"),
        (["finetune", "digits", "--alpha", "-1"], "alpha must be > 0, but got -1.0"),
        (["finetune", "digits", "--alpha", "inf"], "finite"),
        (["finetune", "digits", "algorithm:ppo", "--algorithm.clip", "1.5"], "clip must be > 0 and < 1"),
        (["advise", "--calls", "0"], "calls must be >= 1, but got 0"),
        (["advise", "--recipe", "digit"], "digits"),
        (["resume", "nowhere"], "nowhere/run.json does not exist"),
        (["sample", "nowhere", "--count", "0"], "count"),
    ],
)
def test_the_message_names_what_is_valid(words, named, capsys):
    code, message = outcome(words, capsys)
    assert code != 0
    assert named in message


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        *([name, "--help"] for name in COMMANDS),
        *(["finetune", name, "--help"] for name in RECIPES),
        ["finetune", "digits", "algorithm:grpo", "--help"],
        ["pretrain", "digits", "--help"],
        ["recipes"],
        ["--version"],
    ],
    ids=" ".join,
)
def test_help_everywhere(words, capsys):
    try:
        main(words)
    except SystemExit as stop:
        assert stop.code in (0, None)
    printed = capsys.readouterr()
    assert len(printed.out) > 4
    assert not printed.err


def test_a_valid_name_is_taken():
    assert choose("recipe", "digits", RECIPES) is RECIPES["digits"]


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{", '{"recipe": "digits"}', '{"recipe": "dig", "settings": {}}',
     '{"recipe": "digits", "settings": {"alhpa": 1}}', '{"recipe": "digits", "settings": {"alpha": "x"}}',
     '{"recipe": "digits", "settings": {"alpha": -1.0}}',
     '{"recipe": "digits", "settings": {"algorithm": {"name": "ppx"}}}'],
)  # fmt: skip
def test_a_damaged_run_file_is_refused(content, tmp_path, capsys):
    (tmp_path / "run.json").write_text(content)
    code, message = outcome(["resume", str(tmp_path)], capsys)
    assert code in (1, 2)
    assert len(message.strip().splitlines()) == 1


def test_a_small_run_from_start_to_report(tmp_path, capsys):
    folder = tmp_path / "run"
    small = ["--rounds", "2", "--batch", "8", "--steps", "4", "--evaluate", "16", "--out", str(folder)]
    main(["finetune", "digits", *small, "--dry-run"])
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert not folder.exists()

    main(["finetune", "digits", *small])
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["reward_calls"] == plan["reward_calls"] == 2 * 8 + 2 * 16
    assert summary["network_calls"] == pytest.approx(plan["network_calls"], rel=0.05)
    assert {p.name for p in folder.iterdir()} >= {
        "run.json", "metrics.jsonl", "summary.json", "checkpoints", "samples", "report.html",
    }  # fmt: skip
    assert summary["before"]["kl_nats"] == 0

    with pytest.raises(SystemExit):
        main(["finetune", "digits", *small])
    assert "difftilt resume" in capsys.readouterr().err

    report = (folder / "report.html").read_text()
    main(["report", str(folder)])
    assert (folder / "report.html").read_text() == report
    main(["sample", str(folder), "--count", "4", "--seed", "5"])
    assert (folder / "samples" / "sample-seed5.png").exists()
    metrics = (folder / "metrics.jsonl").read_bytes()
    main(["resume", str(folder)])  # nothing left to do, and nothing lost
    assert (folder / "metrics.jsonl").read_bytes() == metrics


def test_the_same_seed_is_the_same_run(tmp_path):
    """Also where the algorithm has a network of its own, which is made before the first round."""
    small = ["--rounds", "2", "--batch", "8", "--steps", "4", "--evaluate", "8"]
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        torch.rand(len(name) + int(seed))  # whatever was drawn before does not matter
        words = [*small, "--seed", seed, "--out", str(tmp_path / name), "algorithm:ppo"]
        main(["finetune", "digits", *words, "--algorithm.advantage", "critic"])
    a, b, c = ((tmp_path / name / "metrics.jsonl").read_bytes() for name in "abc")
    assert a == b
    assert a != c


@pytest.mark.parametrize("name", RECIPES)
def test_settings_that_do_not_go_together_are_named_first(name, capsys):
    given = {"pipeline": ["--pipe", "x"], "sequences": ["--model", "x", "--reward", "x"]}.get(name, [])
    code, said = outcome(["finetune", name, *given, "--reward-overlap", "4"], capsys)
    assert code == 2 and said.startswith("difftilt: got reward_overlap 4, but no workers"), said


@pytest.mark.parametrize("name", RECIPES)
def test_failures_can_be_treated_in_every_way_in_every_recipe(name):
    """A recipe that penalises them by default can stop at them or leave them out by one option."""
    for words, penalty in {("stop",): None, ("drop",): None, ("penalty", "--penalty", "-2"): -2.0}.items():
        for line in (["--on-error", *words], [f"--on-error={words[0]}", *words[1:]], ["--on_error", *words]):
            training = parse(recipe_of(name), [*line, "algorithm:ppo"], "difftilt")["training"]
            assert (training.on_error, training.penalty) == (words[0], penalty)
    kept = parse(recipe_of(name), [], "difftilt")["training"]
    assert (kept.penalty is None) == (kept.on_error != "penalty")
    wrong = parse(recipe_of(name), ["--on-error", "drop", "--penalty", "1"], "difftilt")["training"]
    with pytest.raises(ValueError, match=r"on_error 'drop' got penalty 1\.0"):
        guarded(lambda x, c: x, "ink", wrong)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_that_is_called_like_a_recipe_is_told_apart(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["sample", recipe, "--nonsense"])
    assert "./" not in capsys.readouterr().err, "nothing is called like it"
    (tmp_path / recipe).mkdir()
    (tmp_path / recipe / "run.json").write_text("{}")
    with pytest.raises(SystemExit):
        main(["sample", recipe, "--nonsense"])
    assert f"for the run in the folder {recipe} say ./{recipe}" in capsys.readouterr().err
