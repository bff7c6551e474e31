"""What the built-in recipes can do, a user's own file can do; and no run folder executes code by itself."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from difftilt.cli.main import main
from difftilt.experiment import code

HERE = Path(__file__).parent
QUICK = ["--rounds", "2", "--batch", "16", "--evaluate", "16"]
SMALL = {
    "digits": ["digits", "--steps", "2"],
    "dna": ["dna"],
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a user's files, in which commands are typed."""
    for name in ("own_recipe.py", "own_algorithm.py"):
        shutil.copy(HERE / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(code, "_found", {})
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("difftilt_file_")]:
        del sys.modules[name]


def forget() -> None:
    """As if another process began."""
    code._found.clear()
    for name in [name for name in sys.modules if name.startswith("difftilt_file_")]:
        del sys.modules[name]


def refused(words: list[str], capsys) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(words)
    said = capsys.readouterr().err
    assert "Traceback" not in said and said.count("difftilt: ") == 1
    message = said.splitlines()[-1]
    assert stop.value.code not in (0, None)
    assert message.startswith("difftilt: ")
    return message


def test_a_monitor_ends_a_run_which_goes_on_when_it_is_told_to(place, capsys):
    own = ["own_recipe.py:walk", "--rounds", "6", "--batch", "32", "--evaluate", "32"]
    far = ["--learning-rate", "3", "--trust-region", "0", "--schedule", "constant", "--max-norm", "1"]
    main(["finetune", *own, *far, "--stop-on", "kl", "--out", "a"])
    said = capsys.readouterr()
    assert said.err.count("monitor: ") >= 1 and "training ended early: the monitor" in said.out
    assert json.loads(Path("a/summary.json").read_text())["rounds"] < 6
    forget()
    main(["resume", "a"])
    assert "go on with --past-alarms" in capsys.readouterr().out
    main(["resume", "a", "--past-alarms"])
    assert json.loads(Path("a/summary.json").read_text())["rounds"] == 6
    main(["report", "a"])
    assert "What the monitors said while it ran" in Path("a/report.html").read_text()


def test_a_file_of_sixty_lines_goes_through_every_command(place, capsys):
    assert len((place / "own_recipe.py").read_text().splitlines()) <= 60
    own = "own_recipe.py:walk"
    main(["finetune", own, "--dry-run"])
    assert json.loads(capsys.readouterr().out)["plan"]["gradient_steps"] == 10 * 4
    main(["finetune", own, "--out", "runs/a"])
    summary = json.loads(Path("runs/a/summary.json").read_text())
    assert summary["objective"] > summary["before"]["objective"] + 3 * summary["objective_se"]
    forget()
    main(["resume", "runs/a"])
    assert "is finished" in capsys.readouterr().out
    main(["sample", "runs/a", "--count", "8", "--json"])
    drawn = capsys.readouterr().out
    assert json.loads(drawn)["samples"] == 8
    main(["sample", own, "sampler:smc", "--sampler.particles", "4", "--value", "nested", "--count", "16"])
    assert "log Z" in capsys.readouterr().out
    main(["value", "fit", own, "--rounds", "2", "--batch", "16", "--evaluate", "16"])
    main(["sample", own, "--value", "runs/walk-value", "sampler:svdd", "--count", "4"])
    main(["report", "runs/a"])
    main(["finetune", own, *QUICK, "--out", "runs/b", "algorithm:grpo", "--algorithm.group-size", "8"])
    capsys.readouterr()
    main(["compare", "runs/a", "runs/b", "--out", "both"])
    assert "ppo" in capsys.readouterr().out.lower()
    assert "<svg" in Path("both/comparison.html").read_text()


def test_ctrl_c_and_resume_equal_an_unbroken_run(place):
    words = [sys.executable, "-m", "difftilt.cli", "finetune", "own_recipe.py:walk", "--rounds", "120"]
    words += ["--batch", "32", "--out"]
    subprocess.run([*words, "whole"], check=True, capture_output=True)
    run = subprocess.Popen([*words, "broken"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = place / "broken" / "metrics.jsonl"
    for _ in range(600):
        if metrics.exists() and metrics.read_text().count("\n") > 20:
            break
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    error = run.communicate(timeout=60)[1].strip().splitlines()[-1]
    assert run.returncode == 128 + signal.SIGINT
    assert "difftilt resume broken" in error
    assert 20 < metrics.read_text().count("\n") < 120 * 4
    subprocess.run(
        [sys.executable, "-m", "difftilt.cli", "resume", "broken"], check=True, capture_output=True
    )
    assert metrics.read_bytes() == (place / "whole" / "metrics.jsonl").read_bytes()


def test_an_algorithm_of_ones_own(place, capsys):
    own = "algorithm:own_algorithm.py:Reinforce"
    main(["finetune", "digits", "--steps", "2", *QUICK, own, "--algorithm.scale", "0.5", "--out", "run"])
    written = json.loads(Path("run/run.json").read_text())["settings"]["algorithm"]
    assert written == {"name": "own_algorithm.py:Reinforce", "scale": 0.5}
    forget()
    main(["sample", "run", "--count", "4"])
    assert "no algorithm" in refused(["finetune", "digits", "algorithm:own_recipe.py:Network"], capsys)


@pytest.mark.parametrize("recipe", SMALL)
def test_a_reward_of_ones_own(recipe, place, capsys):
    """A function of (samples, conditions), one of the samples alone, and a command; all counted and named."""
    (place / "mine.py").write_text(
        "def count(samples):\n"
        "    return [float(len(s)) for s in samples]\n"
        "def both(sample, cond):\n"
        "    return sample.float().flatten(1).sum(1)\n"
        "class Made:\n"
        "    def __call__(self, sample, cond):\n"
        "        return sample.float().flatten(1).mean(1)\n"
    )
    script = place / "lines.sh"
    script.write_text("#!/bin/sh\nawk '{print length($0)}'\n")
    script.chmod(0o755)
    for number, reward in enumerate(["mine.py:count", "mine.py:both", "mine.py:Made", "command:./lines.sh"]):
        out = f"run{number}"
        main(["finetune", *SMALL[recipe], *QUICK, "--reward", reward, "--out", out])
        record = json.loads(Path(out, "run.json").read_text())
        assert record["settings"]["reward"] == reward == record["reward"]
        assert re.fullmatch("[0-9a-f]{64}", record["code"][reward]["sha256"])
        forget()
        main(["sample", out, "--count", "4"])
    rows = Path("run3", "samples", "after.csv").read_text().splitlines()
    if recipe == "dna":
        assert rows[1].split(",")[1] == "8.0"  # letters in a line


@pytest.mark.parametrize(
    "script, says",
    [
        ("exit 3", "ended with code 3"),
        ("echo 1", "wrote 1 lines"),
        ("sed s/.*/good/", "write one number per line"),
        ("sleep 5", "took longer than"),
    ],
)
def test_a_command_that_fails_is_named(script, says, place, capsys):
    (place / "bad.sh").write_text(f"#!/bin/sh\n{script}\n")
    (place / "bad.sh").chmod(0o755)
    words = ["finetune", *SMALL["digits"], *QUICK, "--reward", "command:./bad.sh", "--reward-timeout", "1"]
    message = refused(words, capsys)
    assert says in message and "bad.sh" in message


def test_a_refused_run_does_not_block_its_retry(place, capsys):
    words = ["finetune", *SMALL["digits"], *QUICK, "--out", "run", "--reward"]
    refused([*words, "command:./missing.sh"], capsys)
    main([*words, "ink"])
    assert (place / "run" / "summary.json").exists()


@pytest.mark.parametrize("command", ["resume", "sample"])
@pytest.mark.parametrize("what", ["recipe", "reward", "algorithm", "command", "weighted", "sum"])
def test_a_run_folder_never_decides_what_is_executed(what, command, place, capsys):
    """A run that names code which was changed, or that this user did not name, executes nothing."""
    (place / "mine.py").write_text("def ink(sample, cond):\n    return sample.flatten(1).mean(1)\n")
    (place / "s.sh").write_text("#!/bin/sh\nawk '{print 1}'\n")
    (place / "s.sh").chmod(0o755)
    words = {
        "recipe": ["own_recipe.py:walk"],
        "reward": [*SMALL["digits"], "--reward", "mine.py:ink"],
        "algorithm": [*SMALL["digits"], "algorithm:own_algorithm.py:Reinforce"],
        "command": [*SMALL["digits"], "--reward", "command:./s.sh"],
        "weighted": [*SMALL["digits"], "--reward", "mine.py:ink:0.7"],
        "sum": [*SMALL["digits"], "--reward", "ink:0.5", "command:./s.sh:2"],
    }[what]
    file = {
        "recipe": "own_recipe.py",
        "reward": "mine.py",
        "algorithm": "own_algorithm.py",
        "command": "s.sh",
        "weighted": "mine.py",
        "sum": "s.sh",
    }
    main(["finetune", *words, *QUICK, "--out", "run"])
    Path("run/summary.json").unlink()
    shutil.copytree("run", "copied")
    forget()
    main([command, "copied"])  # unchanged, and made here
    canary = "canary"
    source = place / file[what]
    harm = f"touch {canary}" if source.suffix == ".sh" else f"open({canary!r}, 'w')"
    source.write_text(source.read_text() + f"\n{harm}\n")
    Path("copied/summary.json").unlink(missing_ok=True)
    forget()
    assert "nothing was executed" in refused([command, "copied"], capsys)
    assert not Path(canary).exists()

    shutil.copy(source, place / f"foreign{source.suffix}")
    text = Path("copied/run.json").read_text().replace(file[what], "foreign" + source.suffix)
    Path("copied/run.json").write_text(text)
    assert "nothing was executed" in refused([command, "copied"], capsys)
    assert not Path(canary).exists()

    os.environ["HOME"] = str(place / "somebody-else")  # who has another key
    source.write_text(source.read_text().replace(f"\n{harm}\n", ""))
    assert "nothing was executed" in refused([command, "run"], capsys)
    option, name = {
        "recipe": ("--recipe", "own_recipe.py:walk"),
        "reward": ("--reward", "mine.py:ink"),
        "algorithm": ("--algorithm", "own_algorithm.py:Reinforce"),
        "command": ("--reward", "command:./s.sh"),
        "weighted": ("--reward", "mine.py:ink:0.7"),
        "sum": ("--reward", "ink:0.5 + command:./s.sh:2"),
    }[what]
    main([command, "run", option, name])


def test_seeds_are_run_one_after_the_other_and_compared(place, capsys):
    main(["finetune", "own_recipe.py:walk", *QUICK, "--seeds", "3", "--out", "runs/three"])
    assert "3" in capsys.readouterr().out
    assert [p.name for p in sorted(Path("runs/three").glob("seed-*"))] == ["seed-0", "seed-1", "seed-2"]
    assert Path("runs/three/comparison.html").exists()
    Path("runs/three/seed-1/summary.json").unlink()
    main(["resume", "runs/three"])
    assert Path("runs/three/seed-1/summary.json").exists()
    capsys.readouterr()
    main(["report", "runs/three"])
    assert capsys.readouterr().out.split()[1::2] == [f"runs/three/seed-{k}/report.html" for k in range(3)]
    assert "such as runs/three/seed-0" in refused(["sample", "runs/three"], capsys)


def test_tables_of_comparisons_are_whole_in_a_narrow_terminal(place, monkeypatch, capsys):
    for folder, words in {"a": [], "b": ["algorithm:own_algorithm.py:Reinforce"]}.items():
        main(["finetune", "own_recipe.py:walk", *QUICK, "--seeds", "2", "--out", f"runs/{folder}", *words])
    main(["finetune", "own_recipe.py:walk", *QUICK, "--alpha", "0.25", "--out", "runs/c"])
    monkeypatch.setenv("COLUMNS", "80")
    capsys.readouterr()
    main(["compare", "runs/a", "runs/b", "runs/c"])
    lines = capsys.readouterr().out.splitlines()
    titles = [row for row, line in enumerate(lines) if line.startswith("own_recipe.py:walk, alpha")]
    assert len(titles) == 2 and titles[0] == 0
    assert all(len(line) <= 80 for line in lines[1 : titles[1]])
    names = "".join(line.split("  ")[0].strip() for line in lines[2 : titles[1]])
    assert {"ppo", "own_algorithm.py:Reinforce"} <= {names[:3], names[3:], names[:-3], names[-3:]}
    ranked = [line for line in lines[2 : titles[1]] if "±" in line]
    assert [line.count("±") for line in ranked] == [3, 3]


@pytest.mark.parametrize(
    "text, says",
    [
        ("nowhere.py:walk", "nowhere.py does not exist"),
        ("own_recipe.py:wakl", "has no 'wakl'"),
        ("own_recipe.py:to_the_right", "has no annotation"),
        ("own_recipe.py:Walk", "returned a Walk"),
        ("no.such.module:walk", "cannot be imported"),
        ("broken.py:walk", "raised ZeroDivisionError (division by zero) in line 2"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_a_sentence(text, says, place, capsys):
    (place / "broken.py").write_text("import torch\n1 / 0\n")
    words = ["--steps", "3"] if text.endswith(":Walk") else []
    assert says in refused(["finetune", text, *words], capsys)


@pytest.mark.parametrize(
    "wrong, right",
    [
        ("lr", "learning-rate"),
        ("bathc", "batch"),
        ("num-rounds", "rounds"),
        ("kl", "target-kl"),
        ("timeout", "reward-timeout"),
    ],
)
def test_the_option_that_was_meant_is_named(wrong, right, place, capsys):
    assert f"did you mean --{right}?" in refused(["finetune", "digits", f"--{wrong}", "1"], capsys)


@pytest.mark.parametrize("option", ["height", "guidance-scale", "num-frames"])
def test_what_a_pipeline_is_handed_is_named(option, capsys):
    said = refused(["finetune", "pipeline", "--pipe", "model", f"--{option}", "8"], capsys)
    assert f"did you mean --call.{option}?" in said


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("max-norm", "{None}|FLOAT is expected, but got ['soon']"),
        ("target-kl", "{None}|FLOAT is expected, but got ['soon']"),
        ("rounds", "a whole number is expected, but got 'soon'"),
        ("alpha", "a number is expected, but got 'soon'"),
    ],
)
def test_a_value_that_is_no_number_is_told_in_plain_words(option, expected, capsys):
    said = refused(["finetune", "dna", f"--{option}", "soon"], capsys)
    assert f"{expected}; Argument helptext: --{option}" in said and "errors" not in said


@pytest.mark.parametrize(
    ("words", "right"),
    [
        (["finetune", "digits", "--algorithm", "grpo"], "algorithm:ppo"),
        (["sample", "digits", "--sampler", "smc"], "sampler:smc"),
        (["finetune", "dna", "--algoritm", "grpo"], "algorithm:ppo"),
    ],
    ids=["algorithm", "sampler", "misspelt"],
)
def test_what_is_chosen_by_a_word_is_told_by_one(words, right, capsys):
    assert f"but a word such as {right};" in refused(words, capsys)


def test_a_job_made_in_python_leaves_a_folder_that_commands_understand(place, capsys):
    script = """
from pathlib import Path
import torch
from difftilt import Training, finetune, sample, tune
from own_recipe import Walk, to_the_right, walk

quick = Training(rounds=2, batch=16, evaluate=16)
finetune(walk(training=quick), "named")
finetune(tune(Walk(3), lambda sample, cond: sample[:, 0], alpha=1.0, training=quick), "unnamed")
print(sample(walk(), "drawn/s", 8)["samples"])
"""
    (place / "script.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "script.py"],
        capture_output=True,
        text=True,
        env=dict(os.environ),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("8")
    main(["report", "named"])
    main(["report", "unnamed"])
    message = refused(["sample", "unnamed"], capsys)
    assert "script.py" in message and "cannot be made again" in message
    main(["sample", "named", "--count", "4", "--recipe", "own_recipe.py:walk"])
