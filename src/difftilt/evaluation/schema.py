"""What `run.json`, `summary.json`, `before.json` and a row of `metrics.jsonl` hold."""

from typing import Any, NotRequired, TypedDict

Number = float | None  # None where it was not measured
ByName = dict[str, Number] | None
Text = str | None


class Info(TypedDict, total=False):
    """`run.json`."""

    id: str
    recipe: str
    settings: dict[str, Any]
    seed: int | None
    versions: dict[str, str]
    device: Text
    processes: int | None
    threads: int | None
    git_revision: Text
    created: Text
    command: Text
    task: str
    reward: Text
    code: dict[str, dict[str, str]]
    signature: Text
    cannot_be_made_again: Text
    final_alpha: Number
    changes: list[dict[str, Any]]


class Numbers(TypedDict, total=False):
    """`before.json`, and the part of `summary.json` that is of the same kind."""

    alpha: Number
    start_alpha: Number
    target_kl: Number
    reward: Number
    reward_se: Number
    kl_nats: Number
    kl_nats_se: Number
    kl_note: Text
    objective: Number
    objective_se: Number
    diversity: Number
    diversity_se: Number
    gold: ByName
    gold_se: ByName
    parts: ByName
    parts_se: ByName
    parts_asked: ByName
    exact: ByName
    optimum: ByName
    exact_note: Text
    distances: dict[str, tuple[Number, Number]] | None
    distances_note: Text
    family: Text
    family_share: Number
    family_share_se: Number
    deployed_reward: Number
    deployed_reward_se: Number
    deployed_gap: Number
    deployed_gap_se: Number
    deployed_samples: int | None
    proxy_for: list[str] | None
    warnings: list[str] | None
    alarms: list[str] | None
    expected: ByName
    samples: int | None
    dropped: int | None
    penalised: int | None
    ended: Text
    reward_calls: Number
    network_calls: ByName
    rounds: int | None
    gradient_steps: int | None
    seconds: Number


class Summary(Numbers, total=False):
    """`summary.json`."""

    before: Numbers | None


class Start(TypedDict):
    """What a run that goes on needs of `before.json`."""

    start_alpha: float
    reward_calls: int
    asked: dict[str, Any]
    warnings: list[str]


class Row(TypedDict):
    """A row of `metrics.jsonl`."""

    round: int
    step: NotRequired[Number]
    alpha: NotRequired[Number]
    reward: NotRequired[Number]
    reward_se: NotRequired[Number]
    kl_nats: NotRequired[Number]
    kl_nats_se: NotRequired[Number]
    objective: NotRequired[Number]
    objective_se: NotRequired[Number]
    ess: NotRequired[Number]
    reward_calls: NotRequired[Number]
    attainable: NotRequired[Number]
    kl_error: NotRequired[Number]
    kl_error_se: NotRequired[Number]
    variance: NotRequired[Number]
    distinct: NotRequired[Number]
    clipped: NotRequired[Number]
    grad_norm: NotRequired[Number]
    dropped: NotRequired[Number]
    penalised: NotRequired[Number]
