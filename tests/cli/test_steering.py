"""Steering from the command line: sampling under guidance, learning a value, distilling a sampler."""

import csv
import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest

from difftilt.algorithms.choices import make_algorithm
from difftilt.cli.main import main
from difftilt.cli.options import parse
from difftilt.domains.digits.recipe import digits
from difftilt.experiment.record import restore, to_json
from difftilt.samplers.choices import CORRECTING
from difftilt.samplers.svdd import SVDD

DIGITS = ["digits", "--steps", "3", "--reward", "ink", "--alpha", "0.02"]
GUIDANCES = {
    "smc": ["--sampler.particles", "3"],
    "svdd": ["--sampler.candidates", "2"],
    "best-of-n": ["--sampler.n", "3"],
    "value-guidance": [],
    "discrete-guidance": [],
    "mcmc": [],
}
OF_ONE_KIND = {"value-guidance": "digits", "discrete-guidance": "dna"}  # real numbers; tokens


def refused(words: list[str], capsys) -> tuple[int, str]:
    """The exit code and the one sentence that a command line is answered with."""
    with pytest.raises(SystemExit) as stop:
        main(words)
    message = capsys.readouterr().err
    assert len(message.strip().splitlines()) == 1 and message.startswith("difftilt: ")
    return int(str(stop.value.code)), message


def drawn(words: list[str], out: Path, capsys) -> dict:
    """What a sampling printed."""
    main(["sample", *words, "--out", str(out), "--json"])
    text = capsys.readouterr().out
    return json.loads(text[: text.rindex("}") + 1])


@pytest.mark.parametrize("name", GUIDANCES)
@pytest.mark.parametrize("recipe", ["digits", "dna"])
def test_every_guidance_draws_judges_and_writes(recipe, name, tmp_path, capsys):
    words = [
        *(DIGITS if recipe == "digits" else ["dna"]),
        f"sampler:{name}",
        *GUIDANCES[name],
        "--count",
        "4",
    ]
    if OF_ONE_KIND.get(name, recipe) != recipe:
        code, message = refused(["sample", *words, "--out", str(tmp_path / "no")], capsys)
        assert code == 1 and "smc" in message  # what to use instead
        assert not (tmp_path / "no").exists()
        return
    row = drawn(words, tmp_path, capsys)
    kept = 3 if name == "smc" else 1
    assert row["samples"] == kept * row["populations"] >= 4 and row["populations"] >= 4
    numbers = [row[key] for key in ("reward", "kl_nats", "objective", "log_z")]
    errors = [row[f"{key}_se"] for key in ("reward", "objective", "log_z")]
    assert all(math.isfinite(x) for x in numbers + errors) and min(errors) > 0
    assert row["objective"] == pytest.approx(row["reward"] - row["alpha"] * row["kl_nats"])
    assert 0 < row["ess"] <= 1
    assert row["reward_calls"] >= row["samples"] and row["network_calls"]["forward"] > 0
    assert (row["network_calls"]["backward"] > 0) == (
        recipe == "digits" and name in ("value-guidance", "mcmc")
    )
    assert (
        row["gold"].keys() == row["gold_se"].keys() == ({"gold confidence"} if recipe == "digits" else set())
    )

    listed = json.loads((tmp_path / "contents.json").read_text())["files"]
    files = {path.suffix: path for path in tmp_path.iterdir() if path.name != "contents.json"}
    assert sorted(listed) == sorted(path.name for path in files.values())
    assert files.keys() == {".csv", ".json", ".png"} | ({".fasta"} if recipe == "dna" else set())
    assert {path.stem for path in files.values()} == {f"{name}-seed1"}
    table = list(csv.DictReader(files[".csv"].open()))
    assert len(table) == row["samples"]
    assert sum(float(line["reward"]) for line in table) / len(table) == pytest.approx(row["reward"])
    written = json.loads(files[".json"].read_text())
    assert written | row == written
    assert written["recipe"] == recipe and written["sampler"]["name"] == name


def test_the_same_seed_draws_the_same_samples(tmp_path, capsys):
    words = [*DIGITS, "sampler:smc", "--sampler.particles", "4", "--count", "8", "--seed"]
    same = [(drawn([*words, "3"], tmp_path / name, capsys), name) for name in "ab"]
    other = drawn([*words, "4"], tmp_path / "a", capsys)
    (a, _), (b, _) = same
    assert {**a, "seconds": 0} == {**b, "seconds": 0}
    assert a["reward"] != other["reward"]
    tables = [(tmp_path / name / "smc-seed3.csv").read_bytes() for name in "ab"]
    assert tables[0] == tables[1]


def test_steering_earns_more_than_the_pretrained_model(tmp_path, capsys):
    """And what it earns per nat is worth it: J rises, and stays below alpha log Z."""
    plain = drawn([*DIGITS, "--count", "512"], tmp_path, capsys)
    assert plain["kl_nats"] == 0 and plain["reward_calls"] == 512
    row = drawn([*DIGITS, "sampler:smc", "--count", "512"], tmp_path, capsys)
    error = 4 * math.hypot(plain["objective_se"], row["objective_se"])
    assert row["objective"] > plain["objective"] + error
    assert row["objective"] <= row["alpha"] * row["log_z"] + 1e-9  # log E[Z] is at least E[log Z]


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        (
            [*DIGITS, "sampler:svd"],
            2,
            ["sampler:smc", "sampler:svdd", "sampler:best-of-n", "sampler:value-guidance"],
        ),
        (
            [*DIGITS, "sampler:smc", "--value", "posterior"],
            2,
            ["posterior-mean", "nested", "difftilt value fit"],
        ),
        ([*DIGITS, "sampler:smc", "--sampler.particles", "0"], 2, ["particles must be >= 1"]),
        ([*DIGITS, "sampler:smc", "--count", "1"], 2, ["count must be >= 2"]),
        ([*DIGITS, "algorithm:ppo"], 2, ["algorithm:ppo"]),
        ([*DIGITS, "--learning-rate", "1"], 2, ["--learning-rate"]),
        ([], 2, ["run folder", "digits", "dna"]),
        (["digit", "sampler:smc"], 2, ["digit/run.json does not exist", "digits", "dna"]),
        (["dna", "sampler:value-guidance"], 1, ["Gaussian", "smc"]),
        (["dna", "sampler:discrete-guidance", "--sampler.how", "taylor"], 1, ["gradient", "exact"]),
        (["dna", "sampler:smc", "--value", "second-order"], 1, ["tokens have no second order"]),
        ([*DIGITS, "sampler:value-guidance", "--value", "nested"], 1, ["gradient", "smc"]),
        (["digits", "--steps", "3", "--reward", "png", "sampler:value-guidance"], 1, ["'png'", "svdd"]),
    ],
    ids=lambda x: " ".join(x) or "nothing" if isinstance(x, list) else None,
)
def test_what_cannot_be_sampled_gets_one_sentence(words, code, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    found, message = refused(["sample", *words], capsys)
    assert found == code
    assert all(name in message for name in named)
    assert not list(tmp_path.iterdir())


def distil(folder: Path, rounds: int) -> None:
    """A small run that distils SVDD."""
    training = (
        f"--rounds {rounds} --batch 32 --evaluate 16 --schedule constant --learning-rate 3e-5 --out {folder}"
    )
    sampler = "algorithm:distill --algorithm.epochs 2 algorithm.sampler:svdd --algorithm.sampler.candidates 2"
    main(["finetune", *DIGITS, *training.split(), *sampler.split()])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "distilled"
    distil(folder, 2)
    return folder


def go_on(folder: Path, rounds: int) -> None:
    """Resumes a run that has more rounds to go now."""
    record = json.loads((folder / "run.json").read_text())
    record["settings"]["training"]["rounds"] = rounds
    (folder / "run.json").write_text(json.dumps(record))
    main(["resume", str(folder)])


def test_distillation_is_one_command_that_resumes(run, tmp_path):
    algorithm = json.loads((run / "run.json").read_text())["settings"]["algorithm"]
    assert algorithm["name"] == "distill" and algorithm["epochs"] == 2
    assert algorithm["sampler"]["name"] == "svdd" and algorithm["sampler"]["candidates"] == 2
    summary = json.loads((run / "summary.json").read_text())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == summary["gradient_steps"] == 2 * 2 * 4
    assert summary["kl_nats"] > 0 and math.isfinite(rows[-1]["sampler_objective"])
    distil(tmp_path / "half", 1)
    go_on(tmp_path / "half", 2)
    assert (tmp_path / "half" / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()


def test_tokens_are_distilled_too(capsys):
    """A whole round is played, without the binding scores."""
    words = ["--rounds", "3", "--batch", "32", "--evaluate", "16", "--dry-run"]
    main(["finetune", "dna", *words, "algorithm:distill", "--algorithm.sampler.particles", "4"])
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert plan["gradient_steps"] == 3 * 4
    # per round 32 samples of the policy, and the sampler's at 8 levels of noise and at the end
    assert plan["reward_calls"] == 3 * (32 + 32 * 9) + 2 * 16


@pytest.mark.parametrize("name", ["smc", "svdd", "best-of-n", "value-guidance", "discrete-guidance", "mcmc"])
def test_run_json_brings_a_distilled_sampler_back(name):
    asked = parse(digits, ["algorithm:distill", f"algorithm.sampler:{name}"], "difftilt")["algorithm"]
    written = json.loads(json.dumps(to_json(asked)))
    back = restore(digits, {"algorithm": written})["algorithm"]
    assert type(back.sampler) is type(asked.sampler)
    assert asdict(back) == asdict(asked)


def test_distillation_has_a_sampler_by_default():
    default = make_algorithm("distill")
    assert asdict(default) == asdict(parse(digits, ["algorithm:distill"], "difftilt")["algorithm"])
    with pytest.raises(ValueError, match=r"svd.*best-of-n"):
        restore(digits, {"algorithm": {"name": "distill", "sampler": {"name": "svd"}}})


def test_a_run_proposes_where_weights_correct_for_it(run, capsys, tmp_path):
    """The tuned model proposes for SVDD; value guidance steers the pretrained one, whatever was tuned."""
    words = ["--count", "16"]
    tuned = drawn([str(run), "sampler:svdd", *words], tmp_path / "tuned", capsys)
    plain = drawn([*DIGITS, "sampler:svdd", *words], tmp_path / "plain", capsys)
    assert SVDD in CORRECTING and tuned["reward"] != plain["reward"]
    extra = tuned["network_calls"]["forward"] - plain["network_calls"]["forward"]
    assert extra == tuned["samples"] * 3  # what the tuned model draws, the pretrained one weighs
    assert tuned["log_z"] == pytest.approx(
        plain["log_z"], abs=5 * math.hypot(tuned["log_z_se"], plain["log_z_se"])
    )
    guided = [
        drawn([*subject, "sampler:value-guidance", *words], tmp_path / "v", capsys)
        for subject in ([str(run)], DIGITS)
    ]
    assert guided[0]["reward"] == guided[1]["reward"] and guided[0]["kl_nats"] == guided[1]["kl_nats"]


def test_without_guidance_a_run_is_sampled_as_it_was_evaluated(run, capsys):
    capsys.readouterr()
    main(["sample", str(run), "--count", "16", "--seed", "0", "--json"])
    row = json.loads(capsys.readouterr().out)
    summary = json.loads((run / "summary.json").read_text())
    assert all(row[key] == summary[key] for key in ("reward", "kl_nats", "objective", "gold"))
    assert (run / "samples" / "sample-seed0.csv").read_bytes() == (run / "samples" / "after.csv").read_bytes()


@pytest.fixture(scope="module")
def value(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run that learned a value."""
    folder = tmp_path_factory.mktemp("runs") / "value"
    words = [
        "--rounds",
        "12",
        "--batch",
        "64",
        "--evaluate",
        "600",
        "--save-every",
        "6",
        "--out",
        str(folder),
    ]
    main(["value", "fit", *DIGITS, *words])
    return folder


def test_a_learned_value_is_checked_on_fresh_chains(value):
    summary = json.loads((value / "summary.json").read_text())
    assert [row["t"] for row in summary["calibration"]] == [1, 2, 3]
    for row in summary["calibration"]:
        assert row["mean_se"] > 0 and 0 < row["mean"] < 4
    error = math.hypot(summary["log_z_se"], summary["importance_log_z_se"])
    assert summary["log_z"] == pytest.approx(summary["importance_log_z"], abs=0.5 + 3 * error)
    assert 0 < summary["importance_ess"] < 1
    assert summary["reward_calls"] == 12 * 64 + 600
    assert summary["network_calls"] == {"forward": 12 * 64 * 3, "backward": 0}


def test_a_learned_value_steers(value, tmp_path, capsys):
    words = [*DIGITS, "--count", "32", "--value"]
    learned = drawn([*words, str(value), "sampler:value-guidance"], tmp_path, capsys)
    plain = drawn([*words, "posterior-mean"], tmp_path, capsys)
    assert learned["objective"] > plain["objective"]
    assert learned["network_calls"]["backward"] == 0  # the value's own network is no denoiser
    smc = drawn([*words, str(value), "sampler:smc"], tmp_path, capsys)
    assert smc["reward_calls"] == smc["samples"]  # a learned value asks no reward on the way


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["digits", "--steps", "4", "--reward", "ink", "--alpha", "0.02"], ["steps 3", "4"]),
        (["digits", "--steps", "3", "--reward", "ink", "--alpha", "0.03"], ["alpha 0.02", "0.03"]),
        (["digits", "--steps", "3", "--reward", "class", "--alpha", "0.02"], ["reward ink", "class"]),
        (["dna"], ["recipe digits", "dna"]),
    ],
    ids=["steps", "alpha", "reward", "recipe"],
)
def test_a_value_of_another_problem_is_refused(words, named, value, tmp_path, capsys):
    line = ["sample", *words, "sampler:smc", "--value", str(value), "--out", str(tmp_path / "no")]
    code, message = refused(line, capsys)
    assert code == 1 and all(name in message for name in named)


def test_a_run_is_no_value_and_a_value_no_run(run, value, tmp_path, capsys):
    line = ["sample", *DIGITS, "sampler:smc", "--value", str(run), "--out", str(tmp_path / "no")]
    assert "difftilt value fit digits" in refused(line, capsys)[1]
    assert f"--value {value}" in refused(["sample", str(value)], capsys)[1]


@pytest.mark.parametrize("roll_in", ["reference", "guided"])
def test_a_value_goes_on_where_it_was_stopped(roll_in, tmp_path):
    words = f"--batch 16 --evaluate 16 --schedule constant --roll-in {roll_in} --value.target bellman".split()
    for name, rounds in (("whole", 4), ("half", 2)):
        out = ["--rounds", str(rounds), "--out", str(tmp_path / name)]
        main(["value", "fit", *DIGITS, *words, *out])
    go_on(tmp_path / "half", 4)
    whole, half = ((tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "half"))
    assert whole == half
    record = json.loads((tmp_path / "half" / "run.json").read_text())
    assert record["task"] == "value" and record["settings"]["roll_in"] == roll_in


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], ["fit"]),
        (["fot"], ["fit"]),
        (["fit"], ["digits", "dna"]),
        (["fit", "digit"], ["digits"]),
        (["fit", "dna", "--value.loss", "linux"], ["linex", "exponential", "squared"]),
        (["fit", "dna", "--roll-in", "guided"], ["tokens", "reference"]),
        (["fit", "digits", "algorithm:ppo"], ["algorithm:ppo"]),
        (["fit", "digits", "--evaluate", "1"], ["evaluate must be >= 2"]),
    ],
    ids=lambda words: " ".join(words) or "nothing",
)
def test_a_value_that_cannot_be_learned_gets_one_sentence(words, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    _, message = refused(["value", *words], capsys)
    assert all(name in message for name in named)
    assert not list(tmp_path.iterdir())
