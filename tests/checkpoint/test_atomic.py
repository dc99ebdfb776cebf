import pytest

from graphsurgery.checkpoint.atomic import atomic_write
from graphsurgery.errors import SurgeryError


def test_the_file_is_whole_or_untouched(tmp_path):
    path = tmp_path / "file"
    with atomic_write(path) as temporary:
        temporary.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as temporary:
        temporary.write_text("half" * (1 // 0))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder(tmp_path):
    path = tmp_path / "missing" / "file"
    with (
        pytest.raises(SurgeryError, match=r"missing/file: cannot be written .No such file or directory"),
        atomic_write(path),
    ):
        raise AssertionError
