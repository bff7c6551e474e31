"""What is written appears whole, and what was there stays until then."""

import pytest

from difftilt.draft import draft, draft_folder


def test_a_folder_takes_the_place_of_the_old_one(tmp_path):
    place = tmp_path / "model"
    for name in ("first", "second"):
        with draft_folder(place) as new:
            (new / name).write_text(name)
            assert not (place / name).exists()
        assert [path.name for path in place.iterdir()] == [name]
    assert list(tmp_path.iterdir()) == [place]


@pytest.mark.parametrize("make", [draft, draft_folder])
def test_after_an_error_all_is_as_before(make, tmp_path):
    place = tmp_path / "model"
    if make is draft:
        place.write_text("old")
    else:
        place.mkdir()
        (place / "old").touch()
    with pytest.raises(OSError, match="full"), make(place) as new:
        (new if make is draft else new / "part").write_text("half")
        raise OSError("full")
    assert place.read_text() == "old" if make is draft else (place / "old").exists()
    assert list(tmp_path.iterdir()) == [place]
