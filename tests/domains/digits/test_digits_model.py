import json
import shutil
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from difftilt.domains.digits import pretrain as recipe
from difftilt.domains.digits.model import (
    NULL,
    SHAPE,
    Classifier,
    DiT,
    asked,
    digits_policy,
    load_classifier,
    load_split,
    sampling_schedule,
    state_of,
    training_schedule,
)
from difftilt.networks.bundle import shipped_folder
from difftilt.policy import rollout
from difftilt.training.pretrain import classify, denoise, noisy, shifted, warm_cosine


@pytest.fixture(scope="module")
def split():
    return load_split()


def small() -> DiT:
    torch.manual_seed(0)
    network = DiT(patch=4, width=16, depth=1, heads=2, expand=2)
    torch.nn.init.normal_(network.out.weight, std=0.1)
    return network


def test_the_parts_are_disjoint_stratified_and_always_the_same(split):
    parts = (split.proxy, split.gold, split.held_out)
    assert [len(part.label) for part in parts] == [718, 719, 360]
    rows = [tuple(x.flatten().tolist()) for part in parts for x in part.image]
    assert len(rows) == 1797
    overlap = len(rows) - len(set(rows))
    assert overlap == 0
    for part in parts:
        share = part.label.bincount(minlength=10) / len(part.label)
        assert (share - 0.1).abs().max() < 0.01
    assert torch.equal(load_split().held_out.image, split.held_out.image)


def test_the_images_and_their_parts_are_those_of_scikit_learn(split):
    datasets = pytest.importorskip("sklearn.datasets")
    train_test_split = pytest.importorskip("sklearn.model_selection").train_test_split
    pixels, label = datasets.load_digits(return_X_y=True)
    image = torch.as_tensor(pixels, dtype=torch.float32).view(-1, *SHAPE) / 16
    label = torch.as_tensor(label)
    rest, held_out = train_test_split(range(len(label)), test_size=0.2, stratify=label, random_state=0)
    proxy, gold = train_test_split(rest, test_size=0.5, stratify=label[rest], random_state=0)
    for part, rows in ((split.proxy, proxy), (split.gold, gold), (split.held_out, held_out)):
        assert torch.equal(part.image, image[rows]) and torch.equal(part.label, label[rows])
        assert (part.image.dtype, part.label.dtype) == (torch.float32, torch.int64)


def test_images_have_17_grey_levels_from_paper_to_ink(split):
    image = split.train.image
    assert image.shape[1:] == SHAPE
    assert torch.equal(image.unique(), torch.arange(17) / 16)
    assert torch.equal(state_of(image).unique(), torch.arange(17) / 8 - 1)


def test_the_network_hears_the_label_and_the_time():
    network, x = small(), torch.randn(2, *SHAPE)
    time, cond = torch.tensor([100, 100]), asked(2)
    base = network(x, time, cond)
    assert (network(x, time, asked(2, 3)) - base).abs().amax((1, 2, 3)).min() > 1e-3
    assert (network(x, time + 400, cond) - base).abs().amax((1, 2, 3)).min() > 1e-3
    rows = network(x.flip(0), time, cond).flip(0)
    torch.testing.assert_close(rows, base)


def test_the_network_puts_every_patch_where_it_came_from():
    """Without attention, each patch depends on itself alone."""
    network = small()
    torch.nn.init.zeros_(network.get_parameter("blocks.0.merge.weight"))
    x = torch.randn(1, *SHAPE)
    changed = x.clone()
    changed[0, 0, 5, 1] += 1
    time, cond = torch.tensor([100]), asked(1)
    moved = (network(changed, time, cond) - network(x, time, cond))[0, 0].abs() > 1e-6
    assert moved[4:, :4].all()
    assert not moved[:4].any()
    assert not moved[:, 4:].any()


def test_a_condition_without_label_is_refused():
    with pytest.raises(ValueError, match="label"):
        digits_policy()(torch.zeros(2, *SHAPE), torch.ones(2).long(), {"none": torch.zeros(2)})


@pytest.mark.parametrize("steps", [1, 7, 16, 969])
def test_sampling_uses_levels_seen_in_training(steps):
    grid, levels = sampling_schedule(steps), training_schedule()
    assert grid.steps == steps
    assert torch.isin(grid.time, levels.time).all()
    assert grid.time[-1] == levels.time[-1]
    assert 0.05 < grid.sigma[0] < 0.0625  # visible, but less than half a grey level


@pytest.mark.parametrize("steps", [0, 970])
def test_impossible_numbers_of_steps_are_refused(steps):
    with pytest.raises(ValueError, match="steps must be"):
        sampling_schedule(steps)


def test_densities_do_not_see_the_cut_of_decode():
    torch.manual_seed(0)
    path = rollout(digits_policy(4), asked(64))
    assert path.sample.min() == 0 and path.sample.max() <= 1
    assert (path.sample - (path.states[-1] + 1) / 2)[path.states[-1].abs() <= 1].abs().max() < 1e-6
    assert path.states[-1].abs().max() > 1
    step = digits_policy(4)(path.states[-2], torch.ones(64).long(), path.cond)
    torch.testing.assert_close(step.log_prob(path.states[-1]), path.log_prob[-1], rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["proxy", "gold"])
def test_classifiers_know_real_digits_they_have_not_seen(split, name):
    classifier = load_classifier(name)
    logits = classifier(split.held_out.image)
    assert (logits.argmax(1) == split.held_out.label).float().mean() >= 0.97
    assert F.cross_entropy(logits, split.held_out.label) < 0.15
    assert not any(p.requires_grad for p in classifier.parameters())
    assert not classifier.training


@torch.no_grad()
def test_the_model_draws_the_digit_that_is_asked_for():
    torch.manual_seed(0)
    label = torch.arange(10).repeat_interleave(20)
    sample = rollout(digits_policy(), {"label": label}).sample
    probs = load_classifier("gold")(sample).softmax(1)
    assert (probs.argmax(1) == label).double().mean() >= 0.95
    assert probs.gather(1, label[:, None]).mean() > 0.85


@torch.no_grad()
def test_unconditional_samples_have_every_class():
    torch.manual_seed(0)
    classes = (
        load_classifier("gold")(rollout(digits_policy(), asked(300)).sample).argmax(1).bincount(minlength=10)
    )
    assert classes.min() >= 9  # 30 expected; 4 standard deviations below are 9
    assert classes.max() <= 60


def test_the_weights_are_small_and_free_of_code():
    files = [path for path in shipped_folder("digits").iterdir() if path.suffix != ".md"]
    assert {path.name for path in files} == {
        "config.json",
        "contents.json",
        "gold.safetensors",
        "model.safetensors",
        "proxy.safetensors",
    }
    assert sum(path.stat().st_size for path in files) <= 2_000_000


def test_an_unknown_classifier_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(ValueError, match="'proxy' and 'gold'"):
        load_classifier("silver")
    with pytest.raises(ValueError, match=r"config\.json"):
        digits_policy(folder=tmp_path)


def test_the_card_states_what_is_measured():
    """The card beside the shipped weights holds the numbers that the shipped weights give."""
    made = json.loads((shipped_folder("digits") / "config.json").read_text())["made"]
    text = (shipped_folder("digits") / "README.md").read_text()
    assert str(made["settings"]["steps"]) in text
    proxy = recipe.accuracy("proxy", shipped_folder("digits"), load_split().held_out)
    assert f"{proxy['accuracy'][0]:.3f}" in text
    assert f"{proxy['nats']:.3f}" in text


def test_pretraining_writes_a_folder_that_loads_and_replaces_the_old_one(tmp_path, monkeypatch):
    out = tmp_path / "digits"
    shutil.copytree(shipped_folder("digits"), out)
    (out / "old.txt").write_text("of the last run")
    contents = json.loads((out / "contents.json").read_text())
    contents["files"].append("old.txt")
    (out / "contents.json").write_text(json.dumps(contents))
    monkeypatch.setattr(recipe, "quality", partial(recipe.quality, steps=1))
    recipe.pretrain_digits(out, steps=2, batch=8, classifier_steps=2)
    names = {path.name for path in shipped_folder("digits").iterdir()} | {"quality.json"}
    assert {path.name for path in out.iterdir()} == names
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]
    assert rollout(digits_policy(2, folder=out), asked(3)).sample.shape == (3, *SHAPE)


def test_denoising_learns_and_repeats_itself(split):
    def train() -> tuple[list[float], DiT]:
        network = small()
        policy = recipe.chain_of(network, training_schedule())
        optimizer = torch.optim.Adam(network.parameters(), 3e-3)
        data, cond = state_of(split.proxy.image), {"label": split.proxy.label}
        null = {"label": torch.tensor(NULL)}
        rows = denoise(policy, data, cond, optimizer, steps=60, batch=64, null=null)
        return [row["loss"] for row in rows], network

    (losses, network), (again, twin) = train(), train()
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    assert losses == again
    for one, other in zip(network.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("drop", [0.0, 1.0])
def test_dropped_labels_train_the_null_class_alone(split, drop):
    network = small()
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    data, cond = state_of(split.proxy.image), {"label": split.proxy.label}
    before = network.label.weight.detach().clone()
    policy, null = recipe.chain_of(network, training_schedule()), {"label": torch.tensor(NULL)}
    list(denoise(policy, data, cond, optimizer, steps=2, batch=64, null=null, drop=drop))
    moved = (network.label.weight - before).abs().sum(1) > 0
    assert moved[NULL] == (drop == 1)
    assert moved[:NULL].any() == (drop == 0)


def test_a_classifier_learns(split):
    torch.manual_seed(0)
    classifier = Classifier(8, 16)
    optimizer = torch.optim.Adam(classifier.parameters(), 3e-3)
    rows = list(classify(classifier, split.proxy.image, split.proxy.label, optimizer, steps=60, batch=64))
    assert rows[0]["loss"] > 2
    assert rows[-1]["loss"] < 1.2


def test_shifts_move_the_picture_by_a_pixel_at_most():
    torch.manual_seed(0)
    image = torch.full((200, 1, 8, 8), -1.0)
    image[:, 0, 3, 4] = 1
    moved = shifted(image, fill=-1.0)
    places = (moved[:, 0] == 1).nonzero()
    assert len(places) == 200
    assert set(map(tuple, places[:, 1:].tolist())) == {(r, c) for r in (2, 3, 4) for c in (3, 4, 5)}
    corner = torch.full((200, 1, 8, 8), -1.0)
    corner[:, 0, 0, 0] = 1
    assert (shifted(corner, fill=-1.0).unique() == torch.tensor([-1.0, 1.0])).all()
    assert 0 < (shifted(corner, fill=-1.0).amax((1, 2, 3)) == -1).float().mean() < 1


def test_noise_has_the_stated_deviation():
    torch.manual_seed(0)
    noise = noisy(torch.zeros(20_000, 64), 0.4)
    assert noise.square().mean().item() == pytest.approx(0.4**2 / 3, rel=0.02)
    assert noise.std(1).max() < 0.4 * 1.5


def test_the_learning_rate_rises_and_then_falls_to_zero():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0)
    schedule, rates = warm_cosine(optimizer, 100), []
    for _ in range(100):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == rates[4] > 0.99
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[-1] < 1e-3
