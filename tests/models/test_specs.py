import builtins
import sys

import pytest
import torch
from torch import nn

from graphsurgery.errors import SpecError
from graphsurgery.models import available, build, input_shape
from graphsurgery.models.specs import example_inputs

FILE = """
from torch import nn

INPUT_SHAPE = (4,)

def small(width: int = 3, bias: bool = True) -> nn.Module:
    return nn.Linear(4, width, bias=bias)

def wrong() -> int:
    return 3

def broken() -> nn.Module:
    raise ValueError("no such thing")
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "net.py"
    path.write_text(FILE)
    return path


def test_options_reach_the_constructor(file):
    module = build(f"{file}:small?width=5&bias=false")
    assert isinstance(module, nn.Linear)
    assert module.out_features == 5
    assert module.bias is None


def test_two_files_of_one_name_stay_apart(file, tmp_path):
    other = tmp_path / "other" / "net.py"
    other.parent.mkdir()
    other.write_text(FILE.replace("width: int = 3", "width: int = 7"))
    assert build(f"{file}:small").out_features == 3
    assert build(f"{other}:small").out_features == 7


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        ("paper/mlp", (1,)),
        ("paper/lenet_300_100", (1, 28, 28)),
        ("paper/lenet_300_100?in_features=50", (50,)),
        ("paper/conv2?in_channels=1&image_size=8", (1, 8, 8)),
        ("paper/resnet20?in_channels=1", (1, 32, 32)),
        ("paper/resnet18", (3, 224, 224)),
        ("torchvision/resnet18", (3, 224, 224)),
        ("torchvision/inception_v3", (3, 299, 299)),
        ("torchvision/vit_b_16?image_size=64", (3, 64, 64)),
        ("torchvision/r3d_18", (3, 16, 112, 112)),
        ("torchvision/retinanet_resnet50_fpn", (3, 320, 320)),
        ("torchvision/ssd300_vgg16", (3, 300, 300)),
        ("torchvision/raft_small", None),
        ("timm/resnet10t", (3, 176, 176)),
        ("timm/resnet10t?in_chans=1", (1, 176, 176)),
    ],
)
def test_input_shape(spec, shape):
    assert input_shape(spec) == shape


def test_input_shape_of_a_file(file):
    assert input_shape(f"{file}:small") == (4,)


@pytest.mark.parametrize("spec", ["torchvision/resnet18?num_classes=7", "timm/resnet10t?num_classes=7&in_chans=3"])
def test_library_models(spec):
    with torch.device("meta"):
        module = build(spec)
        assert module(torch.empty(2, 3, 64, 64)).shape == (2, 7)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_models_that_warn_are_built_silently(name):
    with torch.device("meta"):
        assert isinstance(build(f"torchvision/{name}?init_weights=false"), nn.Module)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("paper/resnet21", r"paper has no model 'resnet21'; did you mean .*resnet20"),
        ("torchvison/resnet18", "unknown source 'torchvison', and no such file; did you mean torchvision"),
        ("torchvision/resnet81", "torchvision has no model 'resnet81'; did you mean"),
        ("timm/resnet10tt", "timm has no model 'resnet10tt'; did you mean .*resnet10t"),
        ("resnet20", r"has no source, expected one of paper, timm, torchvision.*; did you mean paper/resnet20\?"),
        ("torchvision/xyzzy", r"graphsurgery models torchvision/ lists all \d+"),
        ("resnet81", "did you mean (paper|timm|torchvision)/resnet.* or (paper|timm|torchvision)/resnet"),
        ("xyzzy", "graphsurgery models lists what there is"),
        ("paper/cnn?widht=4", "has no option 'widht'; accepted: classes, in_channels, width"),
        ("torchvision/resnet18?classes=4", "has no option 'classes'; accepted: .*num_classes.*weights"),
        ("timm/resnet10t?classes=4", "has no option 'classes'; accepted: .*num_classes"),
        ("paper/cnn?width", "'width' is not an option; write option=value"),
        ("paper/cnn?width=4&width=5", "option width is given twice"),
        ("paper/cnn?width=wide", "cannot be built"),
        ("?width=4", "has no name"),
        ("nowhere/net.py:make", "nowhere/net.py: no such file; expected a Python file"),
        ("paper/lenet5?image_size=8", "image_size 8 leaves nothing after the second pool, expected 12 or more"),
        ("paper/conv6?image_size=7", "image_size 7 leaves nothing after 3 pools, expected 8 or more"),
    ],
)
def test_bad_specs(spec, message):
    with pytest.raises(SpecError, match=message):
        build(spec)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("smal", "has no function 'smal'; did you mean small"),
        ("wrong", "returned int, expected a torch.nn.Module"),
        ("broken", r"fails: .*net\.py:13 in broken: ValueError: no such thing"),
        ("small?widht=3", "has no option 'widht'; accepted: bias, width"),
    ],
)
def test_bad_functions(file, function, message):
    with pytest.raises(SpecError, match=message):
        build(f"{file}:{function}")


@pytest.mark.parametrize("said", ["'3x32'", "10", "()", "(3, 0)", "(3, 32.0)", "(3, '32')"])
def test_a_shape_that_is_none(tmp_path, said):
    path = tmp_path / "net.py"
    path.write_text(f"INPUT_SHAPE = {said}\ndef f(): ...\n")
    with pytest.raises(SpecError, match=r"net\.py: INPUT_SHAPE is .*; give the sizes of one example without the batch"):
        input_shape(f"{path}:f")
    path.write_text("EXAMPLE_INPUTS = 5\ndef f(): ...\n")
    with pytest.raises(SpecError, match="its EXAMPLE_INPUTS are no tensors"):
        example_inputs(f"{path}:f")


def test_options_that_are_needed(tmp_path):
    (tmp_path / "net.py").write_text("def f(width, depth, *, bias): ...\n")
    with pytest.raises(SpecError, match=r"needs options; give them as \?width=\.\.\.&depth=\.\.\.$"):
        build(f"{tmp_path / 'net.py'}:f")


def test_a_file_beside_it_is_imported(tmp_path):
    (tmp_path / "beside_a_net.py").write_text("from torch import nn\nclass Net(nn.Linear): ...\n")
    (tmp_path / "net.py").write_text("from beside_a_net import Net\ndef f():\n    return Net(3, 4)\n")
    assert build(f"{tmp_path / 'net.py'}:f").out_features == 4


def test_a_program_that_ends_is_no_silence(tmp_path):
    (tmp_path / "net.py").write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(SpecError, match=r"ends the program when executed; put .* if __name__ == '__main__'"):
        build(f"{tmp_path / 'net.py'}:f")


def test_a_syntax_error_has_its_line(tmp_path):
    (tmp_path / "net.py").write_text("import sys\nx = (1\n")
    with pytest.raises(SpecError, match=r"fails when executed: \S*net\.py:2: SyntaxError: '\(' was never closed"):
        build(f"{tmp_path / 'net.py'}:f")


def test_a_file_that_fails(tmp_path):
    path = tmp_path / "bad.py"
    path.write_text("1 / 0")
    with pytest.raises(SpecError, match=r"bad.py: fails when executed: .*bad.py:1 in <module>: ZeroDivisionError"):
        build(f"{path}:make")


def test_without_timm(monkeypatch):
    real = builtins.__import__

    def no_timm(name, *rest):
        if name == "timm":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.delitem(sys.modules, "timm", raising=False)
    monkeypatch.setattr(builtins, "__import__", no_timm)
    with pytest.raises(
        SpecError, match=r"timm is not installed; install the extra: pip install 'graphsurgery\[timm\]'"
    ):
        build("timm/resnet10t")
    assert available("timm/") == []


def test_available():
    assert available("paper/conv") == ["paper/conv2", "paper/conv4", "paper/conv6"]
    assert "torchvision/resnet18" in available("torchvision/")
    assert len(available()) > 500
