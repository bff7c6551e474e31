"""Damaged and hostile run folders: no traceback, no hang, and nothing of anybody else's is changed."""

import random
from pathlib import Path

import hostile
import pytest

EACH = 4


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return hostile.base_runs(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("command", ["report", "compare", "resume", "sample", "value", "overwrite"])
def test_a_damaged_folder_ends_in_one_sentence_at_worst(command, runs, tmp_path):
    came = []
    for number in range(EACH):
        dice = random.Random(f"{command} {number}")
        came += [said for _, said in hostile.one_folder(dice, runs, tmp_path / str(number), command)]
    kinds = [said.partition(":")[0] for said in came]
    assert set(kinds) <= {"fine", "one sentence"}, came
    assert "one sentence" in kinds, "the damage was not noticed, so that nothing was tested"


def test_what_must_not_happen_is_seen(runs, tmp_path, monkeypatch):
    """Each of the failures that the test above looks for is told from the others."""

    def bad(words: list[str]) -> None:
        if act == "traceback":
            raise KeyError("x")
        if act == "a file outside was changed":
            (tmp_path / act / "outside" / "precious.txt").write_text("")
        if act == "a file of the user's is gone":
            (tmp_path / act / "run" / "notes.txt").unlink()
        if act == "hang":
            monkeypatch.undo()
            while True:
                pass

    for act in ("traceback", "a file outside was changed", "a file of the user's is gone", "hang"):
        monkeypatch.setattr(hostile, "main", bad)
        monkeypatch.setattr(hostile, "SECONDS", 0.5)
        monkeypatch.setattr(hostile, "DAMAGES", (hostile.row_value,))
        (said,) = hostile.one_folder(random.Random(0), runs, tmp_path / act, "report")
        assert said[1].startswith(act)
