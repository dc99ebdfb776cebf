"""One process in a run folder, whatever became of the others."""

from __future__ import annotations

import gc
import os
import signal

import pytest
from forked import Forked

from graphsurgery.errors import SurgeryError
from graphsurgery.training.loop.holding import held
from graphsurgery.training.loop.run import Run


@pytest.fixture
def other(tmp_path):
    """Another process that works in the folder."""
    reading, writing = os.pipe()

    def hold():
        run = held(tmp_path)
        os.write(writing, b"held")
        signal.pause()
        del run

    with Forked(hold) as process:
        assert os.read(reading, 4) == b"held"
        yield process


def tried(folder):
    """What becomes of another process that would work in the folder: nothing, or what it says."""

    def hold():
        try:
            held(folder)
        except SurgeryError as cause:
            os.write(writing, str(cause).encode())

    reading, writing = os.pipe()
    with Forked(hold, closed=[reading]) as process:
        os.close(writing)
        assert process.wait() == 0
    with os.fdopen(reading) as said:
        return said.read()


def test_a_second_process_is_refused_and_a_dead_one_is_followed(tmp_path, other):
    with pytest.raises(SurgeryError, match=r"run folder .*: another process works in it; wait .* or give a new folder"):
        Run(tmp_path)
    other.send_signal(signal.SIGKILL)
    other.wait()
    (tmp_path / "sub").mkdir()
    left = [tmp_path / ".train.state.pt.abcd_123.part", tmp_path / "sub" / ".m.pt.12345678.part"]
    kept = [tmp_path / "notes.part", tmp_path / ".hidden", tmp_path / ".my.part"]
    for path in (*left, *kept):
        path.touch()
    run = Run(tmp_path)
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in kept)
    run.save_state("train", {"epoch": 1})


def test_one_process_may_open_it_twice_and_lets_go_of_it(tmp_path):
    first, second = Run(tmp_path), Run(tmp_path)
    assert second.folder == first.folder
    assert "another process works in it" in tried(tmp_path)
    del first, second
    gc.collect()
    assert not tried(tmp_path)


def test_a_forked_child_holds_nothing(tmp_path):
    run = Run(tmp_path)
    reading, writing = os.pipe()
    with Forked(lambda: os.read(reading, 1), closed=[writing]):
        del run
        gc.collect()
        assert not tried(tmp_path)
    os.close(reading)
    os.close(writing)


def test_only_the_first_of_several_processes_holds_it(tmp_path, other, monkeypatch):
    assert other.pid
    monkeypatch.setenv("RANK", "1")
    Run(tmp_path)
