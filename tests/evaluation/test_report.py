import csv
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from difftilt.evaluation.estimate import Change, Estimate, average, log_best_of
from difftilt.evaluation.optimum import Optimum, ceiling
from difftilt.evaluation.outcome import Outcome
from difftilt.evaluation.plots import curve, histogram
from difftilt.evaluation.report import outcome, write_report
from difftilt.evaluation.run_folder import read_run
from difftilt.evaluation.verdict import findings, headline
from difftilt.evaluation.words import duration, lines

ROUNDS, STEPS, SAMPLES = 60, 8, 512


def grid(images: np.ndarray, columns: int = 16) -> Image.Image:
    """Digits of 8 x 8 pixels side by side, one pixel apart."""
    tiles = np.pad((255 - images * 15.9).astype(np.uint8), ((0, 0), (0, 1), (0, 1)), constant_values=255)
    rows = [np.concatenate(list(tiles[i : i + columns]), axis=1) for i in range(0, len(tiles), columns)]
    return Image.fromarray(np.concatenate(rows))


def table(path: Path, columns: dict[str, np.ndarray]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def numbers(reward: np.ndarray, gold: np.ndarray, kl: float, alpha: float) -> dict:
    se = float(reward.std() / len(reward) ** 0.5)
    return {
        "alpha": alpha,
        "reward": float(reward.mean()),
        "reward_se": se,
        "kl_nats": kl,
        "kl_nats_se": 0.02 * kl,
        "objective": float(reward.mean()) - alpha * kl,
        "objective_se": se,
        "gold": {"p(target)": float(gold.mean())},
        "gold_se": {"p(target)": float(gold.std() / len(gold) ** 0.5)},
        "diversity": 3.4,
        "reward_calls": ROUNDS * 256,
        "network_calls": {"forward": 3_100_000, "backward": 1_550_000},
        "rounds": ROUNDS,
        "seconds": 148.3,
        "dropped": 0,
    }


def write_run(folder: Path, alpha: float = 0.1) -> Path:
    """The folder of a finished run: "make threes", with made-up numbers of the right size."""
    rng = np.random.default_rng(0)
    (folder / "samples").mkdir(parents=True)
    algorithm = {"name": "ppo", "clip": 0.2, "epochs": 2, "minibatches": 4, "kl": "both"}
    info = {
        "recipe": "digits",
        "settings": {"alpha": alpha, "reward": "class", "target": 3, "batch": 256, "algorithm": algorithm},
        "seed": 0,
        "versions": {"difftilt": "0.1.0", "torch": "2.13.0", "python": "3.12.4"},
        "device": "cpu",
        "processes": 1,
        "threads": 2,
        "git_revision": None,
        "created": "2026-11-21T08:00:00Z",
        "command": "difftilt finetune digits --target 3 --alpha 0.1 algorithm:ppo",
    }
    (folder / "run.json").write_text(json.dumps(info))
    before = -rng.gamma(2.5, 2.2, SAMPLES) * (rng.random(SAMPLES) > 0.1)
    after = -rng.gamma(0.5, 0.12, SAMPLES)
    gold = {"before": np.exp(before * rng.uniform(0.5, 1.2, SAMPLES)), "after": np.exp(after * 1.3)}
    for name, reward in (("before", before), ("after", after)):
        table(folder / "samples" / f"{name}.csv", {"reward": reward, "gold: p(target)": gold[name]})
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8)
    grid(images[:128]).save(folder / "samples" / "before.png")
    grid(images[labels == 3][:128]).save(folder / "samples" / "after.png")
    with (folder / "metrics.jsonl").open("w") as file:
        for i in range(ROUNDS):
            done = 1 - np.exp(-i / 8)
            reward = before.mean() * (1 - done) + after.mean() * done + 0.2 * rng.normal() * (1.1 - done)
            kl, se = 2.61 * done**2 + 0.02 * rng.random(), 0.28 * (1 - done) + 0.02
            row = {"reward": reward, "reward_se": se, "kl_nats": kl, "kl_nats_se": 0.04}
            row |= {"objective": reward - alpha * kl, "objective_se": se, "reward_calls": 256 * (i + 1)}
            for step in range(STEPS):
                noise = {"loss": float(rng.normal()), "grad_norm": float(rng.random()), "clipped": 0.1}
                file.write(json.dumps({"round": i, "step": i * STEPS + step, **row, **noise}) + "\n")
    summary = numbers(after, gold["after"], 2.61, alpha) | {"diversity": 2.1}
    summary["before"] = numbers(before, gold["before"], 0.0, alpha)
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_run(tmp_path / "threes")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with its page, not to be changed."""
    folder = write_run(tmp_path_factory.mktemp("runs") / "threes")
    write_report(folder)
    return folder


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def page_of(folder: Path) -> str:
    return write_report(folder).read_text(encoding="utf-8")


class Elements(HTMLParser):
    """Every element of a page with its attributes, and the text outside of style sheets."""

    def __init__(self, page: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def outside(page: str) -> list[str]:
    """Whatever a browser would fetch, or run, from this page."""
    elements = Elements(page).found
    wanted = [
        v or "" for _, attrs in elements for k, v in attrs.items() if k in ("src", "href", "xlink:href")
    ]
    wanted += re.findall(r"url\(([^)]*)\)", page)
    found = [target for target in wanted if not target.startswith(("data:image/", "#"))]
    found += [tag for tag, _ in elements if tag in ("script", "link", "iframe", "object", "embed", "base")]
    found += [name for _, attrs in elements for name in attrs if name.startswith("on")]
    return found + re.findall(r"@import|https?:", page)


def test_page_is_self_contained_and_small(finished: Path):
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert outside(page) == []
    assert "width=device-width" in page and "prefers-color-scheme: dark" in page
    assert page.count("data:image/png;base64,") == 2 and page.count("<svg") == 6
    assert len(page.encode()) < 300_000


def test_the_check_for_outside_resources_can_fail():
    bad = (
        "<img src=//x.org/a.png onerror=f()><script></script><style>@import 'b'; a { b: url(c.png) }</style>"
    )
    assert len(outside(bad)) == 5


def test_page_shows_what_the_folder_says(finished: Path):
    page = (finished / "report.html").read_text(encoding="utf-8")
    summary = json.loads((finished / "summary.json").read_text())
    assert Estimate(summary["reward"], summary["reward_se"]).mean in page
    assert Estimate(summary["before"]["reward"], summary["before"]["reward_se"]).mean in page
    for text in ("3,100,000", "15,360", "2 min 28 s", "algorithm.clip", "2.13.0", "--target 3", "p(target)"):
        assert text in page
    assert "missing" not in page


def test_same_folder_same_page(finished: Path):
    assert (finished / "report.html").read_text(encoding="utf-8") == page_of(finished)
    assert not list(finished.glob(".report*"))


def test_a_failed_write_leaves_the_old_page(folder: Path, monkeypatch: pytest.MonkeyPatch):
    (folder / "report.html").write_text("the old page")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(folder)
    assert (folder / "report.html").read_text() == "the old page"
    assert not list(folder.glob(".report*"))


def test_everything_from_a_user_is_escaped(tmp_path: Path):
    evil = "<script>alert(1)</script><img src=x onerror=alert(1)>$\\frac{1$"
    folder = write_run(tmp_path / "<script>alert(1)<")
    edit(
        folder / "run.json",
        **{name: evil for name in ("recipe", "command", "created", "device")},
        settings={evil: evil, "prompt": [evil], "alpha": 0.1},
        versions={evil: evil},
    )
    score = {evil: 0.5}
    edit(
        folder / "summary.json",
        gold=score,
        before={"gold": score},
        distances={evil: [1, 0.1]},
        distances_note=evil,
    )
    for when in ("before", "after"):
        table(folder / "samples" / f"{when}.csv", {"reward": np.arange(3), f"gold: {evil}": np.arange(3)})
        (folder / "samples" / f"{when}<img src=x onerror=alert(1)>.png").write_bytes(b"")
    page = page_of(folder)
    assert outside(page) == []
    assert page.count("&lt;script&gt;alert(1)") >= 12


@pytest.mark.parametrize(
    "name", ["summary.json", "metrics.jsonl", "samples/before.csv", "samples/after.csv", "samples/after.png"]
)
def test_a_missing_piece_is_named(folder: Path, name: str):
    (folder / name).unlink()
    page = page_of(folder)
    assert Path(name).name in page and "missing" in page
    assert ("not finished" in page) == (name == "summary.json")


def test_a_run_that_only_began_has_a_page(folder: Path):
    for path in [p for p in folder.rglob("*") if p.is_file() and p.name != "run.json"]:
        path.unlink()
    page = page_of(folder)
    assert "This run is not finished" in page and "algorithm.clip" in page and "<svg" not in page


def test_an_unfinished_run_shows_its_rounds(folder: Path):
    (folder / "summary.json").unlink()
    rows = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join(rows[: 20 * STEPS]) + "\n" + rows[-1][:30])
    page = page_of(folder)
    last = json.loads(rows[20 * STEPS - 1])
    assert Estimate(last["reward"], last["reward_se"]).mean in page and "first round" in page
    assert "1 unreadable row of metrics.jsonl" in page
    before = {"reward": -5.25, "reward_se": 0.01, "gold": {}}
    (folder / "before.json").write_text(json.dumps(before))
    page = page_of(folder)
    assert Estimate(-5.25, 0.01).mean in page and "first round" not in page


def test_rounds_are_shown_once_however_many_steps_they_took(finished: Path):
    rounds = read_run(finished).rounds
    assert [row["round"] for row in rounds] == list(range(ROUNDS))


def test_a_damaged_picture_is_said_to_be_unreadable(folder: Path):
    path = folder / "samples" / "after.png"
    path.write_bytes(path.read_bytes()[:200])
    assert "after.png is missing or not readable" in page_of(folder)


def test_large_pictures_are_compressed_and_small_ones_kept_sharp(folder: Path):
    noise = np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8)
    for when in ("before", "after"):
        smooth = Image.fromarray(noise).resize((1200, 1200), Image.Resampling.BILINEAR)
        smooth.save(folder / "samples" / f"{when}-large.png", compress_level=0)
    page = page_of(folder)
    assert len(page.encode()) < 1_500_000
    images = [attrs for tag, attrs in Elements(page).found if tag == "img"]
    assert [("small" in (image.get("class") or "")) for image in images] == [False, False, True, True]


def test_what_is_no_run_is_refused_in_one_sentence(tmp_path: Path):
    with pytest.raises(ValueError, match=r"is not a run folder, since it has no run\.json") as error:
        write_report(tmp_path / "nothing")
    assert "\n" not in str(error.value)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json' is not valid JSON"):
        write_report(tmp_path)
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(ValueError, match="holds a list, not a JSON object"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def rise(before: float, after: float, se: float = 0.01) -> Change:
    return Change(Estimate(before, se), Estimate(after, se))


GOOD = Outcome(
    alpha=0.1,
    reward=rise(-4, -0.1),
    kl=Estimate(2.5, 0.02),
    objective=rise(-4, -0.35),
    gold={"judge": rise(0.1, 0.98)},
    diversity=rise(3, 2),
    rounds=[Estimate(-4 * math.exp(-i / 2), 0.01) for i in range(40)],
    optimum=Optimum(Estimate(-0.25, 0.01)),
    target_kl=2.6,
    ess=[0.4] * 40,
    samples=512,
)
RISING = [Estimate(i / 40, 0.01) for i in range(40)]
RULES = {
    "raised the mean reward from": {},
    "rose from 0.100 ± 0.010 to 0.980": {},
    "keeping the best of": {},
    "J, the reward less that price, rose": {},
    "97% of the way": {},
    "mean reward fell": {"reward": rise(1, 0)},
    "mean reward shows no clear change": {"reward": rise(1, 1.02)},
    "mean reward has no error bar": {"reward": rise(1, 2, math.nan)},
    "No gold score was measured": {"gold": {}},
    "“judge” fell, from": {"gold": {"judge": rise(0.9, 0.1)}},
    "“judge” did not clearly rise": {"gold": {"judge": rise(0.5, 0.51)}},
    "“judge” fell from": {"gold": {"judge": rise(0.9, 0.1)}, "reward": rise(1, 1)},
    "now the reward is 0.900 ± 0.014 higher: that part is over-optimisation": {
        "gold": {"judge": rise(-4.01, -1)}
    },
    "hardly moved": {"kl": Estimate(0.01, 0.01)},
    "A KL above 10 nats is large: the pretrained model would hardly ever take these paths. A larger": {
        "kl": Estimate(11, 0.1)
    },
    "costs next to nothing here, so the samples collapse": {"kl": Estimate(11, 0.1), "alpha": 1e-6},
    "That is the KL asked for, 2.6 nats, which alpha was moved to 0.1 for": {},
    "above its target of 2": {"target_kl": 2},
    "below its target of 3": {"target_kl": 3},
    "at most 3.0% of the samples carried the weight: first try a larger alpha": {"ess": [0.5, 0.03, 0.02]},
    "The chain remembers its start": {"warnings": ["The chain remembers its start."]},
    "the KL costs more than the reward gained": {"objective": rise(-4, -5)},
    "so far the KL costs more": {"objective": rise(-4, -5), "finished": False},
    "J, the reward less the price of the KL, shows no clear change": {"objective": rise(-4, -4.01)},
    "which no policy can exceed": {"objective": rise(-4, -0.1)},
    "Diversity fell": {"diversity": rise(3, 1.4)},
    "The largest family, of kin, is 40% now; that of the pretrained model was 10%": {
        "family": rise(0.1, 0.4),
        "family_name": "of kin",
    },
    "have collapsed": {"diversity": rise(3, 0.2)},
    "still rising at the end": {"rounds": RISING},
    "was falling at the end": {"rounds": RISING[::-1]},
    "Only 30 samples": {"samples": 30},
    "7 samples were dropped": {"dropped": 7},
    "The run is not finished": {"finished": False},
}


@pytest.mark.parametrize("family", [rise(0.1, 0.2), rise(0.4, 0.41), rise(0.6, 0.4)])
def test_a_family_that_is_small_or_did_not_grow_is_no_word_worth(family: Change):
    assert "family" not in said(replace(GOOD, family=family))


def said(outcome: Outcome) -> str:
    return " ".join(finding.text for finding in findings(outcome)).replace("\N{NO-BREAK SPACE}", " ")


@pytest.mark.parametrize("phrase", RULES)
def test_each_rule_speaks_when_it_should(phrase: str):
    assert phrase in said(replace(GOOD, **RULES[phrase]))


@pytest.mark.parametrize("phrase", [phrase for phrase, change in RULES.items() if change])
def test_each_rule_is_silent_on_a_good_run(phrase: str):
    assert phrase not in said(GOOD)


@pytest.mark.parametrize(
    ("phrase", "change"),
    [
        ("raised the mean reward", {"reward": rise(-4, -3.98)}),
        ("which training never saw, rose", {"gold": {"judge": rise(0.5, 0.52)}}),
        ("less that price, rose", {"objective": rise(-4, -4.02)}),
        ("of the way", {"objective": rise(-4, -4.02)}),
        ("keeping the best of", {"kl": Estimate(0.01, 0.01)}),
    ],
)
def test_no_achievement_is_claimed_within_the_error_bars(phrase: str, change: dict):
    assert phrase in said(GOOD) and phrase not in said(replace(GOOD, **change))


def test_a_trend_needs_to_be_clear_and_to_matter():
    noisy = [number._replace(se=2.0) for number in RISING]
    slight = [Estimate(-4.0, 0.001)] + [Estimate(0.0005 * i, 0.001) for i in range(39)]
    assert "at the end" not in said(replace(GOOD, rounds=noisy))
    assert "at the end" not in said(replace(GOOD, rounds=slight))


@pytest.mark.parametrize(
    ("line", "change"),
    [
        ("Better on J, and gold agrees", {}),
        ("Better on J, and gold does not follow", {"gold": {"judge": rise(0.5, 0.5)}}),
        ("Better on J, and gold agrees in part", {"gold": {"judge": rise(-4.01, -1)}}),
        ("Better on J, and gold agrees", {"gold": {"judge": rise(-4.1, -1)}}),  # they never agreed
        ("Better on J, and gold agrees", {"gold": {"judge": rise(-4.01, -0.2)}}),  # by 2 % of the rise
        ("Better on J", {"gold": {}}),
        ("Better on J", {"gold": {"judge": rise(0.5, 0.5)}, "is_proxy": False}),
        ("The samples have collapsed", {"diversity": rise(3, 0.2)}),
        ("The reward rose while a gold score fell", {"gold": {"a": rise(0, 1), "judge": rise(0.5, 0.1)}}),
        ("The KL costs more than the reward gained", {"objective": rise(-4, -5)}),
        ("The reward fell", {"objective": rise(-4, -4), "reward": rise(0, -1)}),
        ("No clear gain", {"objective": rise(-4, -4)}),
        ("This run is not finished", {"finished": False}),
    ],
)
def test_headline_gives_the_worst_news(line: str, change: dict):
    assert headline(replace(GOOD, **change)) == line


def test_what_an_algorithm_adds_to_its_rows_does_not_disturb(folder: Path):
    before = page_of(folder)
    rows = [json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()]
    odd = {"log_z": 3.0, "residual": None, "ess": 0.7, "alpha": 0.1}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row | odd) + "\n" for row in rows))
    assert page_of(folder) == before


def test_a_run_with_a_target_kl_shows_the_target_and_the_alpha_that_met_it(folder: Path):
    info = json.loads((folder / "run.json").read_text())
    edit(folder / "run.json", settings=info["settings"] | {"target_kl": 2.5})
    edit(folder / "summary.json", alpha=0.3, warnings=["<Mind> the start."])
    rows = [json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()]
    moved = [row | {"alpha": 0.1 + 0.2 * row["round"] / (ROUNDS - 1)} for row in rows]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in moved))
    page = page_of(folder)
    for text in (
        "of 2.5 asked for",
        "target KL, 2.5 nats",
        "alpha, moved to meet",
        "&lt;Mind&gt; the start.",
    ):
        assert text in page
    assert "which alpha was moved to 0.3 for" in page and page.count("<svg") == 7

    found = outcome(read_run(folder)).rounds
    assert [number.value for number in found] == pytest.approx(
        [row["reward"] - 0.3 * row["kl_nats"] for row in rows[::STEPS]]
    )


def test_ceiling_is_the_optimum_of_a_gaussian_reward():
    spread, alpha, n = 0.8, 1.5, 100_000
    rewards = spread * np.random.default_rng(0).standard_normal(n)
    best = ceiling(list(rewards), alpha)
    assert best is not None and best.objective.se < 0.005
    assert abs(best.objective.value - spread**2 / (2 * alpha)) < 4 * best.objective.se
    far = ceiling(list(rewards), 1e5)
    assert far is not None and far.objective.value == pytest.approx(rewards.mean(), abs=1e-4)


def test_ceiling_is_silent_where_few_samples_carry_it():
    assert ceiling([0.0] * 500 + [5.0] * 3, 0.1) is None
    assert ceiling([], 0.1) is None
    assert ceiling([0.0] * 500 + [5.0] * 30, 0.1) is not None


@pytest.mark.parametrize("n", [2, 10, 1000])
def test_best_of_n_inverts_its_kl(n: int):
    assert math.exp(log_best_of(math.log(n) - (n - 1) / n)) == pytest.approx(n, rel=1e-6)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (Estimate(0.97312, 0.0041), "0.973 ± 0.004"),
        (Estimate(-5.2134, 0.15), "\N{MINUS SIGN}5.21 ± 0.15"),
        (Estimate(12345.6, 42), "12346 ± 42"),
        (Estimate(0.5), "0.5"),
        (Estimate(0, 0), "0"),
    ],
)
def test_numbers_show_as_many_digits_as_their_error_bar_supports(number: Estimate, text: str):
    assert str(number).replace("\N{NO-BREAK SPACE}", " ") == text


def test_differences_add_their_errors_in_squares():
    difference = Estimate(1, 0.3) - Estimate(0, 0.4)
    assert difference.se == pytest.approx(0.5)
    assert difference.direction == 0 and (Estimate(1.01, 0.3) - Estimate(0, 0.4)).direction == 1
    assert (Estimate(0, 0.3) - Estimate(1.01, 0.4)).direction == -1


def test_charts_of_long_runs_stay_small():
    rounds = [float(i) for i in range(20_000)]
    assert len(curve(rounds, rounds, rounds)) < 30_000


@pytest.mark.parametrize("values", [[], [1.0], [2.0] * 9, [math.nan, 1.0, math.inf]])
def test_charts_survive_odd_scores(values: list[float]):
    assert histogram(values, values).startswith("<svg")
    assert curve(values, values, values, before=1.0, limit=2.0).startswith("<svg")


def way_of(before: np.ndarray, after: float, alpha: float) -> float:
    """(J - J_pre) / (J* - J_pre) from rewards of the pretrained model, without the library."""
    best = alpha * np.log(np.exp(before / alpha).mean())
    return (after - before.mean()) / (best - before.mean())


@pytest.mark.parametrize("share", [0.3, 0.97])
def test_the_error_of_the_way_to_the_optimum_is_its_scatter_over_repetitions(share: float):
    """J before and J* come from the same samples: taken as independent, the error is a fifth too small."""
    rng, alpha, n, noise = np.random.default_rng(0), 1.0, 400, 0.003
    draws = [rng.standard_normal(n) for _ in range(400)]
    afters = share * 0.5 + noise * rng.standard_normal(len(draws))
    scatter = np.std([way_of(before, after, alpha) for before, after in zip(draws, afters, strict=True)])
    stated = []
    for before, after in zip(draws, afters, strict=True):
        best = ceiling(list(before), alpha)
        assert best is not None
        was = Estimate(float(before.mean()), float(before.std() / n**0.5))
        found = best.way(Change(was, Estimate(float(after), noise)))
        assert found is not None and found.value == pytest.approx(way_of(before, after, alpha))
        stated.append(found.se)
    assert np.mean(stated) == pytest.approx(scatter, rel=0.15)


def test_what_is_known_exactly_is_the_only_optimum_of_the_page(folder: Path):
    summary = json.loads((folder / "summary.json").read_text())
    start = summary["before"]["objective"]
    edit(
        folder / "summary.json",
        exact={"J": start + 3.0},
        optimum={"J": start + 4.0},
        before=summary["before"] | {"exact": {"J": start}},
    )
    estimated = ceiling(read_run(folder).samples["before"]["reward"], 0.1)
    assert estimated is not None
    page = page_of(folder)
    assert "75% of the way to the best possible J" in page and "known exactly" in page
    assert estimated.objective.mean not in page and "estimated from the pretrained" not in page
    found = outcome(read_run(folder))
    assert found.objective == Change(Estimate(start, 0.0), Estimate(start + 3.0, 0.0))


def test_an_optimum_at_another_alpha_is_not_that_of_the_run(folder: Path):
    edit(
        folder / "summary.json",
        alpha=0.3,
        before={"alpha": 0.1, "optimum": {"J": 17.0}, "exact": {"J": 16.0}},
    )
    found = outcome(read_run(folder))
    assert found.optimum is not None and not found.optimum.exact
    assert "17" not in re.findall(r"<td>(\d+)</td>", page_of(folder))


def test_rounding_does_not_lift_an_exact_j_above_its_optimum():
    best = Optimum(Estimate(0.45, 0.0), exact=True)
    assert not best.exceeded_by(Estimate(0.45 + 1e-9, 0.0)) and best.exceeded_by(Estimate(0.46, 0.0))


def test_a_score_is_expected_to_follow_only_the_reward_that_stands_for_it():
    still, lost = ({"judge": rise(0.5, after)} for after in (0.5, 0.1))
    assert "did not clearly rise" in said(replace(GOOD, gold=still))
    assert "did not clearly rise" not in said(replace(GOOD, gold=still, is_proxy=False))
    assert "fell" in said(replace(GOOD, gold=lost, is_proxy=False))


def test_only_a_reward_that_stands_for_a_gold_score_is_called_a_proxy(folder: Path):
    assert "proxy</span>" not in page_of(folder)
    edit(folder / "summary.json", proxy_for=["p(target)"])
    assert page_of(folder).count("proxy</span>") == 3  # the card, the histogram and the guide


def test_the_best_samples_are_listed_once_with_how_often_they_were_drawn(folder: Path):
    assert "The best samples" not in page_of(folder)
    for when, texts in (("before", ["ACGT", "TTTT"]), ("after", ["ACGT", "<b>", "ACGT", "GGGG"])):
        scores = {"sample": np.array(texts), "reward": np.array([2.0, 1.0, 2.0, 3.5])[: len(texts)]}
        table(folder / "samples" / f"{when}.csv", scores)
    page = page_of(folder)
    part = page[page.index("The best samples") : page.index("<h2>Training")]
    cells = re.findall(r"<t[dh](?: scope=\"row\")?>(.*?)</t[dh]>", part)
    assert cells == ["GGGG", "3.5", "1", "0", "ACGT", "2", "2", "1", "&lt;b&gt;", "1", "1", "0"]
    rows = {"sample": texts, "reward": [2.0, 1.0, 2.0, 3.5], "cluster": ["G", "", "G", "G"]}
    table(folder / "samples" / "after.csv", {name: np.array(column) for name, column in rows.items()})
    page = page_of(folder)
    part = page[page.index("The best samples") : page.index("<h2>Training")]
    assert re.findall(r"<t[dh](?: scope=\"row\")?>(.*?)</t[dh]>", part) == ["GGGG", "3.5", "3", "0"]


@pytest.mark.parametrize(
    ("command", "parts"),
    [
        ("difftilt finetune digits --alpha 0.1", ["difftilt", "finetune", "digits", "--alpha 0.1"]),
        ("a --overwrite --gc 0.2 0.8 b:c", ["a", "--overwrite", "--gc 0.2", "0.8", "b:c"]),
        (None, []),
    ],
)
def test_an_option_and_its_value_stay_on_one_line(command: str | None, parts: list[str]):
    assert lines(command) == parts


def test_settings_are_folded(finished: Path):
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert page.index("<details>") < page.index("algorithm.clip") < page.index("</details>")


def test_times_are_two_units_and_no_damaged_number_ends_a_page():
    assert [duration(x) for x in (0.1234, 61, 7200, 86399.9)] == [
        "0.123 s",
        "1 min 01 s",
        "2 h 00 min",
        "24 h 00 min",
    ]
    assert [duration(float(x)) for x in ("inf", "-inf", "nan")] == ["inf s", "-inf s", "nan s"]
    assert average([Estimate(1.0, 1e308)] * 4).se == math.inf
    objective = Change(Estimate(0.0, 1e308), Estimate(1.0, 1e308))
    way = Optimum(Estimate(2.0, 1e308)).way(objective)
    assert way is not None and way.se == math.inf
