"""`metrics.jsonl`: one row per gradient step."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

Row = Mapping[str, float]


class MetricLog:
    """`metrics.jsonl`. It holds nothing but what the seed determines, so that a resumed run's is the same.

    Args:
        path: The file; made if it is missing.
        offset: Bytes to keep. What lies behind was written after the checkpoint that is resumed.
    """

    def __init__(self, path: Path, offset: int = 0):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        if (size := path.stat().st_size) < offset:
            raise ValueError(
                f"{path} has {size} bytes, but had {offset} when the checkpoint was made; bring the rest back"
            )
        self._file = path.open("r+b")
        self._file.truncate(offset)
        self._file.seek(offset)

    def write(self, row: Row) -> None:
        self._file.write(json.dumps(row).encode() + b"\n")

    def flush(self) -> int:
        """Lets readers see every row; returns the length of the file in bytes."""
        self._file.flush()
        return self._file.tell()

    def sync(self) -> None:
        """Brings every row to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
