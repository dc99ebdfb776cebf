import pytest
import torch
from torch import nn

import graphsurgery as gs
from graphsurgery.errors import CheckpointError, SpecError, TraceError
from graphsurgery.models import build
from graphsurgery.models.loading import open_model, open_pair, parse_shape
from graphsurgery.models.sources.weights import fill

SPEC = "paper/cnn?width=4"
FILE = """
from torch import nn

def plain():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))

def deciding():
    class Deciding(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x
    return Deciding()
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "net.py"
    path.write_text(FILE)
    return path


@pytest.fixture
def module():
    torch.manual_seed(0)
    return build(SPEC).eval()


def same(graph, module):
    x = torch.randn(3, *graph.inputs[0].shape[1:])
    with torch.no_grad():
        torch.testing.assert_close(graph.module.eval()(x), module(x), rtol=0, atol=0)


def test_a_spec_gives_the_same_weights_for_the_same_seed():
    state = torch.get_rng_state()
    one, two, other = (open_model(SPEC, seed=seed).module.state_dict() for seed in (0, 0, 1))
    torch.testing.assert_close(one, two, rtol=0, atol=0)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_spec_comes_with_the_module_that_was_traced():
    graph, module = open_pair(SPEC)
    same(graph, module.eval())


def test_a_checkpoint_needs_nothing_else(tmp_path, module):
    path = tmp_path / "a.pt"
    gs.save(gs.trace(module, torch.zeros(2, 1, 8, 8)), path)
    graph, none = open_pair(str(path))
    assert none is None
    same(graph, module)


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"model": s}, lambda s: {f"module.{k}": v for k, v in s.items()}]
)
def test_a_state_dict_with_its_architecture(tmp_path, module, wrap):
    path = tmp_path / "weights.pth"
    torch.save(wrap(module.state_dict()), path)
    same(open_model(str(path), arch=SPEC), module)


def test_another_input_shape(file):
    assert open_model(SPEC, example_shape=(1, 16, 16)).inputs[0].shape == (2, 1, 16, 16)
    assert open_model(f"{file}:plain", example_shape=(4,)).inputs[0].shape == (2, 4)


def test_no_input_shape_is_known(file):
    with pytest.raises(SpecError, match="give --input, such as --input 3x224x224, or set INPUT_SHAPE in the file"):
        open_model(f"{file}:plain")


EXAMPLES = """
import torch
from torch import nn

INPUT_SHAPE = (3,)
EXAMPLE_INPUTS = (torch.zeros(2, 5, dtype=torch.long), torch.zeros(2, 4))

class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.table, self.head = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, words, table):
        return self.head(torch.relu(self.words(words).mean(1) + self.table(table)))

def both():
    return Both()
"""


def test_a_file_may_give_its_own_examples(tmp_path):
    file = tmp_path / "both.py"
    file.write_text(EXAMPLES)
    graph = open_model(f"{file}:both")
    assert [(spec.name, spec.shape, spec.dtype) for spec in graph.inputs] == [
        ("words", (2, 5), torch.int64),
        ("table", (2, 4), torch.float32),
    ]
    assert "words" in {space.name for space in graph.spaces}
    with pytest.raises(TraceError, match=r"needs an example for its argument table; EXAMPLE_INPUTS in the file may be"):
        open_model(f"{file}:both", example_shape=(4,))
    file.write_text(EXAMPLES.replace("torch.zeros(2, 4))", "4)"))
    with pytest.raises(
        SpecError, match=r"its EXAMPLE_INPUTS are no tensors; give one \[batch, \.\.\.\] for each input"
    ):
        open_model(f"{file}:both")


def test_a_pickled_module_is_opened_only_when_trusted(tmp_path):
    path = tmp_path / "module.pt"
    module = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)).eval()
    torch.save(module, path)
    with pytest.raises(CheckpointError, match="pass --trust-pickle"):
        open_model(str(path), example_shape=(4,))
    same(open_model(str(path), trust_pickle=True, example_shape=(4,)), module)
    with pytest.raises(SpecError, match="no input shape is known"):
        open_model(str(path), trust_pickle=True)


def test_half_precision_is_kept(tmp_path):
    path = tmp_path / "module.pt"
    torch.save(nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)).bfloat16(), path)
    assert open_model(str(path), trust_pickle=True, example_shape=(4,)).inputs[0].dtype == torch.bfloat16


def test_tensors_without_architecture(tmp_path, module):
    path = tmp_path / "weights.pt"
    torch.save(module.state_dict(), path)
    with pytest.raises(CheckpointError, match=r"holds \d+ tensors and not their architecture; give --arch SPEC"):
        open_model(str(path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("0.weight"), r"of 4 tensors 1 missing \(first 0.weight\)"),
        (lambda s: s.update(extra=torch.zeros(1)), r"1 unexpected \(first extra\)"),
        (
            lambda s: s.update({"2.bias": torch.zeros(7)}),
            r"1 of another shape \(first 2.bias: \[7\] in the file, \[2\] in the model\)",
        ),
    ],
)
def test_weights_that_do_not_fit(change, message):
    module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    weights = {name: torch.ones_like(tensor) for name, tensor in module.state_dict().items()}
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    change(weights)
    with pytest.raises(CheckpointError, match=message):
        fill(module, weights, "weights.pt: does not fit")
    torch.testing.assert_close(dict(module.state_dict()), before, rtol=0, atol=0)


def test_old_files_without_a_norms_counter_fit():
    module = nn.BatchNorm1d(3)
    weights = {name: t + 1 for name, t in module.state_dict().items() if name != "num_batches_tracked"}
    fill(module, weights, "weights.pt")
    assert module.running_mean.tolist() == [1, 1, 1]


@pytest.mark.parametrize("name", ["none.pt", "none.pth", "folder/none.ckpt"])
def test_a_missing_file_is_no_spec(name):
    with pytest.raises(CheckpointError, match="no such file"):
        open_model(name)


def test_what_does_not_trace_is_named(file):
    with pytest.raises(TraceError, match=r"net.py:deciding: .*control flow depends on the values"):
        open_model(f"{file}:deciding", example_shape=(4,))


@pytest.mark.parametrize("text", ["", "3x", "3 x 8", "0x8", "-1", "3,8", "3X8"])
def test_shapes_that_are_none(text):
    with pytest.raises(SpecError, match="expected sizes joined by x"):
        parse_shape(text)


def test_shapes():
    assert parse_shape("3x224x224") == (3, 224, 224)
    assert parse_shape("1") == (1,)
