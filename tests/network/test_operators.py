"""Every operator of the catalogue does what its record says, and every room that asks the record knows it."""

from __future__ import annotations

import operator

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from contracts import Network, assert_contracts, typed
from onnx import helper
from torch import Tensor, nn

import graphsurgery as gs
from graphsurgery.network.aliasing import makes_new
from graphsurgery.network.operators import (
    TorchOperator,
    Trait,
    is_in_place,
    operator_named,
    operator_of,
    operators,
    part_at,
    spellings,
)
from graphsurgery.network.operators.record import record
from graphsurgery.network.values.shapes import result_of
from graphsurgery.onnx.editing.file_graph import FileGraph
from graphsurgery.onnx.editing.writers import Writer
from graphsurgery.surgery.deviation import deviation
from graphsurgery.surgery.masks.constants import constants

BOUND = {"asin", "acos", "atanh", "erfinv", "logit"}
"""Functions of numbers between -1 and 1, or 0 and 1."""
GIVEN = {
    "threshold": (0.5, 0.25), "dropout": (0.5, False), "dropout1d": (0.5, False), "dropout2d": (0.5, False),
    "dropout3d": (0.5, False), "alpha_dropout": (0.5, False), "feature_alpha_dropout": (0.5, False),
    "stochastic_depth": (0.5, "row", False),
}  # fmt: skip
"""What a function needs besides its tensor."""
LAYERS = {nn.Threshold: (0.5, 0.25), nn.Softmax: (1,), nn.LogSoftmax: (1,), nn.Softmin: (1,)}
SAMPLES: dict[str, tuple] = {
    "reshape": (2, -1), "flatten": (1,), "unflatten": (1, (2, 2)), "unsqueeze": (1,), "narrow": (1, 0, 2),
    "select": (1, 1), "permute": (1, 0), "transpose": (0, 1), "movedim": (0, 1), "repeat": (2, 1), "roll": (1, 1),
    "flip": (0,), "expand": (3, 4), "unbind": (1,), "split": (2, 1), "hsplit": (2,), "getitem": (slice(1, 2),),
}  # fmt: skip
OPSET = [helper.make_opsetid("", 18)]
PLAIN = Trait.ELEMENTWISE | Trait.FLOAT


def ids(known: TorchOperator) -> str:
    return known.name


def of(traits: Trait, *, without: Trait = Trait.NONE) -> list[TorchOperator]:
    return [known for known in operators(traits) if not known.traits & without]


def found(known: TorchOperator) -> tuple[list, list]:
    """Its classes of layers and its functions; those of torchvision are named by their paths."""
    classes, functions = known.foreign_modules, known.foreign_functions
    return [*known.modules, *map(part_at, classes)], [*known.functions, *map(part_at, functions)]


def layer(kind: type[nn.Module]) -> nn.Module:
    name = kind.__name__
    return kind(*((0.5, "row") if name == "StochasticDepth" else LAYERS.get(kind, ()))).eval()


def plainly(known: TorchOperator, x: Tensor) -> Tensor:
    """The operator of x, out of place."""
    classes, functions = found(known)
    if classes and not functions:
        return layer(classes[0])(x)
    call = next((f for f in functions if not is_in_place(f) and f.__name__ in dir(torch)), None)
    call = call or next((f for f in functions if not is_in_place(f)), None)
    if call is None:
        return getattr(x, known.methods[0])()
    if known.name.endswith("dropout") and call.__module__ is None:
        return call(x, 0.5, False)
    return call(x, *GIVEN.get(known.name, ()))


def numbers(known: TorchOperator, *shape: int) -> Tensor:
    """Numbers that the operator takes, none of them 0."""
    x = 0.1 + 0.8 * torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x + 1 if known.name == "acosh" else x


# What the records say is so -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", of(PLAIN, without=Trait.PASSES), ids=ids)
def test_acts_on_each_number_alone(known):
    """Up to the last bit: a kernel may take numbers that fill a vector in another way than those that are left over."""
    x = numbers(known, 3, 4)
    assert torch.allclose(plainly(known, x), torch.stack([plainly(known, row) for row in x]), rtol=1e-14, atol=0)


@pytest.mark.parametrize("known", of(Trait.ELEMENTWISE | Trait.PASSES), ids=ids)
def test_does_nothing_in_evaluation(known):
    x = torch.randn(2, 3, 4, 4, 4)[(..., *[0] * {"dropout1d": 2, "dropout3d": 0}.get(known.name, 1))]
    assert torch.equal(plainly(known, x), x)
    assert all(torch.equal(layer(kind)(x), x) for kind in found(known)[0])


@pytest.mark.parametrize("known", of(Trait.ELEMENTWISE | Trait.SETTLES), ids=ids)
def test_settles(known):
    x = torch.linspace(-9, 9, 50)
    assert torch.equal(plainly(known, plainly(known, x)), plainly(known, x))


@pytest.mark.parametrize("known", of(Trait.ELEMENTWISE | Trait.KEEPS_ZERO, without=Trait.PASSES), ids=ids)
def test_keeps_zero_and_slopes_there(known):
    x = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    y = plainly(known, x)
    assert not y.any()
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert bool((slope.abs() > 0.001).all())


@pytest.mark.parametrize("known", of(Trait.ELEMENTWISE | Trait.FRESH), ids=ids)
def test_gives_memory_of_its_own(known):
    for x in (numbers(known, 3, 4), torch.tensor(1.5), torch.arange(1, 4), torch.tensor([True, False])):
        try:
            given = plainly(known, x)
        except (RuntimeError, TypeError):
            continue  # not of these numbers
        assert given.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()


PAIRS = {"where": lambda a, b: torch.where(a > b, a, b), "masked_fill": lambda a, b: a.masked_fill(a > b, 0.5),
         "addcmul": lambda a, b: torch.addcmul(a, a, b), "addcdiv": lambda a, b: torch.addcdiv(a, a, b),
         "lerp": lambda a, b: torch.lerp(a, b, 0.0), "rsub": torch.rsub}  # fmt: skip


@pytest.mark.parametrize("known", of(Trait.BROADCAST | Trait.FRESH), ids=ids)
def test_of_several_numbers_gives_memory_of_its_own(known):
    call = PAIRS.get(known.name, known.call)
    pairs = [(numbers(known, 3, 4), torch.ones(3, 4, dtype=torch.float64)), (torch.arange(3), torch.arange(3) + 1)]
    pairs.append((torch.tensor([True, False]), torch.tensor([True, True])))
    count = 0
    for a, b in pairs:
        try:
            given = call(a, b)
        except (RuntimeError, TypeError):
            continue  # not of these numbers
        count += 1
        assert given.untyped_storage().data_ptr() not in [x.untyped_storage().data_ptr() for x in (a, b)]
    assert count


@pytest.mark.parametrize("known", of(Trait.REDUCES), ids=ids)
def test_a_reduction_gives_memory_of_its_own(known):
    for x in (torch.rand(3, 1), torch.tensor(0.5)):
        for function in known.functions:
            if function.__name__ in ("var", "std", "var_mean", "std_mean") and not x.dim():
                continue  # of one number they are no number
            named = (
                {"dim": 0} if function.__name__ in ("amax", "amin", "logsumexp", "special_logsumexp", "median") else {}
            )
            given = function(x, **named)
            given = given if isinstance(given, tuple) else (given,)
            assert all(y.untyped_storage().data_ptr() != x.untyped_storage().data_ptr() for y in given)


MOVING = [known for known in of(Trait.MOVES) if known.functions and known.name != "getattr"]


@pytest.mark.parametrize("known", MOVING, ids=ids)
def test_moves_numbers_and_makes_none(known):
    shape = {"pixel_shuffle": (1, 4, 2, 2), "pixel_unshuffle": (1, 1, 4, 4), "channel_shuffle": (1, 4, 2, 2)}
    x = torch.arange(16.0).reshape(shape.get(known.name, (4, 4)))
    more = {"cat": ([x, x],), "stack": ([x, x],), "pixel_shuffle": (x, 2), "pixel_unshuffle": (x, 2),
            "channel_shuffle": (x, 2), "index_select": (x, 1, torch.tensor([2, 0])),
            "gather": (x, 1, torch.tensor([[2, 0]])), "take_along_dim": (x, torch.tensor([[2, 0]]), 1),
            "expand": (x[:1], (3, 4))}  # fmt: skip
    call = next(f for f in known.functions if not is_in_place(f))
    sample = SAMPLES.get(known.name, ())
    sizes = {"reshape": (sample,), "permute": (sample,), "repeat": (sample,), "flip": (sample,)}.get(known.name, sample)
    given = call(*more.get(known.name, (x, *sizes)))
    for part in given if isinstance(given, tuple) else (given,):
        assert set(part.flatten().tolist()) <= set(x.flatten().tolist())


@pytest.mark.parametrize("kind", [kind for known in of(Trait.POSITIONS) for kind in known.modules])
def test_what_windows_keep(kind):
    known = operator_named(kind)
    rank = next((int(c) for c in kind.__name__ if c.isdigit()), 2)
    arguments = {"Upsample": (None, 2), "ConstantPad": (1, 0.5), "LPPool": (2, 2)}
    given = next((a for name, a in arguments.items() if kind.__name__.startswith(name)), (2,))
    module = kind(*((1,) if "Pad" in kind.__name__ and "Constant" not in kind.__name__ else given))
    x = 1 + torch.rand(1, 2, *[4] * rank)
    y = module(x)
    assert (Trait.KEEPS_RANGE not in known.traits) or (x.min() <= y.min() and y.max() <= x.max())
    assert (Trait.KEEPS_ZERO not in known.traits) or not module(torch.zeros_like(x)).any()


# The rooms know it ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", of(PLAIN), ids=ids)
def test_shapes_are_known_without_running(known):
    for x in (torch.empty(3, 4, 4, device="meta"), torch.empty(4, 3, 4, device="meta").transpose(0, 1)):
        for function in found(known)[1]:
            if function.__name__ in dir(torch) and known.name.endswith("dropout"):
                continue  # torch's own take whether they train
            given = result_of("call_function", function, (x, *GIVEN.get(known.name, ())), {})
            assert given is not None
            assert (given.shape, given.stride(), given.dtype) == (x.shape, x.stride(), x.dtype)


@pytest.mark.parametrize("known", of(PLAIN), ids=ids)
def test_types_memory_shuffles_constants_and_files(known, tmp_path):
    """Behind a shuffle, a network with the operator cuts exactly, and is stored and read again."""
    rank = {"dropout1d": 1, "dropout3d": 3}.get(known.name, 2)
    convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]

    def forward(net, x):
        h = torch.sigmoid(net.a(x)) * 0.8 + (1.1 if known.name == "acosh" else 0.1)
        h = h.reshape(x.shape[0], 2, 4, *x.shape[2:]).transpose(1, 2).flatten(1, 2)
        return net.b(plainly(known, h))

    network = Network(forward, a=convolution(3, 8, 1), b=convolution(8, 2, 1))
    graph = assert_contracts(network, (3, *[3] * rank))
    assert [s.size for s in graph.spaces] == [8]
    assert not graph.frozen
    node = next(n for n in graph.module.graph.nodes if n.target == "b").args[0]
    if operator_of(graph.module, node) is known:
        assert makes_new(graph.module, node) == (Trait.FRESH in known.traits)
    gs.save(graph, tmp_path / "n.pt")
    x = graph.example_inputs(2)
    assert deviation(gs.load(tmp_path / "n.pt")(*x), graph(*x)) == 0


@pytest.mark.parametrize(
    "known", [known for known in of(PLAIN) if not known.name.endswith(("dropout", "rrelu", "1d", "2d", "3d"))], ids=ids
)
def test_what_is_constant_stays_constant(known):
    network = Network(
        lambda net, x: net.b(plainly(known, torch.sigmoid(net.a(x)) * 0.8 + (1.1 if known.name == "acosh" else 0.1))),
        a=nn.Conv2d(3, 4, 1),
        b=nn.Conv2d(4, 2, 1),
    )
    graph, _, _ = typed(network, (3, 3, 3))
    with torch.no_grad():
        graph.module.a.weight[1] = 0
    varies = constants(graph).varies
    source = next(n for n in graph.module.graph.nodes if n.target == "b").args[0]
    assert [bool(v) for v in varies[source.name].flatten(2).any(2)[0]] == [True, False, True, True]


@pytest.mark.parametrize("known", [known for known in operators() if known.onnx is not None], ids=ids)
def test_is_read_from_files(known, tmp_path):
    """PyTorch gives what ONNX Runtime gives of a file with this one operator."""
    names = ["x", "y"][: 1 + (Trait.BROADCAST in known.traits)]
    asked = [helper.make_node("Greater", [name, "half"], [f"{name}_high"]) for name in names]
    asked = asked if known.onnx in ("Not", "And", "Or", "Xor") else []
    operator = helper.make_node(known.onnx, [f"{name}_high" for name in names] if asked else names, ["found"])
    cast = helper.make_node("Cast", ["found"], ["z"], to=onnx.TensorProto.FLOAT)
    half = onnx.numpy_helper.from_array(torch.tensor(0.5).numpy(), "half")
    graph = helper.make_graph(
        [*asked, operator, cast],
        "one",
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2, 3]) for name in names],
        [helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, [2, 3])],
        [half] if asked else [],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "one.onnx"
    )
    inputs = [numbers(known, 2, 3).float(), numbers(known, 2, 3).float().flip(1)][: len(names)]
    session = onnxruntime.InferenceSession(tmp_path / "one.onnx", providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})
    assert torch.allclose(gs.import_onnx(tmp_path / "one.onnx").graph(*inputs), torch.from_numpy(expected), atol=1e-6)


def writing(module, opset, model=None):
    """What writes the nodes of a network into a file, in which they have the same names."""
    values = {node: node.name for node in module.graph.nodes}
    file = FileGraph(onnx.ModelProto() if model is None else model)
    return Writer(module, opset, np.dtype(np.float32), file, values.__getitem__, lambda *_: None)


@pytest.mark.parametrize("known", [known for known in of(Trait.FLOAT) if known.onnx is not None], ids=ids)
def test_is_written_to_files(known, tmp_path):
    """A file that gets the operator as a new node gives what PyTorch gives."""
    two = Trait.BROADCAST in known.traits
    network = Network(
        lambda net, x: known.call(x, net.p) if two else plainly(known, x), {"p": numbers(known, 3).float()}
    )
    module = gs.trace(network, numbers(known, 2, 3).float(), check=False).module
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 3]) for name in ("x", "z")]
    constants = [onnx.numpy_helper.from_array(network.p.detach().numpy(), "p")] if two else []
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["z"])], "written", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=OPSET, ir_version=9)
    writer = writing(module, 18, model)
    writer.write(next(n for n in module.graph.nodes if operator_of(module, n) is known), output="z")
    assert not writer.file.put_into(model)
    assert "Identity" not in [node.op_type for node in model.graph.node]
    onnx.save(model, tmp_path / "w.onnx")
    x = numbers(known, 5, 3).float()
    session = onnxruntime.InferenceSession(tmp_path / "w.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": x.numpy()})
    assert torch.allclose(torch.from_numpy(found), network(x), atol=1e-6)


def test_an_operator_that_the_opset_lacks_is_refused():
    module = gs.trace(nn.Sequential(nn.Hardswish()), torch.zeros(2, 3)).module
    writer = writing(module, 11)
    with pytest.raises(gs.UnsupportedError, match="0 is new, and opset 11 has no HardSwish"):
        writer.write(next(n for n in module.graph.nodes if n.op == "call_module"))


def test_a_layer_with_options_is_refused():
    module = gs.trace(nn.Sequential(nn.Softplus(beta=2.0)), torch.zeros(2, 3)).module
    writer = writing(module, 18)
    with pytest.raises(gs.UnsupportedError, match="0 is new, and its options are not written"):
        writer.write(next(n for n in module.graph.nodes if n.op == "call_module"))


def test_a_spelling_belongs_to_one_operator():
    assert len(spellings(Trait.NONE)) == len(set(spellings(Trait.NONE)))
    with pytest.raises(ValueError, match="is relu already, and cannot be relu"):
        record("relu", traits=Trait.ELEMENTWISE)
    with pytest.raises(ValueError, match="no_such_name is no function, method or layer"):
        record("no_such_name", traits=Trait.ELEMENTWISE)


def test_what_writes_in_place():
    assert all(is_in_place(f) for f in (operator.iadd, operator.setitem, torch.relu_, "add_"))
    assert not any(is_in_place(f) for f in (operator.add, torch.relu, "add", "__add__"))
