"""Every claim of the review, tested: a verdict with its numbers, as JSON and as a page.

    python benchmarks/review.py                      # lists the claims
    python benchmarks/review.py CLAIM ... | all      # tests them, one after the other
        [--quick] [--results FOLDER] [--pages FOLDER]

What a claim predicts stands in the code before anything runs (`review_verdict.py` holds the rule); every run
writes results/review/CLAIM.json and runs/review/CLAIM.html. `--quick` tries the plumbing on tiny problems, in
seconds; what it finds means nothing, and is written to --results only if that is given.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from jinja2 import ChoiceLoader, Environment, FileSystemLoader, PackageLoader, StrictUndefined
from review_checks import CLAIMS as CHECKS
from review_experiments import CLAIMS as EXPERIMENTS
from review_mechanisms import CLAIMS as MECHANISMS
from review_questions import CLAIMS as QUESTIONS
from review_verdict import NOT_RUN, QUICK, Claim, Size, judge, told

from difftilt.evaluation.words import count, duration, save_page
from difftilt.experiment.record import write_json

HERE = Path(__file__).parent
RESULTS, PAGES = HERE / "results" / "review", Path("runs/review")
CLAIMS = {claim.name: claim for claim in (*MECHANISMS, *EXPERIMENTS, *CHECKS, *QUESTIONS)}


def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    torch.set_num_threads(1)
    if not options.claims:
        for claim in CLAIMS.values():
            print(f"{claim.name:18} {claim.kind:11} {claim.says}")
    for name in CLAIMS if options.claims == ["all"] else options.claims:
        run(CLAIMS[name], QUICK if options.quick else Size(), options.results, options.pages)


def run(claim: Claim, size: Size, results: Path | None, pages: Path) -> dict[str, Any]:
    """Tests one claim, and prints and writes what was found."""
    found = judge(claim, size)
    print(f"{claim.name}: {found['verdict']}. {claim.says}", flush=True)
    for row in found["predictions"]:
        print(f"  {row['outcome']:12} {row['says']}: {row['number']} {told(row)}", flush=True)
    if results is not None:
        results.mkdir(parents=True, exist_ok=True)
        write_json(results / f"{claim.name}.json", found)
    pages.mkdir(parents=True, exist_ok=True)
    save_page(pages / f"{claim.name}.html", render(found))
    return found


def render(found: dict[str, Any]) -> str:
    """The page of a verdict."""
    loaders = ChoiceLoader([FileSystemLoader(HERE), PackageLoader("difftilt.evaluation")])
    environment = Environment(
        loader=loaders, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    run = [row for row in found["predictions"] if row["outcome"] != NOT_RUN]
    return environment.get_template("review.html").render(
        found=found, held=sum(row["outcome"] == "holds" for row in run), run=len(run), told=told,
        count=count, duration=duration,
    )  # fmt: skip


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("claims", nargs="*", metavar="CLAIM", help="none lists them; all tests all")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--results", type=Path)
    parser.add_argument("--pages", type=Path, default=PAGES)
    options = parser.parse_args(argv)
    unknown = [name for name in options.claims if name not in CLAIMS]
    if unknown and options.claims != ["all"]:
        parser.error(f"there is no claim {unknown[0]!r}: valid are {', '.join(CLAIMS)} and all")
    if options.results is None and not options.quick:
        options.results = RESULTS
    return options


if __name__ == "__main__":
    main()
