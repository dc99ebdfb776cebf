"""Long work shows itself on standard error: by a fake clock, on a terminal and in a pipe."""

import contextlib
import io
import json
import os
import pty
import subprocess
import sys
import threading

import pytest
from patience import PATIENCE
from rich.console import Console

from graphsurgery.cli.process.watching import Lines, Turning, hidden, watching
from graphsurgery.progress import listening, phase
from graphsurgery.training.loop.progress import BarReporter, LogReporter
from graphsurgery.training.loop.run import EpochRecord


@pytest.fixture(autouse=True)
def no_lines_now_and_then():
    """Here they are what is tested."""


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def lines(clock):
    """What a pipe gets, and who writes it."""
    written = []
    return written, Lines(written.append, clock)


def test_a_line_every_ten_seconds(clock, lines):
    written, watcher = lines
    with listening(watcher), phase("timing", 40) as at:
        for second in range(35):
            clock.now = 100.0 + second
            watcher.tick()
            if second == 15:
                at.step("conv1")
    assert written == ["timing 0/40, for 10 s", "timing 1/40, conv1, for 20 s", "timing 1/40, conv1, for 30 s"]


def test_short_phases_together_are_long(clock, lines):
    written, watcher = lines
    with listening(watcher):
        for number in range(12):
            with phase(f"cut {number}"), phase("exporting"):
                clock.now += 4
                watcher.tick()
    assert written == [f"cut {number}: exporting, for 4 s" for number in (2, 5, 8, 11)]
    assert not watcher.phases


def test_a_phase_that_fails_is_over(lines):
    _, watcher = lines
    with pytest.raises(ZeroDivisionError), listening(watcher), phase("timing"):
        raise ZeroDivisionError
    assert not watcher.phases


def test_verbose_lines_say_how_long_each_took(clock):
    written = []
    with listening(Lines(written.append, clock, each=True)), phase("exporting"):
        clock.now += 2.5
    assert written == ["exporting, done in 2.5 s"]


def test_nobody_listens():
    with phase("timing", 2) as at:
        at.step("conv1")
    assert str(at) == "timing 1/2, conv1"


@phase("by a decorator")
def decorated():
    return 3


def test_a_function_is_a_phase(lines):
    _, watcher = lines
    began = []
    watcher.began = began.append
    with listening(watcher):
        assert decorated() == 3
    assert [each.name for each in began] == ["by a decorator"]


def test_a_line_turns_on_a_terminal(clock):
    screen = io.StringIO()
    watcher = Turning(Console(file=screen, force_terminal=True, width=80), clock)
    with listening(watcher), phase("measuring spaces", 3) as at:
        watcher.tick()
        assert screen.getvalue() == ""  # what is over soon does not flicker
        clock.now += 2
        at.step("conv1")
        assert "2 s  measuring spaces 1/3, conv1" in screen.getvalue()
        with watcher.hidden():
            assert screen.getvalue().endswith("\x1b[2K")  # the line is gone before others print
        clock.now += 1
        watcher.tick()
        assert "3 s  measuring spaces" in screen.getvalue()
    assert screen.getvalue().endswith("\x1b[2K")


def test_a_long_name_stays_on_its_line(clock):
    screen = io.StringIO()
    watcher = Turning(Console(file=screen, force_terminal=True, width=40), clock)
    with listening(watcher), phase("x" * 100):
        clock.now += 2
        watcher.tick()
    assert max(map(len, screen.getvalue().replace("\x1b", "\r").splitlines())) <= 50


def test_what_takes_times_is_left_alone(clock, lines):
    written, watcher = lines
    watcher.pause = 0.001
    watcher.start()
    watcher.ready()
    with listening(watcher), phase("timing", still=True) as at:
        clock.now += 50
        threads = [watcher._thread]
        threads[0].join(0.05)
        assert written == []
        at.step()
        assert written == ["timing, for 50 s"]
    watcher.close()
    assert not threads[0].is_alive()


def test_the_thread_ends_with_the_command():
    with watching(), phase("timing"), hidden():
        pass
    assert not [t for t in threading.enumerate() if t.name == "graphsurgery watcher"]


def record(epoch, loss=0.5):
    return EpochRecord("train", epoch, {"total": loss}, {"accuracy": 0.9}, {}, 0.1, 1.0)


def test_the_loss_inside_an_epoch_in_a_pipe(clock, logged):
    reporter = LogReporter(clock)
    reporter.started("train", 2)
    for step in range(30):
        clock.now += 1
        reporter.advanced(step / 60, 2.0 - step / 60)
    reporter.epoch_finished(record(1))
    clock.now += 9
    reporter.advanced(1.1, 0.4)
    assert logged == [
        "train 0.15 of 2 epochs: loss 1.85 so far",
        "train 0.32 of 2 epochs: loss 1.683 so far",
        "train 0.48 of 2 epochs: loss 1.517 so far",
        "train epoch 1/2: train total 0.5, validation accuracy 0.9 (1.0 s)",
    ]


def test_the_loss_inside_an_epoch_on_a_terminal():
    reporter = BarReporter()
    reporter.bar.live.console = Console(file=io.StringIO(), force_terminal=True, width=120)
    task = reporter.bar.tasks[0]
    reporter.started("train", 2)
    reporter.advanced(0.5, 1.25)
    assert task.fields["words"] == "loss 1.25"
    reporter.epoch_finished(record(1))
    reporter.advanced(1.1, 0.75)
    assert task.fields["words"] == "loss 0.75, accuracy 0.9"
    with phase("validation") as at:
        assert task.fields["words"] == str(at)
    assert task.fields["words"] == "loss 0.75, accuracy 0.9"
    reporter.finished()
    with phase("later"):
        assert task.fields["words"] != "later"


SLOW = """
import sys, time
import graphsurgery.cli as cli
from graphsurgery.cli.options import Shown
from graphsurgery.cli.output import Screen
from graphsurgery.cli.process import watching
from graphsurgery.progress import phase

watching.EVERY, watching._PATIENCE, watching.Lines.pause = 0.0, 0.0, 0.01
shown = []

def note(method):
    def noted(watcher, *arguments):
        shown.append(watcher.words())
        return method(watcher, *arguments)
    return noted

watching.Lines._say = note(watching.Lines._say)
watching.Turning._line = note(watching.Turning._line)

def command(tokens, **_):
    screen = Screen(Shown.of(tokens))
    with phase("slow work"):
        while "slow work" not in shown:
            time.sleep(0.01)
    screen.line("result", "is here")
    screen.finish({"result": 1}, "inspect")

cli.app = command
sys.exit(cli.run(["inspect", *sys.argv[1:]]))
"""
"""A command that waits until standard error has shown what it does; it imports no torch."""


def test_a_pipe_gets_lines_and_the_document_none():
    done = subprocess.run([sys.executable, "-c", SLOW, "--json"], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0
    assert json.loads(done.stdout) == {"result": 1, "next": "graphsurgery inspect"}
    assert "slow work, for " in done.stderr


def test_a_reader_of_one_line_ends_nothing():
    command = f'{sys.executable} -c "$SLOW" 2>&1 | head -1; echo ${{PIPESTATUS[0]}}'
    environment = {**os.environ, "SLOW": SLOW}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment, timeout=PATIENCE)
    assert done.stdout.splitlines() == ["slow work, for 0 s", "0"]
    assert done.stderr == ""


def test_on_a_terminal_the_line_goes_before_the_output_comes():
    leader, follower = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", SLOW], stdout=follower, stderr=follower)
    os.close(follower)
    shown = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while chunk := os.read(leader, 65536):
            shown += chunk
    os.close(leader)
    assert process.wait() == 0
    text = shown.decode()
    assert "slow work" in text
    between = text.rpartition("slow work")[2].partition("result")[0]
    assert "\x1b[2K" in between
