import io

from rich.console import Console

from graphsurgery.training.loop import fit
from graphsurgery.training.objectives import CrossEntropy
from graphsurgery.training.plan import TrainingPlan
from graphsurgery.training.progress import BarReporter, LogReporter, default_reporter


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
