"""The way from the command line to the network stays short enough to be read in a traceback."""

import traceback
from pathlib import Path

import difftilt
from difftilt.cli.main import main

MOST = 10
SOURCE = Path(difftilt.__file__).parent


def test_ten_frames_lead_from_main_to_the_network(tmp_path, monkeypatch):
    from difftilt.domains.digits import model

    deepest: list[str] = []
    forward = model.DiT.forward

    def look(network, *args):
        stack = [f for f in traceback.extract_stack() if Path(f.filename).is_relative_to(SOURCE)]
        names = [f"{Path(frame.filename).stem}.{frame.name}" for frame in stack] + ["network.forward"]
        if "train.train" in names and len(names) > len(deepest):
            deepest[:] = names
        return forward(network, *args)

    monkeypatch.setattr(model.DiT, "forward", look)
    arguments = ["--reward", "ink", "--rounds", "1", "--batch", "4", "--evaluate", "4", "--steps", "4"]
    main(["finetune", "digits", *arguments, "--out", str(tmp_path / "run")])
    assert "fit.fit" in deepest, "the run must have gone through the loop"
    assert len(deepest) <= MOST, " > ".join(deepest)
