"""`import difftilt` needs torch and little else, and runs at their defaults need no extra."""

import json
import subprocess
import sys

SCRIPT = """
import json, sys, time
import torch
start = time.process_time()  # a busy machine makes no import heavier
import difftilt
for name in difftilt.__all__:
    getattr(difftilt, name)
seconds = time.process_time() - start
heavy = ["diffusers", "peft", "transformers", "sklearn", "matplotlib", "pandas", "tyro", "rdkit", "RNA"]
heavy += ["tensorboard", "pebble", "ray"]
print(json.dumps({"seconds": seconds, "heavy": [name for name in heavy if name in sys.modules]}))
"""


def test_import_is_light_and_quick():
    runs = []
    for _ in range(2):  # the first may still write byte code
        result = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
        runs.append(json.loads(result.stdout))
    assert runs[-1]["heavy"] == []
    assert min(run["seconds"] for run in runs) <= 2.0


CORE = """
import pkgutil, sys
from importlib import import_module
from pathlib import Path
EXTRAS = "sklearn scipy pandas logomaker tensorboard wandb ray RNA rdkit diffusers peft transformers"
for name in EXTRAS.split():
    sys.modules[name] = None  # as if it were not installed
import torch
import difftilt
for module in pkgutil.walk_packages(difftilt.__path__, "difftilt."):
    if not module.name.endswith("__main__"):
        import_module(module.name)
from difftilt.domains.digits.view import real_images
from difftilt.domains.sequences.view import write_logo
assert len(real_images(3)) == 183
write_logo(Path(sys.argv[1]), torch.randint(4, (20, 8)), "ACGT")
"""


def test_what_runs_by_default_needs_no_extra(tmp_path):
    path = tmp_path / "logo.png"
    result = subprocess.run([sys.executable, "-c", CORE, path], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert path.stat().st_size > 5_000
