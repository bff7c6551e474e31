import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest
from test_report import outside

from difftilt.cli.report import expanded
from difftilt.evaluation.comparison import compare
from difftilt.evaluation.groups import group, labels
from difftilt.evaluation.run_folder import read_run

ROUNDS = 6
PPO = {"name": "ppo", "clip": 0.2, "epochs": 2}
GRPO = {"name": "grpo", "clip": 0.1, "group_size": 8}


def write_run(
    folder: Path, seed: int = 0, earned: float = 1.0, algorithm: dict[str, Any] = PPO, **changes: Any
) -> Path:
    """The folder of a finished run whose J rises linearly from 0 to that of its summary."""
    settings = {"algorithm": algorithm, "reward": "ink", "alpha": 0.1, "target_kl": None}
    settings |= {"training": {"name": "training", "rounds": ROUNDS, "seed": seed}}
    info = {"recipe": "digits", "seed": seed, "device": "cpu", "threads": 1, "processes": 1}
    settings |= {name: changes[name] for name in settings if name in changes}
    info |= {name: changes[name] for name in ("recipe", "device", "task") if name in changes}
    alpha = changes.get("final_alpha", settings["alpha"])
    final = {"reward": earned, "kl_nats": 2.0, "objective": earned - alpha * 2.0}
    errors = {f"{name}_se": 0.05 for name in final}
    before = {"alpha": settings["alpha"], "objective": changes.get("before", 0.0), "objective_se": 0.01}
    summary = final | errors | {"alpha": alpha, "samples": 256, "rounds": ROUNDS, "reward_calls": 700}
    summary |= {"seconds": 12.0 + seed, "before": before} | changes.get("summary", {})
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(info | {"settings": settings}))
    if changes.get("finished", True):
        (folder / "summary.json").write_text(json.dumps(summary))
    rows = [
        {"round": i, "reward_calls": 100 * (i + 1), "alpha": alpha}
        | {name: value * (i + 1) / ROUNDS for name, value in final.items()}
        | errors
        for i in range(ROUNDS)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def page_of(said: dict[str, Any]) -> str:
    return Path(said["page"]).read_text(encoding="utf-8")


def test_a_row_is_the_mean_over_seeds_with_its_error_over_seeds(tmp_path: Path):
    rewards = [1.0, 1.3, 1.9]
    folders = [write_run(tmp_path / f"ppo-{s}", s, r) for s, r in enumerate(rewards)]
    said = compare(folders, tmp_path / "out")
    (row,) = said["rows"]
    assert row["reward"] == pytest.approx(1.4) and row["objective"] == pytest.approx(1.4 - 0.2)
    expected = statistics.stdev(rewards) / 3**0.5
    assert row["reward_se"] == pytest.approx(expected) and row["objective_se"] == pytest.approx(expected)
    assert row["kl_nats"] == 2.0 and row["kl_nats_se"] == 0.0
    assert row["seconds"] == pytest.approx(13.0) and row["reward_calls"] == 700
    assert row["seeds"] == [0, 1, 2] and row["error_over"] == "3 seeds" and row["label"] == "ppo"
    assert said["notes"] == []
    json.dumps(said)


def test_the_error_of_a_single_run_is_that_over_its_samples_and_this_is_said(tmp_path: Path):
    said = compare([write_run(tmp_path / "ppo")], tmp_path)
    assert said["rows"][0]["reward_se"] == 0.05 and said["rows"][0]["error_over"] == "256 samples"
    assert "One seed only: ppo." in said["notes"][0] and said["notes"][0] in page_of(said)


def test_rows_are_ranked_by_j_with_how_far_they_are_behind(tmp_path: Path):
    folders = [write_run(tmp_path / f"ppo-{s}", s, 1.0 + 0.1 * s) for s in range(2)]
    folders += [write_run(tmp_path / f"grpo-{s}", s, 2.0 + 0.1 * s, GRPO) for s in range(2)]
    said = compare(folders, tmp_path)
    assert [(row["label"], row["rank"]) for row in said["rows"]] == [("grpo", 1), ("ppo", 2)]
    assert "1.00 ± 0.07" in page_of(said).replace("\N{NO-BREAK SPACE}", " ")


def test_js_of_different_alpha_are_not_in_one_ranking_and_this_is_said(tmp_path: Path):
    folders = [write_run(tmp_path / f"a{a}-{s}", s, 1.0, alpha=a) for a in (0.1, 0.5) for s in range(2)]
    said = compare(folders, tmp_path)
    assert [(row["problem"], row["rank"], row["label"]) for row in said["rows"]] == [
        ("digits, reward ink, alpha 0.1", 1, "ppo"),
        ("digits, reward ink, alpha 0.5", 1, "ppo"),
    ]
    (note,) = said["notes"]
    assert "2 different problems" in note and "not in one ranking" in note
    assert page_of(said).count("<h2>digits, reward ink, alpha") == 2


@pytest.mark.parametrize("change", [{"recipe": "other.py:dna"}, {"reward": "png"}])
def test_nor_are_js_of_different_rewards(tmp_path: Path, change: dict[str, Any]):
    said = compare([write_run(tmp_path / "a"), write_run(tmp_path / "b", **change)], tmp_path)
    assert [row["rank"] for row in said["rows"]] == [1, 1] and "2 different problems" in said["notes"][0]


def test_where_alpha_was_moved_nothing_is_ranked(tmp_path: Path):
    folders = [
        write_run(
            tmp_path / f"{i}", i % 2, 1.0 + i, (PPO, GRPO)[i // 2], target_kl=2.0, final_alpha=0.1 + i / 50
        )
        for i in range(4)
    ]
    said = compare(folders, tmp_path)
    assert [row["rank"] for row in said["rows"]] == [None, None]
    assert said["rows"][0]["problem"] == "digits, reward ink, target KL 2.0"
    assert "ended between 0.1 and 0.16, so that the J's are of different problems" in said["notes"][0]
    assert "behind the best" not in page_of(said).partition("How to read")[0]


def test_runs_that_began_from_different_models_are_told(tmp_path: Path):
    folders = [write_run(tmp_path / "a"), write_run(tmp_path / "b", 1, before=0.5)]
    assert "the pretrained model or the reward was not the same" in compare(folders, tmp_path)["notes"][0]
    assert compare([folders[0], write_run(tmp_path / "c", 2, before=0.01)], tmp_path)["notes"] == []


def test_seconds_of_different_devices_are_told(tmp_path: Path):
    folders = [write_run(tmp_path / "a"), write_run(tmp_path / "b", 1, device="cuda")]
    assert "their seconds cannot be compared" in compare(folders, tmp_path)["notes"][0]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([{"algorithm": PPO}, {"algorithm": GRPO}], ["ppo", "grpo"]),
        ([{"algorithm": PPO}, {"algorithm": PPO | {"clip": 0.3}}], ["clip 0.2", "clip 0.3"]),
        (
            [{"algorithm": PPO}, {"algorithm": PPO | {"clip": 0.3}}, {"algorithm": GRPO}],
            ["ppo, clip 0.2", "ppo, clip 0.3", "grpo"],
        ),
        (
            [{"algorithm": GRPO}, {"algorithm": GRPO | {"group_size": 4}, "recipe": "my.py:r"}],
            ["digits", "my.py:r"],
        ),
        ([{"target_kl": 1.5}, {}], ["target-kl 1.5", "target-kl null"]),
    ],
)
def test_labels_show_only_what_differs(tmp_path: Path, settings: list[dict[str, Any]], expected: list[str]):
    folders = [write_run(tmp_path / str(i), **changes) for i, changes in enumerate(settings)]
    assert labels(group(map(read_run, folders))) == expected


def test_what_cannot_be_compared_is_refused(tmp_path: Path):
    one = write_run(tmp_path / "one")
    with pytest.raises(ValueError, match=r"with the same settings and the same seed, 0"):
        compare([one, write_run(tmp_path / "copy")], tmp_path)
    with pytest.raises(ValueError, match="got 1 run folders, none of them of a finished run"):
        compare([write_run(tmp_path / "value", task="value")], tmp_path)
    with pytest.raises(ValueError, match="got 1 run folders, none of them of a finished run"):
        compare([write_run(tmp_path / "torn", finished=False)], tmp_path)
    with pytest.raises(ValueError, match="is not a run folder"):
        compare([tmp_path / "nothing"], tmp_path)
    assert not (tmp_path / "comparison.html").exists()


def test_one_folder_named_twice_counts_once_and_unfinished_runs_are_left_out(tmp_path: Path):
    one, torn = write_run(tmp_path / "one"), write_run(tmp_path / "torn", 1, finished=False)
    said = compare([one, tmp_path / "." / "one", torn], tmp_path)
    assert len(said["rows"]) == 1 and said["rows"][0]["folders"] == [str(one)]
    assert said["notes"][0].startswith("torn is left out, since it is not finished")


def test_an_exact_j_takes_the_place_of_the_sampled_one(tmp_path: Path):
    folders = [
        write_run(tmp_path / f"{s}", s, summary={"exact": {"J": 0.7 + s / 10}, "optimum": {"J": 0.9}})
        for s in range(2)
    ]
    said = compare(folders, tmp_path)
    assert said["rows"][0]["objective"] == pytest.approx(0.75)
    assert said["rows"][0]["objective_se"] == pytest.approx(0.05)
    assert "best possible J, 0.9, known exactly" in page_of(said)


def test_courses_are_drawn_against_calls_and_against_evenly_spread_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    drawn = {}
    monkeypatch.setattr(
        "difftilt.evaluation.comparison.comparison",
        lambda lines, over, limit: drawn.update({over: lines}) or "",
    )
    compare([write_run(tmp_path / f"{s}", s, 1.0 + s) for s in range(2)], tmp_path)
    (calls,), (seconds,) = drawn["reward calls"], drawn["seconds"]
    assert calls.x == pytest.approx([100, 200, 300, 400, 500, 600])
    assert seconds.x == pytest.approx([12.5 * i / ROUNDS for i in range(1, ROUNDS + 1)])  # 12 s and 13 s
    assert calls.mean[-1] == pytest.approx(1.5 - 0.2) and calls.se[-1] == pytest.approx(0.5)


def test_the_page_is_self_contained_and_escapes_what_runs_say(tmp_path: Path):
    evil = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    algorithms = [{"name": evil, "clip": i} for i in range(8)]
    folders = [write_run(tmp_path / str(i), algorithm=algorithms[i], recipe=evil) for i in range(8)]
    page = page_of(compare(folders, tmp_path))
    assert outside(page) == [f"{i}/report.html" for i in range(8)] * 2 and page.count("<svg") == 3
    assert "&lt;script&gt;" in page and len(page.encode()) < 300_000
    assert set(re.findall(r"border-top: 3px (\w+)", page)) >= {"solid", "dashed"}


def test_every_row_has_a_tick_that_hides_it_with_its_curve(tmp_path: Path):
    algorithms = (PPO, GRPO, PPO | {"clip": 0.3})
    folders = [write_run(tmp_path / str(i), algorithm=one) for i, one in enumerate(algorithms)]
    compare(folders, tmp_path)
    page = (tmp_path / "comparison.html").read_text()
    for i in range(3):
        assert page.count(f'<input type="checkbox" class="show-{i}" checked>') == 1
        assert page.count(f'<tr class="row-{i}">') == 1
        assert f":has(.show-{i}:not(:checked)) .row-{i} {{ display: none; }}" in page
        assert f":has(.show-{i}:not(:checked)) {{ --line-{i}: transparent; }}" in page
    assert "show-3" not in page and not outside(re.sub(r'href="[^"]*/?report.html"', "", page))
    compare(folders[:1], tmp_path)
    assert "checkbox" not in (tmp_path / "comparison.html").read_text()


def test_a_folder_of_runs_stands_for_them_and_no_name_of_one_leads_elsewhere(tmp_path: Path):
    for seed, name in enumerate(("javascript:alert(1)", "one", "several/seed-0", "several/seed-1")):
        write_run(tmp_path / "runs" / name, seed)
    write_run(tmp_path / "runs/value", task="value")
    (tmp_path / "runs/file").write_text("x")
    folders = expanded([tmp_path / "runs"])
    names = [str(folder.relative_to(tmp_path / "runs")) for folder in folders]
    assert names == ["javascript:alert(1)", "one", "several/seed-0", "several/seed-1", "value"]
    found = compare(folders[1:], tmp_path / "runs")
    assert found["notes"][0] == "value is left out, since it holds a soft value and no tuned model."
    assert outside(page_of(found)) == [f"{name}/report.html" for name in names[1:-1]]
    links = outside(page_of(compare(folders[:2], tmp_path / "runs")))
    assert links == ["javascript%3Aalert%281%29/report.html", "one/report.html"]
