"""Command lines of all kinds, made at random: none ends in a traceback, and every refusal is one sentence."""

import importlib
import os
import random
from collections import Counter
from pathlib import Path

import invented
from commands import Command, Ended, environment
from killed import make_home

import difftilt
from difftilt.cli.main import COMMANDS
from difftilt.cli.runs import RECIPES

LINES = int(os.environ.get("DIFFTILT_LINES", "24"))
# what makes a command that is accepted end soon; a later one of the same name counts
SOON = {
    "finetune": ["--rounds", "1", "--batch", "8", "--evaluate", "3"],
    "sample": ["--count", "4"],
    "value": ["--rounds", "1", "--batch", "8", "--evaluate", "3"],
    "pretrain": ["--steps", "20", "--batch", "8"],
    "doctor": ["--batch", "8"],
}
# of a recipe, words without which it cannot begin; they are mostly there
NEEDS = {
    "molecules": ["--data", "../home/own.smi", "--merges", "4"],
    "sequences": ["--data", "../home/assay.csv", "--bad-rows", "drop"],
    "pipeline": ["--pipe", "sub dir", "--prompts", "file"],
}
# what a command that has commands of its own is asked for
ASKED = {
    "value": [["fit"]],
    "reward": [["fit", "--data", "../home/assay.csv"], ["fit", "--data", "file"], ["fit"]],
    "lab": [
        ["init", "sequences", "--data", "../home/assay.csv", "--budget", "8", "--out", "lab"],
        ["init", "dna", "--data", "file", "--budget", "-1"],
        ["propose", "lab"], ["ingest", "lab", "../home/assay.csv"], ["ingest", "lab", "file"],
        ["status", "lab"], ["report", "lab"], ["propose", "run"], ["simulate", "dna"],
    ],
    "ledger": [["stats", "file"], ["export", "none.db"], ["import", "file"]],
    "data": [["list"], ["import", "gb1", "file"], ["import", "dna", "file"], ["fetch", "none"]],
}  # fmt: skip
WORDS = """
- -- --- --= = -h --help --version --out --out= --overwrite --no-overwrite --dry-run --alpha --alpha=
--alpha=nan --alpha=inf --alpha=-1 --alpha=0 1e999 1e-999 --rounds --rounds=0 --rounds=1e3 --rounds=-1
--seed 18446744073709551616 --seed=-0 --seeds=0 --seeds=2 --seeds=99999999999 --batch 0 --batch=1
--batch=99999999999 --count=1 --count --evaluate=2 --evaluate=4 --threads=0 --threads=100000 --steps=0
--steps=970 --steps --eta=1.0000001 --reward ink inkk class png ink:0.5+png:0.5 ink:+ command:
command:./none command:true none.py:score \u202e 😀 é 日本語 ../.. / /proc/self/mem /dev/null run file sub dir
~ $HOME * {} [] None null True 1 -1 0x10 1_000 ١٢ 1,5 1.5 nan algorithm:ppo algorithm: algorithm:grpo
algorithm:distill algorithm.sampler:svdd algorithm.sampler: algorithm:nope algorithm:none.py:X sampler:smc
sampler: sampler:value-guidance sampler:svdd sampler:best-of-n sampler:mcmc sampler:discrete-guidance
--sampler.particles=0 --sampler.particles 7 --value --value=nested --value=run --value=file --value=
--value=second-order --target-kl=1e-30 --target-kl=None --target-kl=2 --ema-decay=1 --mixed-precision=fp16
--mixed-precision bf16 --on-error=drop --cache --no-cache --gc 0 1 --forbidden GAATTC N --template NNNN
--template=ACGTACGT --template=acgtnnnn --landscape pax6 six6 --weights=/none --weights=run --learning-rate
1e6 --learning-rate=0 --accumulate=1000000 --save-every=0 --algorithm.group-size 3
--algorithm.group-size=512 --algorithm.clip=nan --algorithm.epochs=0 --algorithm.minibatches=100000
--algorithm.advantage critic --tune-std --tune-start --tune_std --Alpha --alp -a --dry-run=1 @file
--check-start=1 --check-start=3 --roll-in=guided --value.width=0 fit list fetch import tfbind8 gb1 utr moses
digits dna --differentiable --trusted --calls=0 --calls=8 --hours=1e-300 --reward-seconds=1e308
--memory-gib=1e-320 --recipe dna --ledger=file --ledger=/proc/x/y --reward-budget=1 --reward-budget=20
--reward-workers=1 --penalty=1 --log-to tensorboard wandb --json --out=file --out=/proc/x/y --out=file/x
"""
JUNK = [*WORDS.split(), "sub dir", ""]
SURROUNDINGS = (
    {},
    {},
    {"COLUMNS": "1"},
    {"PYTHONIOENCODING": "ascii"},
    {"HOME": "/proc/none"},
    {"TERM": "dumb"},
)


def line(rng: random.Random) -> list[str]:
    """A command line that may be right up to its last words."""
    kind = rng.random()
    if kind < 0.05:
        return [rng.choice(JUNK)] if kind < 0.04 else []
    command = rng.choice([*COMMANDS])
    words = [command if rng.random() > 0.03 else command[:-1]]
    if command in ASKED and rng.random() < 0.95:
        words += rng.choice(ASKED[command])
    if (command in SOON and rng.random() < 0.9) or command == "value":
        recipe = rng.choice(["digits", "dna"] if rng.random() < 0.6 else [*RECIPES])
        words.append(recipe)
        words += NEEDS.get(recipe, []) if command == "pretrain" and rng.random() < 0.8 else []
    if command in ("report", "resume", "compare", "sample") and rng.random() < 0.3:
        words[1:] = [rng.choice(["run", "file", "sub dir", "", "/", "-"])]
    if len(words) > 1 and words[-1] != "run":
        words += SOON.get(command, [])
    if command == "pretrain" and words[1:2] == ["digits"]:
        words += ["--classifier-steps", "1"]
    return words + [rng.choice(JUNK) for _ in range(rng.choice([0, 0, 0, 1, 1, 1, 2, 2, 4, 6]))]


def check(ended: Ended) -> str:
    """What is wrong, in a word; empty if nothing is."""
    if "Traceback" in ended.err or ended.code in (97, 98) or ended.code < 0:
        return "traceback"
    if ended.code and (len(ended.said) != 1 or not ended.err.endswith("\n")):
        return "not one sentence"
    if ended.code and ended.said[0].rstrip() == "difftilt:":
        return "says nothing"
    return "letters are lost" if "\ufffd" in ended.err else ""


def shipped() -> dict[str, int]:
    """When each file of the package was written last, but for byte code."""
    root = Path(difftilt.__file__).parent
    return {str(path): path.stat().st_mtime_ns for path in root.rglob("*.*") if path.suffix != ".pyc"}


def at_home(home: Path) -> dict[str, str]:
    """A user's folders and tables; where many lines are tried, models too, so that more of them succeed."""
    home.mkdir()
    if LINES > 100:
        for module, *_ in COMMANDS.values():
            importlib.import_module(f"difftilt.cli.{module}")
        return make_home(home)
    invented.assay(home / "assay.csv")
    (home / "own.smi").write_text("\n".join(invented.MOLECULES))
    return {"DIFFTILT_DATA": str(home / "data"), "DIFFTILT_HOME": str(home)}


def test_no_command_line_ends_in_a_traceback(tmp_path, monkeypatch):
    work, before = tmp_path / "work", shipped()
    (work / "sub dir").mkdir(parents=True)
    (work / "file").write_text("x")
    monkeypatch.chdir(work)
    quick = ["--reward", "ink", "--steps", "1", "--rounds", "1", "--batch", "8", "--evaluate", "3"]
    assert Command(["finetune", "digits", *quick, "--out", "run"], tmp_path).wait().code == 0
    rng, codes, wrong = random.Random(int(os.environ.get("DIFFTILT_SEED", "0"))), Counter[int](), []
    with environment(**at_home(tmp_path / "home")):
        for number in range(LINES):
            words, around = line(rng), rng.choice(SURROUNDINGS)
            with environment(**around):
                try:
                    ended = Command(words, tmp_path).wait(100)
                except TimeoutError as error:
                    wrong.append(("slow", words, around, str(error)))
                    continue
            codes[ended.code] += 1
            if number % 100 == 99:
                print(number + 1, dict(codes), flush=True)
            if fault := check(ended):
                wrong.append((fault, words, around, ended.err[-600:]))
                print(number, *wrong[-1], flush=True)
    print(f"{sum(codes.values())} lines: {dict(codes)}, wrong: {len(wrong)}")
    assert not wrong, wrong
    assert shipped() == before, "a command has changed the package"
    assert codes[0] > LINES / 20 and codes[1] > 0 and codes[2] > LINES / 5, codes
