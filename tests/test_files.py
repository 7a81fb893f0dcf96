"""Files are there whole or not at all."""

from pathlib import Path

import pytest

from skinmm.files import atomic_write


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError), atomic_write(path) as partial:
        partial.write_text("new \udcff", "utf-8")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
