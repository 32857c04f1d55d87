"""Files and folders that are written whole or not at all."""

import os

import pytest

from sdjax.errors import WriteError
from sdjax.io.files import PART, replacing, replacing_folder, write_text


def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    file = tmp_path / "a.json"
    write_text(file, "old")
    for error, raised in (
        (OSError(28, "No space left on device"), WriteError),
        (KeyError, KeyError),
    ):
        with pytest.raises(raised), replacing(file) as new:
            new.write_text("half")
            assert PART.fullmatch(new.name)
            raise error
        assert file.read_text() == "old" and os.listdir(tmp_path) == ["a.json"]
    with replacing(file) as new:
        new.write_text("new")
    assert file.read_text() == "new" and os.listdir(tmp_path) == ["a.json"]


def test_a_directory_that_is_gone_does_not_come_back(tmp_path):
    file = tmp_path / "gone" / "a.json"
    with pytest.raises(WriteError, match=f"{file}: cannot be written .No such file or directory"):
        write_text(file, "text")
    with pytest.raises(WriteError, match="No such file or directory"), replacing_folder(file):
        pass
    assert not os.listdir(tmp_path)


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    out = tmp_path / "model"
    for text in ("first", "second"):
        with replacing_folder(out) as folder:
            (folder / "weights").write_text(text)
        assert (out / "weights").read_text() == text and os.listdir(tmp_path) == ["model"]
    with pytest.raises(WriteError, match=f"{out}: cannot be written .No space"):
        with replacing_folder(out) as folder:
            (folder / "weights").write_text("half")
            raise OSError(28, "No space left on device")
    assert (out / "weights").read_text() == "second" and os.listdir(tmp_path) == ["model"]

    # The new folder cannot get its name, so the old one gets its own back.
    with pytest.raises(WriteError, match="No such file or directory"):
        with replacing_folder(out) as folder:
            folder.rmdir()
    assert (out / "weights").read_text() == "second" and os.listdir(tmp_path) == ["model"]
