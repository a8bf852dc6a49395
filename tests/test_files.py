import pytest

from ddim_hf.files import whole_file, write_text


def test_a_file_is_replaced_as_a_whole(tmp_path):
    """Until the block ends the old content stands; afterwards the new one, and nothing is left beside it."""
    write_text(tmp_path / "a.txt", "old")
    with whole_file(tmp_path / "a.txt") as beside:
        beside.write_text("new")
        assert (tmp_path / "a.txt").read_text() == "old" and beside.suffix == ".txt"
    assert (tmp_path / "a.txt").read_text() == "new"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_a_writer_that_fails_leaves_the_old_file(tmp_path):
    """An exception in the block leaves the old content, and no half-written file."""
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(KeyboardInterrupt), whole_file(tmp_path / "a.txt") as beside:
        beside.write_text("half")
        raise KeyboardInterrupt
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]
