"""`metrics.jsonl`: one row per gradient step."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from difftilt.data.read import MIB, UnreadableError, check_regular

Row = Mapping[str, float]
BLOCK = 4 * MIB


class MetricLog:
    """`metrics.jsonl`. It holds nothing but what the seed determines, so that a resumed run's is the same.

    Args:
        path: The file; made if it is missing.
        offset: Bytes to keep. What lies behind was written after the checkpoint that is resumed.
        digest: SHA-256 of these bytes; empty if nobody knows it.

    Raises:
        UnreadableError: Before anything is written, if these bytes are not as they were, or if the file has
            another name elsewhere, where it would change, too.
    """

    def __init__(self, path: Path, offset: int = 0, digest: str = ""):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        if (size := check_regular(path)) < offset:
            raise UnreadableError(
                f"{path} has {size} bytes, but had {offset} when the checkpoint was made; bring the rest back"
            )
        if path.stat().st_nlink > 1:
            raise UnreadableError(
                f"{path} is a hard link, so that another file would change; copy it instead"
            )
        self._file = path.open("r+b")
        self._hash = hashlib.sha256()
        for start in range(0, offset, BLOCK):
            self._hash.update(self._file.read(min(BLOCK, offset - start)))
        if digest and self._hash.hexdigest() != digest:
            self._file.close()
            raise UnreadableError(
                f"the first {offset} bytes of {path} are not as they were when the checkpoint was made; bring"
                " them back from a copy"
            )
        self._file.truncate(offset)
        self._file.seek(offset)

    def write(self, row: Row) -> None:
        line = json.dumps(row).encode() + b"\n"
        self._hash.update(line)
        self._file.write(line)

    @property
    def digest(self) -> str:
        """SHA-256 of all that was written."""
        return self._hash.hexdigest()

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
