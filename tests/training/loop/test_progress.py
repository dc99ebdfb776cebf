import io

from rich.console import Console

from graphsurgery.training.loop.fit import fit
from graphsurgery.training.loop.plan import TrainingPlan
from graphsurgery.training.loop.progress import BarReporter, LogReporter, default_reporter
from graphsurgery.training.objectives import CrossEntropy


def test_a_bar_on_a_terminal(blobs, make_net):
    reporter = BarReporter()
    screen = io.StringIO()
    reporter.bar.live.console = Console(file=screen, force_terminal=True, width=120)
    fit(make_net(), blobs, TrainingPlan(epochs=2, device="cpu"), objective=CrossEntropy(3), reporter=reporter)
    assert "2/2 epochs" in screen.getvalue()
    assert "loss" in screen.getvalue()


def test_lines_elsewhere(monkeypatch):
    monkeypatch.setattr("sys.stderr", io.StringIO())
    assert isinstance(default_reporter(), LogReporter)
