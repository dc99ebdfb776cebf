"""Files that are imported while a model is traced keep nothing of the trace, and take part in it."""

from __future__ import annotations

import importlib
import inspect
import sys
import threading

import numpy as np
import pytest
import torch
from torch import nn

import graphsurgery as gs

HELPER = """
import math
from numpy import zeros as array_of_zeros
from torch import arange, finfo, is_tensor, rand, zeros
from torch.distributions import Distribution

VALIDATES = Distribution._validate_args
EXPANDS = zeros(3).expand
KINDS = (finfo, float)

def scaled(x):
    scale = 2.0 if isinstance(x, type(zeros(1))) and is_tensor(x) else 0.0
    return x * scale + zeros(x.shape) + arange(x.shape[0], dtype=x.dtype)[:, None]
"""


@pytest.fixture
def helper(tmp_path, monkeypatch):
    """The name of a file that no other test has imported."""
    name = f"helper_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(HELPER)
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    sys.modules.pop(name, None)


class Importing(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.last(importlib.import_module(self.name).scaled(self.first(x)))


def test_a_file_keeps_nothing_of_the_trace_that_imports_it(helper):
    before = list(sys.meta_path)
    model = Importing(helper).eval()
    graph = gs.trace(model, torch.randn(2, 4), check=False)  # the comparison would import it first
    module = sys.modules[helper]
    assert module.finfo is torch.finfo
    assert module.zeros is torch.zeros
    assert module.arange is torch.arange
    assert module.rand is torch.rand
    assert module.is_tensor is torch.is_tensor
    assert module.array_of_zeros is np.zeros
    assert module.VALIDATES is torch.distributions.Distribution._validate_args
    assert isinstance(1.0, module.KINDS)
    assert "isinstance" not in vars(module)
    assert sys.meta_path == before
    x = torch.randn(5, 4)
    torch.testing.assert_close(graph(x), model(x))


def test_it_is_loaded_as_without_a_trace(helper):
    gs.trace(Importing(helper).eval(), torch.randn(2, 4), check=False)
    module = sys.modules[helper]
    assert type(module.__spec__.loader) is type(module.__loader__) is importlib.machinery.SourceFileLoader
    assert "scale = 2.0" in inspect.getsource(module.scaled)
    assert importlib.reload(module) is module


def test_the_traces_that_follow_record_into_their_own_graph(helper):
    for width in (4, 5):
        model = Importing(helper)
        model.first = nn.Linear(width, 6)
        graph = gs.trace(model.eval(), torch.randn(2, width), check=False)
        x = torch.randn(3, width)
        torch.testing.assert_close(graph(x), model(x))
        assert [space.size for space in graph.spaces] == [6]


def test_a_file_that_cannot_be_imported_is_the_error_of_the_model(helper, tmp_path):
    (tmp_path / f"{helper}.py").write_text("from torch import nothing_of_this_name")
    before = list(sys.meta_path), torch.zeros, torch.finfo
    with pytest.raises(gs.errors.SurgeryError, match="nothing_of_this_name"):
        gs.trace(Importing(helper).eval(), torch.randn(2, 4))
    with pytest.raises(gs.errors.SurgeryError, match="no_such_file"):
        gs.trace(Importing("no_such_file").eval(), torch.randn(2, 4), check=False)
    assert (list(sys.meta_path), torch.zeros, torch.finfo) == before


def test_a_file_that_another_thread_imports_ends_no_trace(helper):
    class Threaded(Importing):
        def forward(self, x):
            thread = threading.Thread(target=importlib.import_module, args=[self.name])
            thread.start()
            thread.join()
            return self.last(self.first(x) + torch.zeros(x.shape[0], 6) + torch.finfo(x.dtype).eps)

    model = Threaded(helper).eval()
    graph = gs.trace(model, torch.randn(2, 4), check=False)
    x = torch.randn(5, 4)
    torch.testing.assert_close(graph(x), model(x))
    assert helper in sys.modules
