"""The recipe `utr` from invented data, since the real ones are not in the repository."""

import json
import os
import shlex

import invented
import numpy as np
import pytest
import torch

from difftilt.algorithms.backprop import Backprop
from difftilt.algorithms.ppo import PPO
from difftilt.cli.main import main
from difftilt.conditions import unconditional
from difftilt.domains.utr import model as models
from difftilt.domains.utr import pretrain as pretraining
from difftilt.domains.utr.model import load_oracle, load_split, utr_policy
from difftilt.domains.utr.recipe import load, utr, words
from difftilt.experiment.finetune import make_optimizer
from difftilt.policy import rollout
from difftilt.training.fit import fit
from difftilt.training.settings import Training
from difftilt.transition import one_hot

FILES = {
    "README.md", "config.json", "quality.json", "model.safetensors", "proxy.safetensors", "gold.safetensors",
    "measured.safetensors", "contents.json",
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A user's folders, with invented UTRs and what is made of them."""
    home = tmp_path_factory.mktemp("home")
    invented.utrs(home / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIFFTILT_DATA", str(home / "data"))
        patch.setenv("HOME", str(home))
        patch.setattr(pretraining, "NETWORK", {"width": 8, "kernel": 5, "depth": 2})
        patch.setattr(pretraining, "ORACLE", {"width": 8, "kernel": 5, "depth": 2, "features": 8})
        torch.set_num_threads(1)
        main(shlex.split("pretrain utr --steps 2 --oracle-steps 40 --batch 32 --oracle-rate 0.02"))
        yield home


@pytest.fixture(scope="module")
def weights(home):
    return home / ".cache" / "difftilt" / "models" / "utr"


def fail(words: list[str], capsys) -> str:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 1
    return capsys.readouterr().err


def test_without_data_and_without_weights_one_sentence_helps(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DIFFTILT_DATA", str(tmp_path / "data"))
    for command in (["pretrain", "utr"], ["finetune", "utr"]):
        message = fail(command, capsys)
        assert message.startswith("difftilt: ") and message.count("\n") == 1
        assert "difftilt data import utr PATH" in message and "difftilt data fetch utr" in message
    assert "difftilt pretrain utr" in message
    assert "--weights" in message
    assert not list(tmp_path.iterdir())


def test_pretraining_writes_a_folder_and_states_what_it_is_worth(weights):
    assert {path.name for path in weights.iterdir()} == FILES
    assert [path.name for path in weights.parent.iterdir()] == ["utr"]
    found = json.loads((weights / "quality.json").read_text())
    assert min(r for r, _ in found["pearson"].values()) > 0.5
    assert found["held_out"] == 50
    assert f"{found['pearson']['gold'][0]:.3f}" in (weights / "README.md").read_text()


def test_nothing_learns_from_what_is_held_out_and_no_oracle_from_the_others_half(home, monkeypatch):
    learned = {}

    def recording(train, name):
        def recorded(network, data, *args, **settings):
            learned[f"{name} {len(learned)}"] = data
            return train(network, data, *args, **settings)

        monkeypatch.setattr(pretraining, name, recorded)

    recording(pretraining.explain, "explain")
    recording(pretraining.regress, "regress")
    pretraining.pretrain_utr(home / "again", steps=1, oracle_steps=1, batch=2)
    parts = load_split()
    assert torch.equal(learned["explain 0"], parts.train.sequence)
    assert torch.equal(learned["regress 1"], parts.proxy.sequence)
    assert torch.equal(learned["regress 2"], parts.gold.sequence)


def test_tuning_from_the_command_line_finds_the_weights(home):
    run = home / "run"
    main(shlex.split(f"finetune utr --steps 5 --rounds 2 --batch 16 --evaluate 16 --out {run}"))
    summary = json.loads((run / "summary.json").read_text())
    assert set(summary["gold"]) == {"gold load"}
    assert set(summary["distances"]) == {"3-mers of random UTRs", "3-mers of the best UTRs"}
    assert 0.5 < summary["before"]["diversity"] < 0.8
    lines = (run / "samples" / "after.fasta").read_text().splitlines()
    assert len(lines) == 32 and set("".join(lines[1::2])) <= set("ACGT") and len(lines[1]) == 50
    assert "3-mers of the best UTRs" in (run / "report.html").read_text()


def test_what_the_model_card_states_is_of_the_weights_beside_it(weights):
    found = json.loads((weights / "quality.json").read_text())
    held_out = load_split().held_out
    with torch.no_grad():
        load = load_oracle("gold", weights)(held_out.sequence)
    r = torch.corrcoef(torch.stack([load, held_out.load]))[0, 1].item()
    assert found["pearson"]["gold"][0] == pytest.approx(r, abs=1e-6)
    assert found["entropy"] == pytest.approx(50 * np.log(4), rel=0.04)  # of the 50 held out
    torch.manual_seed(0)
    drawn = rollout(utr_policy(folder=weights), unconditional(500)).sample
    with torch.no_grad():
        mean = load_oracle("gold", weights)(drawn).mean().item()
    assert found["load"]["drawn"][0] == pytest.approx(mean, abs=5 * found["load"]["drawn"][1])


@pytest.mark.parametrize(
    "algorithm", [PPO(minibatches=4), Backprop(minibatches=4, recompute=False)], ids=["ppo", "backprop"]
)
def test_the_proxy_rises_and_gold_does_not_take_part(weights, algorithm):
    training = Training(rounds=6, batch=64, learning_rate=3e-2)
    job = utr(algorithm, alpha=0.01, steps=3, weights=weights, training=training)
    optimizer, _ = make_optimizer(job)
    conds = [unconditional(training.batch)] * training.rounds
    rows = list(fit(job.policy, job.objective, job.algorithm, conds, optimizer, Training(seed=0)))
    rise = rows[-1]["reward"] - rows[0]["reward"]
    assert rise > 4 * rows[0]["reward_se"]
    assert rows[0]["kl_nats"] < 0.5 < rows[-1]["kl_nats"]
    assert job.objective.reward.calls == training.batch * training.rounds
    same = rollout(job.objective.reference, unconditional(50)).sample
    judge = job.gold["gold load"]
    assert torch.equal(judge(same, {}), load_oracle("gold", weights)(same))
    assert not torch.equal(judge(same, {}), load_oracle("proxy", weights)(same))


def test_the_reward_passes_gradients_to_letters(weights):
    x = one_hot(torch.zeros(2, 50, dtype=torch.long), 4).float().requires_grad_()
    load(weights, "proxy")(x, unconditional(2)).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


def test_words_tell_collapsed_samples_from_random_ones(weights):
    measured = models.load_measured(weights)
    one = measured["all"][:1].expand(50, -1)
    random, collapsed = (words(x, measured)["3-mers of the best UTRs"] for x in (measured["best"], one))
    assert random[0] == pytest.approx(1)
    assert collapsed[0] < 0.9


@pytest.mark.data
@pytest.mark.slow
def test_the_real_oracles_know_utrs_they_have_not_seen(tmp_path):
    """About six minutes of one core."""
    if "DIFFTILT_DATA" not in os.environ:
        pytest.skip("set DIFFTILT_DATA to the folder of the data sets")
    pretraining.pretrain_utr(tmp_path / "utr")
    found = json.loads((tmp_path / "utr" / "quality.json").read_text())
    assert min(r for r, _ in found["pearson"].values()) >= 0.93
    drawn, measured = (found["load"][name] for name in ("drawn", "measured"))
    assert drawn[0] == pytest.approx(measured[0], abs=0.3)
    assert found["words"]["drawn"][0] > 0.9
