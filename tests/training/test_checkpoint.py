"""A damaged checkpoint is refused by name; a disk that fails leaves the last good one as it was."""

import random
import resource
import shutil
import warnings
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from faults import at_operation
from safetensors.torch import save_file
from toy_run import Job, make_policy, remains

from difftilt.training.checkpoint import CheckpointError, CheckpointWarning, Snapshot, newest, read, save
from difftilt.training.load import load_policy
from difftilt.training.tree import pack, unpack

FILES = [
    "MANIFEST.json", "ema.safetensors", "policy.safetensors", "process-0.json", "process-0.safetensors",
    "training.json", "training.safetensors",
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run of four rounds with three checkpoints."""
    folder = tmp_path_factory.mktemp("finished")
    Job().train(folder, 4, keep=3)
    return folder


@pytest.fixture
def run(finished, ram) -> Path:
    """A copy, to be damaged."""
    return shutil.copytree(finished, ram / "run")


def test_the_list_of_files_is_complete(finished):
    assert sorted(p.name for p in (finished / "checkpoints" / "round-000004").iterdir()) == sorted(FILES)
    assert [p.name for p in sorted((finished / "checkpoints").iterdir())] == [
        f"round-00000{k}" for k in (2, 3, 4)
    ]


def flip(file: Path, at: int, bit: int = 0) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1 << bit
    file.write_bytes(data)


DAMAGES = {
    "missing": lambda file: file.unlink(),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "emptied": lambda file: file.write_bytes(b""),
    "bit flip": lambda file: flip(file, file.stat().st_size // 2),
    "swapped": lambda file: shutil.copy(file.parents[1] / "round-000002" / file.name, file),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"\n"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_refused_by_name(run, name, damage):
    file = run / "checkpoints" / "round-000004" / name
    before = file.read_bytes()
    DAMAGES[damage](file)
    assert not file.exists() or file.read_bytes() != before
    with pytest.warns(CheckpointWarning, match=rf"round-000004/{name} .* is not used") as caught:
        assert newest(run / "checkpoints") == run / "checkpoints" / "round-000003"
    assert len(caught) == 1


def test_a_checkpoint_under_another_name_is_refused(run):
    (run / "checkpoints" / "round-000004").rename(run / "checkpoints" / "round-000009")
    with pytest.warns(CheckpointWarning, match="belongs to round-000004"):
        assert newest(run / "checkpoints") == run / "checkpoints" / "round-000003"


def test_random_byte_flips_are_all_seen(run):
    dice = random.Random(0)
    for _ in range(200):
        file = run / "checkpoints" / "round-000004" / dice.choice(FILES)
        at, bit = dice.randrange(file.stat().st_size), dice.randrange(8)
        flip(file, at, bit)
        with pytest.warns(CheckpointWarning, match=file.name):
            assert newest(run / "checkpoints") == run / "checkpoints" / "round-000003"
        flip(file, at, bit)
    assert newest(run / "checkpoints") == run / "checkpoints" / "round-000004"


def test_when_all_are_damaged_the_run_does_not_start_again(run):
    for path in (run / "checkpoints").iterdir():
        flip(path / "policy.safetensors", 200)
    with pytest.warns(CheckpointWarning) as caught, pytest.raises(CheckpointError, match="round-000002"):
        Job().train(run, 5)
    assert len(caught) == 3


def test_the_run_goes_on_from_the_one_before(run, ram):
    Job().train(ram / "whole", 6)
    flip(run / "checkpoints" / "round-000004" / "training.safetensors", 500)
    with pytest.warns(CheckpointWarning, match=r"training\.safetensors"):
        Job().train(run, 6)
    assert remains(run) == remains(ram / "whole")


def test_refused_checkpoints_do_not_crowd_out_good_ones(run):
    for name in ("round-000003", "round-000004"):
        flip(run / "checkpoints" / name / "policy.safetensors", 200)
    with pytest.warns(CheckpointWarning):
        Job().train(run, 3)
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["round-000002", "round-000003"]
    assert newest(run / "checkpoints") == run / "checkpoints" / "round-000003"


@contextmanager
def _file_limit(size: int):
    """Files longer than this cannot be written, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [100, 1000, 5000])
def test_a_full_disk_keeps_the_last_good_checkpoint(run, size):
    snapshot = {"policy": pack({"w": torch.zeros(2000)})}
    with _file_limit(size), pytest.raises(CheckpointError, match="could not be written"):
        save(run / "checkpoints", Snapshot(5, snapshot, pack({"a": 1})), Accelerator())
    assert newest(run / "checkpoints") == run / "checkpoints" / "round-000004"


def test_a_fault_at_any_file_operation_keeps_a_good_checkpoint(run, ram):
    Job().train(ram / "whole", 5)
    whole = remains(ram / "whole")
    shutil.copytree(run, ram / "count")
    with at_operation(0, lambda name: None) as operations:
        Job().train(ram / "count", 5)
    assert len(operations) > 30

    def fail(name: str) -> None:
        raise OSError(28, "No space left on device")

    failed = 0
    for number in range(1, len(operations) + 1):
        folder = shutil.copytree(run, ram / f"fault-{number}")
        with at_operation(number, fail):
            try:
                Job().train(folder, 5)
            except (OSError, CheckpointError) as error:
                failed += 1
                assert "No space left" in str(error)
        with warnings.catch_warnings():
            warnings.simplefilter("error", CheckpointWarning)
            assert newest(folder / "checkpoints") is not None
        Job().train(folder, 5)
        assert remains(folder) == whole
        shutil.rmtree(folder)
    assert failed == len(operations)


def test_another_seed_or_model_is_not_resumed(run):
    with pytest.raises(ValueError, match="seed 0, but got 1"):
        Job().train(run, 5, seed=1)
    with pytest.raises(ValueError, match="moving average"):
        Job().train(run, 5, ema_decay=0.0)
    job = Job()
    job.policy.network.get_parameter("layers.0.weight").requires_grad_(False)
    with pytest.raises(ValueError, match=r"layers\.0"):
        job.train(run, 5)


def test_a_log_that_lost_rows_is_refused(run):
    log = run / "metrics.jsonl"
    log.write_bytes(log.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"metrics\.jsonl has \d+ bytes"):
        Job().train(run, 5)


def test_loading_prefers_the_average(run):
    policy, plain = make_policy(), make_policy()
    assert load_policy(run, policy) == 4
    assert load_policy(run, plain, average=False) == 4
    path = run / "checkpoints" / "round-000004"
    for name, average in read(path, "ema").items():
        assert torch.equal(policy.get_parameter(name), average)
        assert torch.equal(plain.get_parameter(name), read(path, "policy")[name])
    assert not torch.equal(*(p.network.get_parameter("layers.0.weight") for p in (policy, plain)))


def test_a_file_of_the_users_beside_the_weights_is_no_part_of_them(run):
    path = run / "checkpoints" / "round-000004"
    before = read(path, "policy")
    shutil.copy(path / "policy.safetensors", path / "policy-old.safetensors")
    assert all(torch.equal(x, before[name]) for name, x in read(path, "policy").items())


@pytest.mark.parametrize("other", [{"b": torch.ones(1)}, {"a": torch.ones(1, 3)}])
def test_parts_that_do_not_belong_together_are_refused_by_name(other, tmp_path):
    save_file({"a": torch.ones(2, 2)}, tmp_path / "policy-0.safetensors")
    save_file(other, tmp_path / "policy-1.safetensors")
    with pytest.raises(CheckpointError, match=r"policy-0.safetensors and .*policy-1.safetensors do not"):
        read(tmp_path, "policy")


def test_trees_come_back_as_they_were():
    tree = {
        "state": {0: {"step": torch.tensor(3.0), "m": torch.randn(2, 3)}, 1: {}},
        "groups": [{"lr": 0.1 + 0.2, "betas": [0.9, 0.999], "fused": None, "on": True, "name": "ü"}],
        "empty": torch.zeros(0, 3),
    }
    packed = pack(tree)
    back = unpack(packed)
    assert torch.equal(back["state"][0].pop("m"), tree["state"][0].pop("m"))
    assert torch.equal(back.pop("empty"), tree.pop("empty"))
    assert back == tree
    with pytest.raises(ValueError, match=r"'a\.0' .* of type set"):
        pack({"a": [{1}]})


def test_packing_is_a_copy():
    weight = torch.ones(3)
    packed = pack({"weight": weight})
    weight.zero_()
    assert packed.plain is None
    assert torch.equal(packed.tensors["weight"], torch.ones(3))
