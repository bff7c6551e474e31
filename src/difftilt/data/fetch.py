"""Data sets from their publishers."""

import hashlib
import http.client
import tempfile
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

from difftilt.data.catalog import DATASETS, adopt

TIMEOUT, CHUNK = 30, 2**18  # seconds without an answer; bytes


def fetch(name: str, report: Callable[[int, int], None]) -> list[str]:
    """Downloads a data set into the store; what `adopt` remarks.

    Args:
        report: Told how many bytes have come, and of how many: 0 if that is not known.

    Raises:
        ValueError: If it cannot be reached or is not what is expected, with how to get it by hand.
    """
    dataset = DATASETS[name]
    with tempfile.TemporaryDirectory() as folder:
        came = Path(folder) / Path(dataset.url).name
        try:
            digest = download(dataset.url, came, report)
            if dataset.sha256 and digest != dataset.sha256:
                raise ValueError(f"its sha256 is {digest}, but {dataset.sha256} is expected")
            return adopt(name, came)
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = error.reason if isinstance(error, URLError) else error
            raise ValueError(
                f"{name} could not be fetched from {dataset.url} ({reason}); by hand: {dataset.manual}"
            ) from None


def download(url: str, target: Path, report: Callable[[int, int], None]) -> str:
    """The sha256 of what has come."""
    digest, done = hashlib.sha256(), 0
    request = urllib.request.Request(url, headers={"User-Agent": "difftilt"})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer, target.open("wb") as file:
        total = int(answer.headers.get("Content-Length") or 0)
        while chunk := answer.read(CHUNK):
            file.write(chunk)
            digest.update(chunk)
            done += len(chunk)
            report(done, total)
    if total and done != total:
        raise ValueError(f"it ended after {done} of {total} bytes")
    return digest.hexdigest()
