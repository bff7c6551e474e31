"""Files from disk, whoever wrote them: what cannot be used is refused in one sentence that names the file."""

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import math
import os
import stat
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from difftilt.data.typed import misfit

MIB = 2**20
LONGEST = 512 * MIB  # of a file that is read into memory as a whole
LARGEST = 4096 * MIB  # of what is unpacked from an archive
DEEPEST = 64  # levels of JSON within one another
PACKERS: Mapping[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
DIGITS = 300  # of a whole number in JSON: what is longer is no real number either


class UnreadableError(ValueError):
    """A file or folder from disk cannot be used. The message begins with its path."""


def check_regular(path: Path) -> int:
    """The size of a file in bytes; a pipe, a device or a folder is refused before it is opened.

    Raises:
        UnreadableError: If there is no regular file at the path.
    """
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise UnreadableError(f"{path} does not exist; name a file that does") from None
    except (OSError, ValueError) as error:
        raise UnreadableError(f"{path} cannot be read ({_why(error)})") from None
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableError(f"{path} is {kind_of(status.st_mode)}, but a regular file is expected")
    return status.st_size


def kind_of(mode: int) -> str:
    """What stands at a path, in words, by the mode that `stat` tells."""
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFLNK: "a link to elsewhere",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
    }
    return kinds.get(stat.S_IFMT(mode), "a regular file" if stat.S_ISREG(mode) else "a device")


def read_bytes(path: Path, most: int = LONGEST) -> bytes:
    """The content of a regular file.

    Args:
        most: Bytes that it may have.

    Raises:
        UnreadableError: If it is missing, none or too long.
    """
    if (size := check_regular(path)) > most:
        raise UnreadableError(f"{path} has {size:,} bytes, but at most {most:,} are read")
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(handle, "rb") as file:
            found = file.read(most + 1)
    except OSError as error:
        raise UnreadableError(f"{path} cannot be read ({_why(error)})") from None
    if len(found) > most:
        raise UnreadableError(f"{path} has more than the {most:,} bytes that are read")
    return found


def read_text(path: Path, most: int = LONGEST) -> str:
    """The content of a text file in UTF-8, with or without a byte order mark."""
    try:
        return read_bytes(path, most).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UnreadableError(f"{path} is no text in UTF-8; bring it back from a copy") from None


def parse_json(text: str | bytes, what: Path | str) -> Any:
    """JSON of any kind, of limited depth.

    Args:
        what: Where it stands; for the message.
    """
    try:
        content = json.loads(text, parse_int=_whole)
    except RecursionError:
        raise UnreadableError(f"'{what}' is nested more than {DEEPEST} levels deep; restore it") from None
    except ValueError as error:
        raise UnreadableError(f"'{what}' is not valid JSON ({error}); bring it back from a copy") from None
    level = [content]
    for _ in range(DEEPEST):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return content
    raise UnreadableError(f"'{what}' is nested more than {DEEPEST} levels deep; restore it")


def read_json(path: Path, hint: Any = dict[str, Any], most: int = LONGEST) -> Any:
    """A JSON object whose values are what an annotation says.

    Args:
        hint: Such as a TypedDict; see `misfit`.

    Raises:
        UnreadableError: In one sentence that names the file and the value.
    """
    content = parse_json(read_text(path, most), path)
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise UnreadableError(f"'{path}' holds a {kind}, not a JSON object; bring it back from a copy")
    if wrong := misfit(content, hint):
        raise UnreadableError(f"{path}: {wrong}; bring the file back from a copy, or make it anew")
    return content


def read_rows(path: Path, hint: Any = dict[str, Any]) -> tuple[list[dict[str, Any]], int]:
    """The objects of a file with one a line, and how many lines are none: one may be half written."""
    rows, torn = [], 0
    for line in read_bytes(path).decode(errors="replace").splitlines():
        try:
            row = parse_json(line, path)
        except UnreadableError:
            row = None
        if isinstance(row, dict) and misfit(row, hint) is None:
            rows.append(row)
        else:
            torn += 1
    return rows, torn


def packed_text(path: Path) -> str:
    """A file's text, packed or not, in UTF-8 or as a byte order mark says, without blank lines at its end."""
    found = contents(path)
    if found.startswith(b"PK\x03\x04"):
        found = _only_member(path, found)
    marked = found[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    try:
        return found.decode("utf-16" if marked else "utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError:
        raise UnreadableError(f"{path}: the file holds no text, but a table is expected") from None


def read_cells(path: Path, separators: str = ",") -> list[list[str]]:
    """The rows of a table, packed or not, the header included.

    Args:
        separators: Of cells; of several, the one that the header has most of.
    """
    text = packed_text(path)
    separator = max(separators, key=text.partition("\n")[0].count)
    try:
        return list(csv.reader(io.StringIO(text, newline=""), delimiter=separator))
    except csv.Error:
        raise UnreadableError(f"{path}: the file holds no text, but a table is expected") from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, by name."""
    check_regular(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        raise UnreadableError(
            f"{path} holds no tensors that can be read ({_why(error)}); bring it back from a copy"
        ) from None


def read_arrays(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Arrays of an npz, by name; what it claims to hold is checked before memory is taken for it."""
    check_regular(path)
    try:
        with zipfile.ZipFile(path) as inside:
            for name in names:
                _check_array(inside, f"{name}.npy")
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names}
    except UnreadableError as error:
        raise UnreadableError(f"{path}: {error}") from None
    except (ValueError, KeyError, OSError, EOFError, TypeError, zipfile.BadZipFile, zlib.error, RuntimeError):
        raise UnreadableError(
            f"{path}: an npz with arrays {', '.join(names[:-1])} and {names[-1]} is expected, in one piece"
        ) from None


def _check_array(archive: zipfile.ZipFile, member: str) -> None:
    """Refuses an array that is larger than its part of the archive, or than what is read."""
    size = archive.getinfo(member).file_size
    if size > LARGEST:
        raise UnreadableError(f"{member} claims {size:,} bytes, but at most {LARGEST:,} are read")
    with archive.open(member) as file:
        major, _ = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        shape, _, kind = header(file)
        if (claimed := math.prod(shape) * kind.itemsize) > size:
            raise UnreadableError(f"{member} claims {claimed:,} bytes, but the archive holds {size:,} of it")


def contents(path: Path, most: int = LARGEST) -> bytes:
    """A file's bytes, unpacked if gzip, bzip2 or xz packed them.

    Args:
        most: Bytes that may come out of it.
    """
    found = read_bytes(path, most)
    unpack = next((opener for magic, opener in PACKERS.items() if found.startswith(magic)), None)
    if unpack is None:
        return found
    try:
        with unpack(io.BytesIO(found)) as file:
            unpacked = file.read(most + 1)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UnreadableError(f"{path}: the file is damaged ({error}): get it anew") from None
    if len(unpacked) > most:
        raise UnreadableError(f"{path} unpacks to more than the {most:,} bytes that are read")
    return unpacked


def _only_member(archive: Path, packed: bytes) -> bytes:
    """The bytes of the one file in a zip archive, beside what a Mac adds to it."""
    try:
        with zipfile.ZipFile(io.BytesIO(packed)) as inside:
            files = [
                i for i in inside.infolist() if not i.is_dir() and not i.filename.startswith("__MACOSX/")
            ]
            if any(file.filename == "[Content_Types].xml" for file in files):
                raise UnreadableError(f"{archive} is a workbook of Excel: save its sheet as CSV")
            if len(files) != 1 or files[0].file_size > LARGEST:
                raise UnreadableError(
                    f"{archive} holds {len(files)} files, but one of at most {LARGEST:,} bytes is expected:"
                    " unpack it, and name the file"
                )
            return inside.read(files[0])
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, OSError) as error:
        raise UnreadableError(f"{archive} is damaged ({error}): get it anew") from None


def unzip(archive: Path, members: Mapping[str, Path]) -> None:
    """Writes files of a zip archive.

    Args:
        members: Where each goes, by its name in the archive.
    """
    check_regular(archive)
    try:
        with zipfile.ZipFile(archive) as inside:
            for name, target in members.items():
                if (size := inside.getinfo(name).file_size) > LARGEST:
                    raise UnreadableError(
                        f"{archive}: {name} has {size:,} bytes, at most {LARGEST:,} are read"
                    )
                with inside.open(name) as file, target.open("wb") as out:
                    for block in _blocks(file):
                        out.write(block)
    except KeyError as error:
        raise UnreadableError(f"{archive} lacks a file: {error.args[0]}") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise UnreadableError(f"{archive} is damaged ({error}): get it anew") from None


def _blocks(file: Any) -> Iterator[bytes]:
    while block := file.read(MIB):
        yield block


def _whole(text: str) -> int | float:
    """A whole number of JSON that a float can hold, as one where no computer's integer can."""
    if len(text) > DIGITS:
        raise ValueError(f"a whole number has {len(text)} digits, but at most {DIGITS} are read")
    value = int(text)
    return value if -(2**63) <= value < 2**64 else float(value)


def _why(error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return " ".join(str(reason or error).split())[:200]
