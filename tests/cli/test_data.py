"""difftilt data: files come whole and checked, or not at all, and one sentence says why."""

import dataclasses
import gzip
import hashlib
import socket
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from difftilt.cli.main import main
from difftilt.data import catalog
from difftilt.data.libraries import load_moses

SPLITS = {
    "train.csv.gz": b"SMILES\nCCO\nCCC\n",
    "test.csv.gz": b"SMILES\nCCN\n",
    "test_scaffolds.csv.gz": b"SMILES\nCNC\n",
}


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIFFTILT_DATA", str(tmp_path / "store"))
    monkeypatch.setenv("no_proxy", "*")
    return tmp_path / "store"


@pytest.fixture
def moses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An archive like the published one, but small, which the catalogue takes for the true one."""
    archive = tmp_path / "molsets.whl"
    true = catalog.DATASETS["moses"]
    with zipfile.ZipFile(archive, "w") as made:
        for file, text in SPLITS.items():
            made.writestr(true.files[file].member, gzip.compress(text))
    files = {
        file: dataclasses.replace(true.files[file], sha256=hashlib.sha256(text).hexdigest())
        for file, text in SPLITS.items()
    }
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    small = dataclasses.replace(true, files=files, sha256=digest)
    monkeypatch.setitem(catalog.DATASETS, "moses", small)
    return archive


def publish(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    moved = dataclasses.replace(catalog.DATASETS["moses"], url=url)
    monkeypatch.setitem(catalog.DATASETS, "moses", moved)


@pytest.fixture
def server(moses: Path) -> Iterator[str]:
    """Serves the archive at /whole, a longer promise than it keeps at /cut, and another file at /other."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self):
            body = {"/whole": moses.read_bytes(), "/cut": moses.read_bytes(), "/other": b"SMILES\nC\n"}
            if self.path not in body:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(body[self.path]) + 99 * (self.path == "/cut")))
            self.end_headers()
            self.wfile.write(body[self.path])

        def log_message(self, format, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as answering:
        thread = threading.Thread(target=answering.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{answering.server_port}"
        answering.shutdown()
        thread.join()


def failure(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["data", *map(str, words)])
    assert stop.value.code in (1, 2)
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("difftilt: ")
    return last.removeprefix("difftilt: ")


def kept(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.rglob("*") if path.is_file()}


def test_fetch_brings_every_file(server: str, store: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    publish(monkeypatch, f"{server}/whole")
    main(["data", "fetch", "moses"])
    printed = capsys.readouterr().out
    assert "train.csv.gz, test.csv.gz, test_scaffolds.csv.gz in" in printed and "warning" not in printed
    assert {name: gzip.decompress(found) for name, found in kept(store).items()} == SPLITS
    assert load_moses("train") == ["CCO", "CCC"]
    publish(monkeypatch, f"{server}/gone")
    main(["data", "fetch", "moses"])
    assert "already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("page", "reason"),
    [("/gone", "Not Found"), ("/cut", "bytes"), ("/other", "its sha256 is")],
    ids=["missing", "truncated", "another"],
)
def test_a_bad_answer_leaves_nothing_behind(
    page: str, reason: str, server: str, store: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    publish(monkeypatch, server + page)
    said = failure(capsys, "fetch", "moses")
    assert said.startswith(f"moses could not be fetched from {server}{page} (") and reason in said
    assert said.endswith(f"; by hand: {catalog.DATASETS['moses'].manual}")
    assert kept(store) == {}


def test_without_a_network_the_manual_way_is_told(moses: Path, store: Path, monkeypatch, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    publish(monkeypatch, f"http://127.0.0.1:{port}/")
    said = failure(capsys, "fetch", "moses")
    assert "Connection refused" in said and "difftilt data import moses" in said
    assert kept(store) == {}


@pytest.mark.parametrize("kind", ["archive", "folder", "parent", "unpacked"])
def test_import_takes_what_there_is(kind: str, moses: Path, store: Path, tmp_path: Path, capsys):
    source = moses
    if kind != "archive":
        source = tmp_path / "moses"
        source.mkdir()
        for name, text in SPLITS.items():
            if kind == "unpacked":
                (source / name.removesuffix(".gz")).write_bytes(text)
            else:
                (source / name).write_bytes(gzip.compress(text))
    main(["data", "import", "moses", str(source.parent if kind == "parent" else source)])
    assert "warning" not in capsys.readouterr().out
    assert {name: gzip.decompress(found) for name, found in kept(store).items()} == SPLITS


def test_one_file_of_several_can_be_imported(moses: Path, store: Path, tmp_path: Path, capsys):
    (tmp_path / "test.csv").write_bytes(SPLITS["test.csv.gz"])
    main(["data", "import", "moses", str(tmp_path / "test.csv")])
    assert list(kept(store)) == ["test.csv.gz"]
    main(["data", "list"])
    assert "1 of 3" in capsys.readouterr().out


def test_what_differs_but_is_well_formed_is_taken_with_a_warning(store: Path, tmp_path: Path, capsys):
    (tmp_path / "mine.csv").write_text("sequences,fitness\nVDGV,1\nAAAA,0.5\n")
    main(["data", "import", "gb1", str(tmp_path / "mine.csv")])
    assert "warning: Wu2016_GB1.csv.gz is well-formed, but differs from the copy" in capsys.readouterr().out
    assert gzip.decompress(kept(store)["Wu2016_GB1.csv.gz"]).startswith(b"sequences")


def test_what_is_ill_formed_is_refused_and_what_was_there_stays(store: Path, tmp_path: Path, capsys):
    good, bad = tmp_path / "good.csv", tmp_path / "bad.csv"
    good.write_text("sequences,fitness\nVDGV,1\nAAAA,0.5\n")
    bad.write_text("sequences,fitness\nVDGV,1\nAAAX,0.5\n")
    main(["data", "import", "gb1", str(good)])
    before = kept(store)
    assert failure(capsys, "import", "gb1", bad).startswith(f"{bad}: row 3 holds 'X' at position 4")
    assert kept(store) == before


def test_what_is_not_there_is_named(moses: Path, tmp_path: Path, capsys):
    assert failure(capsys, "import", "moses", tmp_path / "no").startswith(f"{tmp_path / 'no'} does not exist")
    said = failure(capsys, "import", "moses", tmp_path)
    assert said == f"{tmp_path} does not hold train.csv.gz, which moses needs"
    (tmp_path / "valid.csv").write_text("SMILES\nC\n")
    assert "is none of the files of moses" in failure(capsys, "import", "moses", tmp_path / "valid.csv")
    with zipfile.ZipFile(tmp_path / "other.whl", "w") as archive:
        archive.writestr("a", "b")
    assert "lacks a file" in failure(capsys, "import", "moses", tmp_path / "other.whl")


def test_a_damaged_archive_is_refused(moses: Path, store: Path, capsys):
    whole = moses.read_bytes()
    moses.write_bytes(whole.replace(b"\x1f\x8b", b"\x00\x00"))
    assert f"{moses} is damaged" in failure(capsys, "import", "moses", moses)
    assert kept(store) == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "difftilt data needs one of list, fetch, import"),
        (("fetsch", "gb1"), "there is no data command 'fetsch': valid are list, fetch, import; did you mean"),
        (
            ("fetch", "gb2"),
            "there is no data set 'gb2': valid are tfbind8, gb1, utr, moses; did you mean",
        ),
        (("fetch",), "Missing from difftilt data fetch: NAME"),
        (("import", "gb1"), "Missing from difftilt data import: PATH"),
        (("list", "--what"), "there is no option --what"),
    ],
    ids=["nothing", "command", "name", "no-name", "no-path", "option"],
)
def test_wrong_lines_end_in_one_sentence(words: tuple[str, ...], message: str, capsys):
    assert failure(capsys, *words).startswith(message)


def test_list_and_help_tell_what_there_is(store: Path, capsys):
    main(["data", "list"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in catalog.DATASETS) and str(store) in printed
    main(["data", "--help"])
    printed = capsys.readouterr().out
    assert "fetch NAME" in printed and "import NAME PATH" in printed and "DIFFTILT_DATA" in printed
