"""What `import graphsurgery as gs` shows."""

import inspect
import subprocess
import sys
import typing

import pytest

import graphsurgery as gs
from graphsurgery.passes import PASSES
from graphsurgery.passes import compress as module_of_compress
from graphsurgery.recipes.outcome import Outcome, Result

TRAINING = (
    *("grow", "lottery", "merge", "mimic", "recover_without_labels"),
    *("shrink", "supermask", "train", "train_slimmable"),
)
FUNCTIONS = sorted(name for name in gs.__all__ if inspect.isfunction(getattr(gs, name)))


def test_dir_lists_what_there_is_and_no_more():
    assert [name for name in dir(gs) if not name.startswith("__")] == sorted(gs.__all__)
    listed = set(gs.__doc__.replace(",", " ").replace(";", " ").replace(":", " ").split())
    assert set(gs.__all__) <= listed


def test_importing_is_cheap():
    code = "import sys, graphsurgery; dir(graphsurgery); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_every_pass_is_a_function_of_its_name_and_stays_a_module():
    for name, module in PASSES.items():
        assert getattr(gs, name) is getattr(module, name)
    assert inspect.ismodule(module_of_compress)
    assert gs.compress is module_of_compress.compress


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_a_function_takes_and_raises_is_written_down(name):
    text = inspect.getdoc(getattr(gs, name))
    parameters = inspect.signature(getattr(gs, name)).parameters
    if len(parameters) > 1:
        assert "Args:" in text
        described = text.partition("Args:")[2]
        missing = [p for p in parameters if f"{p}:" not in described and f"{p}," not in described]
        assert not missing


@pytest.mark.parametrize("name", TRAINING)
def test_recipes_that_train_return_one_shape(name):
    returned = typing.get_type_hints(getattr(gs, name))["return"]
    assert typing.get_origin(returned) is Result
    assert all(issubclass(kind, Outcome) for kind in typing.get_args(returned))


def test_unknown_names():
    with pytest.raises(AttributeError, match="module graphsurgery has no attribute luck"):
        gs.luck  # noqa: B018
