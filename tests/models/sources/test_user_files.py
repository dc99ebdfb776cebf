"""The line of a user's file at which something went wrong."""

import pytest
import torch

from graphsurgery.models.sources.user_files import load_function, place_of, told
from graphsurgery.network.outputs.naming import run

NETS = """
import torch

class Unlike(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(3, 4, dtype=x.dtype) @ x
"""

CALLS = """
from graphsurgery.network.layers import grouped_norm

def normed(x):
    return grouped_norm(x, None, dim=1)
"""


@pytest.fixture
def unlike(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETS)
    return load_function("nets.py:Unlike")[0]()


def test_what_torch_refuses_is_of_the_line_that_called_it(unlike):
    """Also where a mode of the package is called in between, as for all that is measured."""
    for call in (unlike, lambda x: run(unlike, [x], seed=0)):
        with pytest.raises(RuntimeError) as caught:
            call(torch.zeros(3, dtype=torch.float64))
        assert place_of(caught.value) == "nets.py:6 in forward"
        assert told(caught.value).startswith("nets.py:6 in forward: RuntimeError: size mismatch")


def test_where_the_package_goes_wrong_after_it_no_line_is_to_blame(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(CALLS)
    with pytest.raises(AttributeError) as caught:
        load_function("nets.py:normed")[0](torch.zeros(2, 3))
    assert place_of(caught.value) is None
