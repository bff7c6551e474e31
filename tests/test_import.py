"""`import difftilt` needs torch and little else."""

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
heavy += ["tensorboard"]
print(json.dumps({"seconds": seconds, "heavy": [name for name in heavy if name in sys.modules]}))
"""


def test_import_is_light_and_quick():
    runs = []
    for _ in range(2):  # the first may still write byte code
        result = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
        runs.append(json.loads(result.stdout))
    assert runs[-1]["heavy"] == []
    assert min(run["seconds"] for run in runs) <= 2.0
