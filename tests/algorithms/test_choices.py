"""Algorithms by name: what a preset sets, what the line overrides, and what run.json brings back."""

import json
import sys
import typing
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import pytest

from difftilt.algorithms.choices import PRESETS, AnyAlgorithm, make_algorithm
from difftilt.algorithms.grpo import GRPO
from difftilt.algorithms.ppo import PPO
from difftilt.cli import options
from difftilt.cli.main import main
from difftilt.domains.digits.recipe import ALGORITHM, digits
from difftilt.experiment.record import restore, to_json
from difftilt.objective import Algorithm, Loss, Objective, Value
from difftilt.policy import Policy
from difftilt.shapes import Cond


@dataclass(eq=False)
class Odd(Algorithm):
    """Has a setting that nobody can type.

    Args:
        rate: A number.
        value: A function.
    """

    rate: float = 1.0
    value: Value | None = None

    def losses(self, policy: Policy, objective: Objective, cond: Cond) -> Iterator[Loss]:
        yield from ()


def odd(algorithm: PPO | Odd = ALGORITHM, alpha: float = 1.0) -> None:
    """A recipe that the odd algorithm is added to with one word."""


def asked(line: str, recipe=digits) -> Algorithm:
    return options.parse(recipe, line.split(), "difftilt")["algorithm"]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_its_settings(name):
    settings = asdict(PRESETS[name][0])
    assert asdict(asked(f"algorithm:{name}")) == settings == asdict(make_algorithm(name))
    assert settings != asdict(PPO())


def test_the_line_overrides_a_preset_and_leaves_it_as_it_was():
    changed = asked("algorithm:dpok --algorithm.clip 0.1")
    assert asdict(changed) == asdict(make_algorithm("dpok")) | {"clip": 0.1}
    assert asdict(asked("algorithm:dpok"))["clip"] == 0.2


def test_the_recipes_own_default_is_not_taken_for_a_preset():
    assert asdict(asked("")) == asdict(asked("algorithm:ppo")) == asdict(ALGORITHM)
    assert isinstance(asked("algorithm:grpo"), GRPO)


def test_algorithms_are_made_anew():
    assert make_algorithm("rloo") is not make_algorithm("rloo")
    assert make_algorithm("rloo") is not PRESETS["rloo"][0]


def test_a_misspelt_name_is_answered_with_the_valid_ones():
    names = [*PRESETS, "ppo", "grpo"]
    for refused in (lambda: make_algorithm("ddpo"), lambda: asked("algorithm:ddpo")):
        with pytest.raises(options.UsageError) as error:
            refused()
        assert all(name in str(error.value) for name in names)


@pytest.mark.parametrize("name", ["ppo", "grpo", *PRESETS])
def test_run_json_brings_an_algorithm_back(name):
    algorithm = make_algorithm(name)
    written = json.loads(json.dumps(to_json(algorithm)))
    back = restore(digits, {"algorithm": written})["algorithm"]
    assert type(back) is type(algorithm)
    assert asdict(back) == asdict(algorithm)


def test_help_has_a_line_for_each_and_a_page_for_the_chosen_one(capsys):
    main(["finetune", "digits", "--help"])
    text = " ".join(capsys.readouterr().out.replace("\N{BOX DRAWINGS LIGHT VERTICAL}", "").split())
    for name, (_, line) in PRESETS.items():
        assert f"algorithm:{name} {line}" in text
    assert "algorithm:ppo Proximal policy optimization of a diffusion chain." in text
    assert text.count("E sum_t min(w_t A_t") == 0
    main(["finetune", "digits", "algorithm:ppo", "--help"])
    assert "E sum_t min(w_t A_t" in capsys.readouterr().out


def test_settings_that_are_functions_are_left_out(capsys):
    algorithm = asked("algorithm:odd --algorithm.rate 2", odd)
    assert (algorithm.rate, algorithm.value) == (2.0, None)
    assert to_json(Odd(value=lambda x, t, cond: x)) == {"name": "odd", "rate": 1.0}
    assert restore(odd, {"algorithm": {"name": "odd", "rate": 3.0}})["algorithm"].rate == 3.0
    with pytest.raises(SystemExit):
        asked("algorithm:odd --help", odd)
    assert "--algorithm.value" not in capsys.readouterr().out
    with pytest.raises(options.UsageError):
        asked("algorithm:odd --algorithm.value f", odd)


def test_every_algorithm_of_the_union_has_a_module_that_says_what_it_is():
    for option in typing.get_args(AnyAlgorithm):
        if isinstance(option, type):
            line = (sys.modules[option.__module__].__doc__ or "").partition("\n")[0]
            assert line.endswith("."), option
