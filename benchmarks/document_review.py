"""Writes what became of the review's claims into docs/review.md, between its markers, from JSON.

python benchmarks/document_review.py
"""

import json
from pathlib import Path
from typing import Any

from document import table, write_page
from review import CLAIMS
from review_verdict import NOT_RUN, Claim, told

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "review.md"
KINDS = {
    "mechanism": "Three mechanisms",
    "experiment": "Three experiments",
    "check": "Three checks",
    "question": "Three open questions",
}


def main() -> None:
    write_page(PAGE, measured(HERE / "results"))


def measured(results: Path) -> str:
    """All verdicts in one table, and what each rests on."""
    found = {name: verdict(results / "review" / f"{name}.json") for name in CLAIMS}
    lines = [line(claim, found[name]) for name, claim in CLAIMS.items()]
    parts = ["\n" + table(["claim", "as we read it", "verdict", "predictions that hold"], lines)]
    for kind, title in KINDS.items():
        parts.append(f"\n## {title}\n")
        parts += [section(claim, found[name]) for name, claim in CLAIMS.items() if claim.kind == kind]
    return "".join(parts)


def verdict(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.exists() else None


def line(claim: Claim, found: dict[str, Any] | None) -> list[str]:
    """A claim in the table of all."""
    name = f"[{claim.name}](#{claim.name})"
    if found is None:
        return [name, claim.says, "not run yet", ""]
    run = [row for row in found["predictions"] if row["outcome"] != NOT_RUN]
    held = sum(row["outcome"] == "holds" for row in run)
    return [name, claim.says, f"**{found['verdict']}**", f"{held} of {len(run)}"]


def section(claim: Claim, found: dict[str, Any] | None) -> str:
    """What a claim predicted, what was seen, and the numbers behind it."""
    head = f"\n### {claim.name}\n\n{claim.says} "
    if found is None:
        return f"{head}Not run yet.\n"
    rows = [[f"{row['says']} ({row['number']})", row["outcome"], told(row)] for row in found["predictions"]]
    parts = [f"{head}**{found['verdict'].capitalize()}.**\n\n"]
    parts.append(table(["prediction", "found", "number"], rows))
    for each in found["tables"]:
        parts.append(f"\n{each['title']}:\n\n{table(each['head'], each['rows'])}")
    seeds = ", ".join(map(str, found["seeds"]))
    notes = "".join(f" {note}" for note in found["notes"])
    parts.append(
        f"\nSeeds {seeds}; {found['reward_calls']:,} reward calls and {found['cpu_seconds']:.0f} CPU"
        f" seconds in all, on {found['machine']}.{notes} `python benchmarks/review.py {claim.name}`,\n"
        f"[`{claim.name}.json`](../benchmarks/results/review/{claim.name}.json).\n"
    )
    return "".join(parts)


if __name__ == "__main__":
    main()
