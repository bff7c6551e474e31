"""The recipes of short sequences: what ships, what is exact, what is refused."""

import json
from dataclasses import replace

import pytest
import torch

from difftilt.cli.main import main
from difftilt.conditions import unconditional
from difftilt.data.landscape import load_landscape, make_landscape
from difftilt.data.vocabulary import DNA, PROTEIN, spell
from difftilt.domains.landscape import pretrain as pretrain_landscape
from difftilt.domains.landscape.model import best_seen, landscape_policy, pretrain_command
from difftilt.domains.landscape.recipe import dna
from difftilt.exact import landscape as exact
from difftilt.experiment.job import Training
from difftilt.objective import Objective
from difftilt.policy import rollout

SMALL = Training(rounds=2, batch=32, evaluate=32)


@pytest.fixture(scope="module")
def shipped():
    return dna(training=SMALL)


def test_the_shipped_model_is_that_of_its_card(shipped):
    """Weights, card and landscape belong together: the KL to the data is computed anew."""
    table = load_landscape("six6")
    law = exact.evaluate(shipped.objective, shipped.policy, table.score).law
    data = torch.zeros_like(law)
    data[table.lower_half()] = 1 / len(table.lower_half())
    path = pretrain_landscape.default_folder("six6") / "quality.json"
    stated = json.loads(path.read_text())
    assert exact.kl(data, law).item() == pytest.approx(stated["kl_nats"], rel=1e-4)
    assert law[table.score > best_seen(table)].sum().item() == pytest.approx(stated["above"], rel=1e-4)
    assert stated["kl_nats"] < 0.6 * stated["uniform_kl_nats"]  # it learned something
    assert (path.parent / "model.safetensors").stat().st_size < 1e6


def test_exact_numbers_are_those_of_the_landscape(shipped):
    assert shipped.view.exact is not None
    assert shipped.view.optimum is not None
    found, best = shipped.view.exact(shipped.policy), shipped.view.optimum()
    assert found.keys() == best.keys()
    assert found["path KL to the pretrained model, nats"] == pytest.approx(0, abs=1e-6)
    gap = (best["J"] - found["J"]) / shipped.objective.alpha
    assert found["gap (J* - J) / alpha, nats"] == pytest.approx(gap)
    assert gap >= found["KL(policy || p_r), nats"] - 1e-6
    assert best["J"] > found["J"]
    better = "share better than any sequence seen in pretraining"
    sample = rollout(shipped.policy, unconditional(4000)).sample
    table = load_landscape("six6")
    share = (table.score[table.index(sample)] > best_seen(table)).double().mean().item()
    assert found[better] == pytest.approx(share, abs=4 * (share * (1 - share) / 4000) ** 0.5)
    assert best[better] > found[better]


def test_alpha_that_moves_moves_the_optimum(shipped):
    job = dna(training=SMALL)
    assert job.view.optimum is not None
    before = job.view.optimum()["J"]
    job.objective.alpha = 0.2
    assert job.view.optimum()["J"] < before


def test_constraints_bind_the_chain_and_its_reference_alike():
    job = dna(template="NNGATNNN", forbidden=("AAA",), gc=(0.25, 0.5), training=SMALL)
    for chain in (job.policy, job.objective.reference):
        words = spell(rollout(chain, unconditional(300)).sample, DNA)
        assert all(word[2:5] == "GAT" for word in words)
        assert not any("AAA" in word or "TTT" in word for word in words)
        assert all(2 <= sum(letter in "GC" for letter in word) <= 4 for word in words)
        assert len(set(words)) > 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": "NNN"}, r"has 3 letters, but 8 are expected"),
        ({"template": "NNXNNNNN"}, r"holds 'X' at position 3"),
        ({"forbidden": ("AXA",)}, r"AXA"),
        ({"gc": (0.9, 0.1)}, r"0\.9"),
        ({"landscape": "pax6"}, r"difftilt data"),
    ],
    ids=["length", "letter", "motif", "range", "data"],
)
def test_bad_options_are_named(options, message, tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFTILT_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=message):
        dna(training=SMALL, **options)


def test_protein_without_data_says_how_to_get_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DIFFTILT_DATA", str(tmp_path))
    with pytest.raises(SystemExit) as stop:
        main(["finetune", "protein", "--out", str(tmp_path / "run")])
    said = capsys.readouterr().err
    assert stop.value.code == 1
    assert said.count("\n") == 1
    assert "difftilt data fetch gb1" in said


def test_a_missing_model_says_how_to_make_it(tmp_path):
    with pytest.raises(ValueError, match="difftilt pretrain dna --landscape six6"):
        dna(weights=tmp_path, training=SMALL)


def test_the_command_that_is_named_exists(capsys):
    for landscape in (load_landscape("six6"), replace(load_landscape("six6"), name="gb1", alphabet=PROTEIN)):
        main([*pretrain_command(landscape).split()[1:], "--help"])
        assert "usage: difftilt pretrain" in capsys.readouterr().out


def tiny():
    torch.manual_seed(0)
    words = [a + b for a in "ACGT" for b in "ACGT"]
    scores: list[float | None] = torch.rand(16).tolist()
    return make_landscape("tiny", "ACGT", words, scores, "made up.")


def test_pretraining_learns_the_lower_half(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain_landscape, "load_landscape", lambda name: tiny())
    asked = pretrain_landscape.Pretraining(tmp_path / "model", steps=150, batch=64, learning_rate=1e-2)
    pretrain_landscape.pretrain_dna(pretraining=asked)
    table = tiny()
    policy = landscape_policy(table, folder=tmp_path / "model")
    law = exact.evaluate(Objective(table.lookup, policy, 1.0), policy, table.score).law
    stated = json.loads((tmp_path / "model" / "quality.json").read_text())
    assert law[table.score > best_seen(table)].sum() < 0.25  # the untrained distribution has a half there
    assert stated["above"] == pytest.approx(law[table.score > best_seen(table)].sum().item(), rel=1e-6)
    assert "difftilt pretrain dna --landscape tiny --steps 150" in (tmp_path / "model/README.md").read_text()


def test_backprop_is_told_that_a_table_has_no_gradient(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(
            [
                "finetune",
                "dna",
                "algorithm:backprop",
                "--batch",
                "32",
                "--evaluate",
                "16",
                "--out",
                str(tmp_path),
            ]
        )
    assert "no gradient to pass back" in capsys.readouterr().err
