"""What is written appears whole, and what was there stays until then."""

import pytest

from difftilt.data.atomic import CONTENTS, atomic_file, atomic_folder


def test_a_folder_takes_the_place_of_the_old_one(tmp_path):
    place = tmp_path / "model"
    for name in ("first", "second"):
        with atomic_folder(place) as new:
            (new / name).write_text(name)
            assert not (place / name).exists()
        assert {path.name for path in place.iterdir()} == {name, CONTENTS}
    assert list(tmp_path.iterdir()) == [place]


@pytest.mark.parametrize("make", [atomic_file, atomic_folder])
def test_after_an_error_all_is_as_before(make, tmp_path):
    place = tmp_path / "model"
    if make is atomic_file:
        place.write_text("old")
    else:
        with make(place) as new:
            (new / "old").touch()
    with pytest.raises(OSError, match="full"), make(place) as new:
        (new if make is atomic_file else new / "part").write_text("half")
        raise OSError("full")
    assert place.read_text() == "old" if make is atomic_file else (place / "old").exists()
    assert list(tmp_path.iterdir()) == [place]


@pytest.mark.parametrize("kind", ["folder", "file", "link", "one file more"])
def test_what_a_user_put_there_is_neither_deleted_nor_moved(kind, tmp_path):
    place, theirs = tmp_path / "thesis", tmp_path / "elsewhere"
    theirs.mkdir()
    (theirs / "chapter.tex").write_text("years of work")
    if kind == "file":
        place.write_text("years of work")
    elif kind == "link":
        place.symlink_to(theirs)
    else:
        if kind == "one file more":
            with atomic_folder(place) as new:
                (new / "model").touch()
        place.mkdir(exist_ok=True)
        (place / "chapter.tex").write_text("years of work")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="not replaced; name another folder"), atomic_folder(place):
        pytest.fail("work was begun that could not have been written")
    assert sorted(tmp_path.rglob("*")) == before
    assert (place if kind == "file" else place / "chapter.tex").read_text() == "years of work"
