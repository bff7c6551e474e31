"""The command `difftilt lab`."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from difftilt.cli.actions import choose_action
from difftilt.cli.options import parse
from difftilt.cli.runs import build, check_writable, recipe_of, settings_of, subject, taken
from difftilt.cli.tables import folded
from difftilt.data.assay import BadRows
from difftilt.evaluation.groups import METHOD
from difftilt.experiment import code
from difftilt.experiment.job import Job
from difftilt.experiment.record import describe_settings, trust
from difftilt.lab.folder import Lab
from difftilt.lab.ingest import Reading, digest_of, ingest
from difftilt.lab.propose import Asked, RuleName, checked
from difftilt.lab.records import Plan
from difftilt.lab.report import SHORT, cells, spent, standings, write_lab_report
from difftilt.lab.rounds import UNMEASURED, next_round
from difftilt.lab.simulate import over_seeds, simulate
from difftilt.settings import Count, Natural, NonNegative, Positive

Place = tyro.conf.Positional[Path]
ELSEWHERE = (*METHOD, "reward", "alpha")  # settings of a recipe that are a lab's own


@dataclasses.dataclass(frozen=True)
class InitOptions:
    """How a lab begins.

    Args:
        budget: Sequences that may be proposed in all, at least 1; what was measured before does not count.
        data: A table or FASTA of what was measured already, the higher the better; as for difftilt reward
            fit. Without one the first round is samples of the model.
        batch: Sequences per round, at least 1; a plate has 96 wells.
        out: The folder of the lab.
        alpha: Weight of the KL to the pretrained model, above 0, in units of the measurements per nat; by
            default a quarter of the standard deviation of all that was measured, round by round.
        distance: Letters in which any two of a round differ, at least 0, 2 by default; edits where lengths
            differ. Of molecules the Tanimoto distance of fingerprints in percent, 30 by default.
        per_parent: Most sequences of a round whose nearest measured sequence is the same, at least 1.
        read_both_strands: DNA and its reverse complement are one and the same.
        sequence: Column of the sequences in the data, by name or number; found if not given.
        score: Column of the measurements; found if not given.
        bad_rows: What to do if rows of the data cannot be used: stop and tell of all, or drop them.
        seed: Of all that is drawn, at least 0.
    """

    budget: Count
    data: Path | None = None
    batch: Count = 96
    out: Path = Path("lab")
    alpha: Positive | None = None
    distance: Natural | None = None
    per_parent: Count | None = None
    read_both_strands: bool = False
    sequence: str | None = None
    score: str | None = None
    bad_rows: BadRows = "stop"
    seed: Natural = 0


def lab_command(words: list[str]) -> None:
    """Proposes what to measure next, plate by plate, and learns from what comes back."""
    lines = {name: what for name, (_, what) in ACTIONS.items()}
    usage = f"{{{','.join(ACTIONS)}}} [OPTIONS]"
    if chosen := choose_action("lab", words, ACTIONS, usage, lines):
        chosen[0](words[1:])


def _init(words: list[str]) -> None:
    recipe, rest = subject("lab init", words)
    title = f"Begins a lab that proposes samples of {recipe}."
    settings = parse(
        recipe_of(recipe), rest, f"difftilt lab init {recipe}", InitOptions, without=ELSEWHERE, title=title
    )
    options: InitOptions = taken(InitOptions, settings)
    check_writable(options.out)
    _, language = checked(_job(recipe, settings), options.read_both_strands)
    distance = language.near if options.distance is None else options.distance
    plan = Plan(
        options.budget, options.batch, options.alpha, distance, options.per_parent,
        options.read_both_strands, options.seed,
    )  # fmt: skip
    language.learner()  # or it would be refused only once all is there
    start, digest, lab = None, "", Lab(options.out)
    if options.data is not None:
        digest = digest_of(options.data)
        start = language.measured(options.data, options.sequence, options.score, options.bad_rows)
        print(*start.understood, sep="\n")
    record = describe_settings(recipe, settings)
    if "code" in record:
        record["signature"] = code.sign({name: record[name] for name in ("recipe", "settings", "code")})
    with lab.begun():
        lab.begin(plan, record, language, start, digest)
    print(f"lab: {options.out}; go on with difftilt lab propose {options.out}")


def _job(recipe: str, settings: Mapping[str, Any]) -> Job:
    """The job of a lab, whose reward is what was measured."""
    known = inspect.signature(recipe_of(recipe)).parameters
    return build(recipe, {**settings, **({"reward": UNMEASURED} if "reward" in known else {})})


def _propose(words: list[str]) -> None:
    asked = parse(propose_options, words, "difftilt lab propose")
    with Lab(asked["lab"]).held() as lab:
        if asked["budget"] is not None:
            lab.allow(asked["budget"])
        made_of = trust(lab.folder, lab.record, {"recipe": asked["recipe"]} if asked["recipe"] else {})
        job = _job(made_of["recipe"], settings_of(made_of["recipe"], made_of["settings"]))
        made, paths, filled = next_round(lab, job, asked["rule"], asked["batch"])
        if filled is None:
            print(f"round {made.number} was proposed before, and its files are written now")
        elif filled.judged is not None:
            found = filled.judged
            print(
                f"learned from {found.count} sequences, alpha {filled.alpha:.3g}; of labels held out,"
                f" predictions correlate by {found.correlation:.2f} ± {found.correlation_se:.2f}"
            )
        print(*made.notes, sep="\n", end="\n" if made.notes else "")
        count = sum(each.round == made.number for each in lab.proposals())
        print(f"round {made.number}: {count} sequences by {made.rule}, in {paths[0]} and {paths[1].name}")


def propose_options(
    lab: Place,
    rule: RuleName = "ladder",
    batch: Count | None = None,
    budget: Count | None = None,
    recipe: str | None = None,
) -> None:
    """Proposes the next round: a table with plates and wells, and FASTA.

    Args:
        lab: The folder.
        rule: What the round is for: `ladder`, members of an ensemble, each at a smaller alpha; `thompson`,
            members at one alpha; `ucb`, mean + std; `greedy`, the mean; `penalised`, mean - std at an alpha
            that falls; `random`, the model as it is. Without the model: `genetic`, `adalead`, `library-ucb`.
        batch: Sequences of this round, at least 1; the lab's own number by default.
        budget: Sequences that may be proposed in all from now on.
        recipe: In the place of the lab's recipe, FILE.py:NAME, where its code has changed.
    """


def _ingest(words: list[str]) -> None:
    settings = parse(ingest_options, words, "difftilt lab ingest", Reading)
    reading: Reading = taken(Reading, settings)
    with Lab(settings["lab"]).held() as lab:
        print(*ingest(lab, settings["results"], reading), sep="\n")


def ingest_options(lab: Place, results: Place) -> None:
    """Takes what came back: measurements by id or sequence, failed wells, replicates, a part or all.

    Args:
        lab: The folder.
        results: A table of any making. The same file twice changes nothing, and measurements that an earlier
            file had are not counted again.
    """


def _status(words: list[str]) -> None:
    with Lab(parse(lab_options, words, "difftilt lab status")["lab"]).held() as lab:
        found, table = standings(lab), folded(*SHORT)
        print(", ".join(f"{name.lower()} {value}" for name, value in spent(lab, found)))
        for each in found:
            table.add_row(*cells(each))
        if found:
            Console().print(table)


def lab_options(lab: Place) -> None:
    """Tells how a lab stands, round by round; difftilt lab report writes it as a page.

    Args:
        lab: The folder.
    """


def _report(words: list[str]) -> None:
    with Lab(parse(lab_options, words, "difftilt lab report")["lab"]).held() as lab:
        print(f"report: {write_lab_report(lab)}")


@dataclasses.dataclass(frozen=True)
class SimulateOptions:
    """What is simulated.

    Args:
        rule: Of lab propose; several are compared.
        seeds: Labs per rule, at least 1.
        budget: Sequences that are proposed in all.
        batch: Sequences per round.
        start: Samples of the model that are measured before, at least 20.
        noise: Standard deviation of a measurement around the recipe's reward, at least 0.
        distance: As for lab init, like the next two.
    """

    rule: tuple[RuleName, ...] = ("ladder",)
    seeds: Count = 1
    budget: Count = 576
    batch: Count = 96
    start: Count = 96
    noise: NonNegative = 0.05
    distance: Natural = 2
    alpha: Positive | None = None
    read_both_strands: bool = False


def _simulate(words: list[str]) -> None:
    recipe, rest = subject("lab simulate", words)
    title = f"Simulates labs whose bench is the reward of {recipe}, and tells what each rule finds."
    settings = parse(
        recipe_of(recipe), rest, f"difftilt lab simulate {recipe}", SimulateOptions,
        without=(*METHOD, "alpha"), title=title,
    )  # fmt: skip
    asked: SimulateOptions = taken(SimulateOptions, settings)
    job = build(recipe, settings)
    table = folded("rule", "best found", "top 10", "last batch", "regret")
    for rule in asked.rule:
        rounds = -(-asked.budget // asked.batch)
        one = Asked(
            rule, asked.batch, 0, rounds, asked.alpha, asked.distance, None, asked.read_both_strands
        )  # fmt: skip
        courses = []
        for seed in range(asked.seeds):
            single = dataclasses.replace(one, seed=seed)
            courses.append(simulate(job, single, asked.start, asked.noise, show=True))
            print(f"{rule}, seed {seed}: best {courses[-1].best:.4f}", flush=True)
        table.add_row(rule, *("" if x is None else str(x) for x in over_seeds(courses).values()))
    Console().print(table)


Action = tuple[Callable[[list[str]], None], str]
ACTIONS: Mapping[str, Action] = {
    "init": (_init, "RECIPE --data TABLE --budget N: begins a lab."),
    "propose": (_propose, "LAB: writes the next plate."),
    "ingest": (_ingest, "LAB TABLE: takes what came back."),
    "status": (_status, "LAB: what was spent and what is pending."),
    "report": (_report, "LAB: the same and more as a page."),
    "simulate": (_simulate, "RECIPE --rule ladder greedy: what rules find where all is known."),
}
