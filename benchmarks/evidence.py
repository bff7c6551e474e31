"""Gathers what `difftilt advise` quotes: the means over seeds of what other benchmarks measured.

    python benchmarks/evidence.py [--results FOLDER] [--out FILE.json]

Reads exact.json (excess in nats), digits_equal_kl.json (rewards and costs) and rare_modes.json (gaps in nats
of short sequences), whichever is there.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
OUT = HERE.parent / "src" / "difftilt" / "experiment" / "evidence.json"
DIGITS = ("kl_nats", "reward", "gold", "diversity", "reward_calls", "network_calls", "seconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    options.out.write_text(json.dumps(gather(options.results), indent=1) + "\n")


def gather(results: Path) -> dict[str, Any]:
    """By algorithm and task: the means over seeds, and how many there are."""
    algorithms: dict[str, dict[str, Any]] = defaultdict(dict)
    for kind, name, wanted in (
        ("exact", "exact.json", ("excess_nats",)),
        ("digits", "digits_equal_kl.json", DIGITS),
    ):
        groups = defaultdict(list)
        for row in rows(results / name):
            if row["task"] != "frontier":  # of several alphas, which have no mean
                groups[row["algorithm"], row["task"]].append(row)
        for (algorithm, task), group in sorted(groups.items()):
            means = {key: mean([row[key] for row in group]) for key in wanted if key in group[0]}
            algorithms[algorithm].setdefault(kind, {})[task] = means | {"seeds": len(group)}
    finals = defaultdict(list)
    for row in rows(results / "rare_modes.json"):
        if row["method"] in ("ppo", "local-search"):
            finals[row["method"], row["problem"]].append(row["curve"][-1])
    for (algorithm, task), ends in sorted(finals.items()):
        means = {key: mean([end[key] for end in ends]) for key in ("gap_nats", "missed")}
        algorithms[algorithm].setdefault("landscape", {})[task] = means | {"seeds": len(ends)}
    return {"written_by": "benchmarks/evidence.py", "algorithms": dict(sorted(algorithms.items()))}


def rows(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())["rows"] if path.exists() else []


def mean(values: list[Any]) -> float:
    """Of numbers; what is counted apart, such as calls forward and backward, is added up first."""
    totals = [sum(value.values()) if isinstance(value, dict) else value for value in values]
    return sum(totals) / len(totals)


if __name__ == "__main__":
    main()
