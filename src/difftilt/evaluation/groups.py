"""Runs that differ in nothing but their seed, and what tells such groups apart."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from difftilt.evaluation.run_folder import Run
from difftilt.evaluation.words import flat

SEED = "training.seed"
# settings of a recipe that say how to tune; the others, with alpha, say what J is
METHOD = ("algorithm", "training", "target_kl", "tune_std", "tune_start")

Problem = tuple[tuple[str, str], ...]  # settings by name, as something to compare


@dataclass(frozen=True)
class Group:
    """Runs of the same recipe and settings, one per seed.

    Args:
        settings: The recipe and all settings but the seed, by dotted name.
    """

    runs: Sequence[Run]
    settings: Mapping[str, str]

    @property
    def problem(self) -> Problem:
        """What must agree for two J's to be comparable: all but the method, and the alpha in force."""
        asked = {name: value for name, value in self.settings.items() if not _is_method(name)}
        target = self.runs[0].target_kl
        asked["alpha"] = f"target {target}" if target is not None else str(self.runs[0].alpha)
        return _pairs(asked)


def group(runs: Iterable[Run]) -> list[Group]:
    """Groups in the order of their first runs.

    Raises:
        ValueError: If two runs of a group have one seed: copies would lessen the error for nothing.
    """
    found: dict[Problem, list[Run]] = {}
    for run in runs:
        twins = found.setdefault(_pairs(_settings(run)), [])
        for twin in twins:
            if twin.info.get("seed") == run.info.get("seed"):
                raise ValueError(
                    f"got '{twin.folder}' and '{run.folder}' with the same settings and the same seed,"
                    f" {run.info.get('seed')}, so that the second tells nothing new; leave one out"
                )
        twins.append(run)
    return [Group(twins, _settings(twins[0])) for twins in found.values()]


def labels(groups: Sequence[Group]) -> list[str]:
    """What tells each group from the others, and nothing else; of one group alone, its algorithm."""
    known = [group.settings for group in groups]
    names = [name for name in dict.fromkeys(n for row in known for n in row) if _differs(name, known)]
    names.sort(key=lambda name: (name != "recipe", name != "algorithm.name"))
    short = [name.rpartition(".")[2] for name in names]
    found = []
    for row in known:
        words = [
            row[name]
            if name in ("recipe", "algorithm.name")
            else f"{_kebab(last if short.count(last) == 1 else name)} {row[name]}"
            for name, last in zip(names, short, strict=True)
            if name in row and _differs(name, [other for other in known if _alike(name, row, other)])
        ]
        found.append(", ".join(words) or row.get("algorithm.name") or row["recipe"])
    return found


def common(groups: Sequence[Group]) -> dict[str, str]:
    """The settings that all groups share, by dotted name."""
    first, *others = (group.settings for group in groups)
    return {name: value for name, value in first.items() if all(row.get(name) == value for row in others)}


def problem_label(problem: Problem, problems: Sequence[Problem]) -> str:
    """The recipe, its reward and alpha, and what else tells a problem from others of the recipe."""
    own, every = dict(problem), map(dict, problems)
    rows = [row for row in every if row["recipe"] == own["recipe"]]
    others = [name for name in own if len({row.get(name) for row in rows}) > 1]
    names = dict.fromkeys(name for name in ("reward", *others, "alpha") if name in own and name != "recipe")
    words = [own["recipe"], *(f"{_kebab(name)} {own[name]}" for name in names)]
    return ", ".join(words).replace("alpha target", "target KL")


def _pairs(settings: Mapping[str, str]) -> Problem:
    return tuple(sorted(settings.items()))


def _settings(run: Run) -> dict[str, str]:
    settings: Mapping[str, Any] = run.settings
    everything = {"recipe": str(run.info.get("recipe", "run")), **dict(flat(settings))}
    return {name: value for name, value in everything.items() if name != SEED}


def _is_method(name: str) -> bool:
    return name.partition(".")[0] in METHOD


def _alike(name: str, row: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether a setting means the same in both: settings of an algorithm are its own."""
    if name == "recipe":
        return True
    same = row["recipe"] == other["recipe"]
    own = name.startswith("algorithm.") and name != "algorithm.name"
    return same and (not own or row.get("algorithm.name") == other.get("algorithm.name"))


def _differs(name: str, rows: Sequence[Mapping[str, str]]) -> bool:
    return len({row.get(name) for row in rows}) > 1


def _kebab(name: str) -> str:
    return name.replace("_", "-")
