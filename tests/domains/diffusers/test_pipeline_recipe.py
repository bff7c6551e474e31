"""The recipe `pipeline`, from a folder to an adapter: prompts, judges, sheets, Ctrl-C, resume, samples."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from PIL import Image

pytest.importorskip("diffusers")
pytest.importorskip("peft")

from difftilt.cli.main import main
from difftilt.cli.options import parse
from difftilt.data.prompts import read_prompts
from difftilt.data.read import UnreadableError
from difftilt.domains.diffusers.recipe import asked, call_settings, divided, pipeline
from difftilt.settings import UsageError

REWARD = """
import os, signal
from pathlib import Path

def bright(image, cond):
    assert 0 <= float(image.min()) and float(image.max()) <= 1
    Path("asked.txt").open("a").write("\\n".join(cond["colour"]) + "\\n")
    if Path("stop").exists():
        Path("stop").unlink()
        os.kill(os.getpid(), signal.SIGINT)
    return 10 * image.mean((1, 2, 3))
"""
ROWS = [f"a {name} cat,{name},a dog\n" for name in ("red", "blue", "green", "grey")]
WORDS = [
    *("finetune", "pipeline", "--pipe", "model", "--prompts", "prompts.csv", "--reward", "mine.py:bright"),
    *("--steps", "2", "--call.guidance-scale", "3", "--lora-rank", "2", "--samples-per-prompt", "2"),
    *("--micro-batch", "4", "--rounds", "2", "--batch", "4", "--evaluate", "4", "--save-every", "1"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    tiny.build("sd1")[0].save_pretrained(folder / "model")
    (folder / "prompts.csv").write_text("prompt,colour,negative_prompt\n" + "".join(ROWS))
    (folder / "mine.py").write_text(REWARD)
    return folder


def interrupted(folder: Path, monkeypatch: Any) -> None:
    """A run that Ctrl-C ended in its first round, and that went on."""
    monkeypatch.chdir(folder)
    Path("stop").touch()
    with pytest.raises(SystemExit) as stopped:
        main([*WORDS, "--out", "halves"])
    assert stopped.value.code == 130 and not Path("halves/summary.json").exists()
    main(["resume", "halves"])


def test_a_run_from_a_folder_to_an_adapter_stopped_by_ctrl_c_and_resumed(folder, monkeypatch, capsys):
    interrupted(folder, monkeypatch)
    told = capsys.readouterr()
    assert "unet: LoRA of rank 2 on 32 of 50 linear layers" in told.err and "KL (nats)" in told.out
    table = Path("halves/samples/after.csv").read_text().splitlines()
    held_out = {row["colour"] for row in csv.DictReader(table)}
    learned = set(Path("asked.txt").read_text().split()) - held_out
    assert len(held_out) == 1 and len(learned) >= 2  # what a row holds besides reaches the reward
    pages = sorted(path.name for path in Path("halves/samples").glob("*.png"))
    assert pages == ["after.1.png", "before.1.png"]
    with Image.open("halves/samples/after.1.png") as sheet:
        assert sheet.width >= 4 * 192 and sheet.height > 192

    summary = json.loads(Path("halves/summary.json").read_text())
    assert summary["reward_calls"] == 2 * 2 * 4 + 2 * 4  # each evaluation is of the chain and as deployed
    gap = summary["deployed_reward"] - summary["reward"]
    assert summary["deployed_gap"] == pytest.approx(gap) and summary["deployed_gap_se"] > 0
    assert summary["before"]["deployed_reward_se"] > 0
    assert "as deployed, from the same noise: reward" in told.out
    assert "Reward as deployed" in Path("halves/report.html").read_text()

    card = Path("halves/adapter/README.md").read_text()
    assert "| reward of `pipe(...)` |" in card
    exec(card.partition("```python\n")[2].partition("```")[0].replace("THIS_FOLDER", "halves/adapter"), {})


@pytest.mark.slow
def test_a_run_that_goes_on_ends_as_if_it_had_never_stopped(folder, monkeypatch):
    if not (folder / "halves").exists():
        interrupted(folder, monkeypatch)
    monkeypatch.chdir(folder)
    main([*WORDS, "--out", "whole"])
    for name in ("adapter/pytorch_lora_weights.safetensors", "samples/after.csv", "samples/after.1.png"):
        assert Path("whole", name).read_bytes() == Path("halves", name).read_bytes(), name
    main(["sample", "whole", "--count", "2", "--out", "drawn"])
    assert list(Path("drawn").glob("*.1.png"))


def test_prompts_come_from_text_tables_and_json(tmp_path):
    files = {
        "a.txt": "a cat\n\n  a dog \n",
        "a.csv": "prompt,text\na cat,1\na dog,2\n",
        "a.jsonl": '{"prompt": "a cat", "n": 1}\n{"prompt": "a dog", "n": 2}\n',
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content)
        assert [row["prompt"] for row in read_prompts(tmp_path / name)] == ["a cat", "a dog"]
    assert read_prompts(tmp_path / "a.jsonl")[1]["n"] == 2


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("a.txt", "\n\n", "holds no prompts"),
        ("a.csv", "text\na cat\n", "needs a column 'prompt'"),
        ("a.csv", "prompt,text\na cat\n", "row 2 has 1 cells, but the header 2"),
        ("a.jsonl", '{"prompt": 3}\n', "line 1: 'prompt' must be a text, but got 3"),
        ("a.jsonl", '{"prompt": "a"}\n{"prompt": "b", "n": 1}\n', "line 2: every row needs the same names"),
        ("a.jsonl", '["a"]\n', "line 1 must be an object"),
        ("a.jsonl", "{\n", "line 1' is not valid JSON"),
    ],
)
def test_prompts_that_cannot_be_used_are_told_by_line(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(UnreadableError, match=said):
        read_prompts(tmp_path / name)


def test_settings_of_the_call_are_options():
    words = ["--call.height", "512", "--rounds", "3", "--call.guidance-scale=4.5", "--call.name", "x"]
    settings = parse(pipeline, words, "difftilt finetune pipeline")
    assert settings["call"] == ("height=512", "guidance-scale=4.5", "name=x")
    assert call_settings(settings["call"]) == {"height": 512, "guidance_scale": 4.5, "name": "x"}
    with pytest.raises(UsageError, match=r"--call\.height needs a value"):
        parse(pipeline, ["--call.height"], "difftilt finetune pipeline")
    with pytest.raises(UsageError, match=r"--call\.NAME VALUE, but got 'height'"):
        call_settings(["height"])


def test_a_round_samples_each_of_its_prompts_as_often_as_asked():
    rows: Any = [{"prompt": str(i)} for i in range(5)]
    drawn = asked(rows, 3, 12)["prompt"]
    assert len(drawn) == 12 and all(len(set(drawn[i : i + 3])) == 1 for i in range(0, 12, 3))
    assert len(set(drawn)) == 4
    assert sorted(asked(rows, 1, 10)["prompt"]) == sorted(2 * "01234")
    torch.manual_seed(0)
    first = asked(rows, 2, 6)
    torch.manual_seed(0)
    assert asked(rows, 2, 6) == first


@pytest.mark.parametrize(
    "settings, said",
    [
        ({}, "a pipeline is needed: --pipe"),
        ({"pipe": "nowhere/at-all"}, "nowhere/at-all cannot be loaded as a pipeline of diffusers"),
    ],
)
def test_what_is_missing_is_asked_for(settings, said, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UsageError, match=said):
        pipeline(**settings)


def test_prompts_that_judge_are_never_trained_on(tmp_path):
    from difftilt.domains.diffusers.pipeline import pipeline_policy

    (tmp_path / "p.txt").write_text("\n".join(f"prompt {i}" for i in range(10)))
    pipe, call = tiny.build("sd1")
    policy = pipeline_policy(pipe, 2, **call)
    learned, judged = divided(policy, read_prompts(tmp_path / "p.txt"), 0.3)
    assert len(learned) == 7 and len(judged) == 3
    assert not {row["prompt"] for row in learned} & {row["prompt"] for row in judged}
    (tmp_path / "one.txt").write_text("a cat\n")
    learned, judged = divided(policy, read_prompts(tmp_path / "one.txt"), 0.3)
    assert learned == judged == [{"prompt": "a cat"}]
    with pytest.raises(UsageError, match="prompts are needed: --prompts FILE"):
        divided(policy, (), 0.3)
    unprompted = pipeline_policy(tiny.build("ddpm")[0], 2)
    with pytest.raises(UsageError, match="takes no prompts"):
        divided(unprompted, read_prompts(tmp_path / "p.txt"), 0.3)
    assert divided(unprompted, (), 0.3) == ((), ())
