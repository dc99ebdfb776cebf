"""One process in a run folder, whatever became of the others."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys

import pytest
from patience import PATIENCE

from graphsurgery.errors import SurgeryError
from graphsurgery.training.loop.run import Run

HOLD = (
    "import sys\nfrom pathlib import Path\nfrom graphsurgery.training.loop.holding import held\n"
    "run = held(Path(sys.argv[1]))\nprint('held', flush=True)\nsys.stdin.read()"
)


@pytest.fixture
def other(tmp_path):
    """Another process that works in the folder."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


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
    check = [sys.executable, "-c", HOLD, str(tmp_path)]
    refused = subprocess.run(check, input="", capture_output=True, text=True, timeout=PATIENCE)
    assert "another process works in it" in refused.stderr
    del first, second
    gc.collect()
    assert subprocess.run(check, input="", capture_output=True, text=True, timeout=PATIENCE).stdout == "held\n"


def test_a_forked_child_holds_nothing(tmp_path):
    run = Run(tmp_path)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    os.close(reading)
    try:
        del run
        gc.collect()
        check = [sys.executable, "-c", HOLD, str(tmp_path)]
        assert subprocess.run(check, input="", capture_output=True, text=True, timeout=PATIENCE).stdout == "held\n"
    finally:
        os.close(writing)
        os.waitpid(child, 0)


def test_only_the_first_of_several_processes_holds_it(tmp_path, other, monkeypatch):
    assert other.poll() is None
    monkeypatch.setenv("RANK", "1")
    Run(tmp_path)
