"""What a network gives: named tuples and dataclasses keep their class; numbers, texts and None stand among tensors."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict, UserDict, defaultdict, namedtuple
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import pytest
import torch
from contracts import Network
from torch import Tensor, nn

import graphsurgery as gs
from graphsurgery.network.outputs.naming import named_outputs, run, tensors_of
from graphsurgery.onnx.exporting.exporter import export_onnx
from graphsurgery.passes.compress import compress
from graphsurgery.passes.concatenate import concatenate
from graphsurgery.passes.gate import gate
from graphsurgery.passes.prune_dead import prune_dead
from graphsurgery.passes.slim import slim
from graphsurgery.passes.widen import widen
from graphsurgery.recipes.contracts.doctor import examine
from graphsurgery.recipes.delivery.deliver import deliver

Pair = namedtuple("Pair", "logits aux")


@dataclass
class Answer:
    logits: Tensor
    aux: Tensor
    scale: float = 2.0


class Named(OrderedDict):
    """A mapping whose keys are attributes, too."""

    def __getattr__(self, name):
        if name in self:
            return self[name]
        raise AttributeError(name)


@dataclass
class Fields(OrderedDict):
    """A dataclass that is the mapping of those of its fields that are not None."""

    logits: Tensor | None = None
    hidden: Tensor | None = None
    aux: Tensor | None = None

    def __post_init__(self):
        for name in ("logits", "hidden", "aux"):
            if getattr(self, name) is not None:
                self[name] = getattr(self, name)


class Sized(dict):
    """A mapping that no call of its class gives back."""

    def __init__(self, logits, aux):
        super().__init__(logits=logits, aux=aux)


class Marked(dict):
    """One whose attribute a call would not give it."""

    mark = None


def marked(a, b):
    found = Marked(logits=a, aux=b)
    found.mark = 3
    return found


MAPPINGS = {
    "ordered": lambda a, b: OrderedDict(logits=a, aux=b),
    "with attributes": lambda a, b: Named(logits=a, aux=b),
    "dataclass and mapping": lambda a, b: Fields(a, aux=b),
    "around a dict": lambda a, b: UserDict({"logits": a, "aux": b}),
    "ordered in a record": lambda a, b: Pair(OrderedDict(x=a, y=(b, 3)), None),
    "in each other": lambda a, b: OrderedDict(x=Named(logits=a), y=OrderedDict(aux=b)),
}
DICTS = {
    "read only": lambda a, b: MappingProxyType({"logits": a, "aux": b}),
    "with a default": lambda a, b: defaultdict(list, logits=a, aux=b),
    "by arguments": Sized,
    "with a mark": marked,
}
RECORDS = {
    "named tuple": lambda a, b: Pair(a, b),
    "by name": lambda a, b: Pair(aux=b, logits=a),
    "dataclass": lambda a, b: Answer(a, b),
    "with a number": lambda a, b: Pair(a, b.shape[0]),
    "bent": lambda a, b: Answer(torch.sigmoid(a), torch.sigmoid(b)),
}
NESTED = {
    "in a dict": lambda a, b: {"out": Pair(a, b), "n": 3},
    "in a record": lambda a, b: Pair(Answer(a, b), (b, None)),
}
OTHERS = {
    "int": lambda a, _: (a, 3),
    "float": lambda a, _: (a, 0.5),
    "text": lambda a, _: (a, "label"),
    "None": lambda a, _: (a, None, (None, {})),
    "flag": lambda a, _: {"logits": a, "done": True},
    "dtype": lambda a, _: (a, a.dtype, a.device),
    "size": lambda a, _: (a, a.shape[1]),
    "set": lambda a, _: (a, frozenset({1, 2.5, "x", None}), frozenset()),
    "batch": lambda a, _: (a, a.shape[0], a.shape[0] / 2),
}
EDITS = {
    "as traced": lambda graph: graph,
    "cut": lambda graph: compress(graph, 0.5),
    "widened": lambda graph: widen(graph, 1.5),
    "gated": lambda graph: gate(graph, loc=60.0),
    "without dead": prune_dead,
    "in order": slim,
    "concatenated": lambda graph: concatenate([graph, graph]),
}


def network(form):
    torch.manual_seed(0)
    layers = {"stem": nn.Linear(4, 8), "head": nn.Linear(8, 3), "aux": nn.Linear(8, 2)}

    def forward(net, x):
        h = torch.relu(net.stem(x))
        return form(net.head(h), net.aux(h))

    return Network(forward, **layers).eval()


def traced(form):
    module, x = network(form), torch.randn(2, 4)
    return module, x, gs.trace(module, x)


def kinds(output):
    """The classes of a nested output."""
    if isinstance(output, Tensor | torch.Size):
        return type(output)
    if isinstance(output, Mapping):
        return type(output), {key: kinds(part) for key, part in output.items()}
    parts = list(vars(output).values()) if isinstance(output, Answer) else output
    return type(output), ([kinds(part) for part in parts] if isinstance(parts, list | tuple) else None)


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("form", ["named tuple", "bent", "in a record", "text", "None", "size", "set", *MAPPINGS])
def test_a_network_gives_what_its_module_gives(form, edit):
    module, x, graph = traced((RECORDS | NESTED | OTHERS | MAPPINGS)[form])
    new = EDITS[edit](graph)
    expected = module(x)
    found = new.module.eval()(x)
    assert kinds(found) == kinds(expected)
    if edit != "cut":
        same(run(new.module, [x], 0), named_outputs(expected))
    again = pickle.loads(pickle.dumps(new.module))(x)
    assert kinds(copy.deepcopy(new.module)(x)) == kinds(again) == kinds(expected)
    assert kinds(gs.trace(new.module, x).module(x)) == kinds(expected)


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name].double(), tensor.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", RECORDS | NESTED | MAPPINGS)
def test_a_file_gives_tuples_and_dicts(form, tmp_path):
    module, x, graph = traced((RECORDS | NESTED | MAPPINGS)[form])
    gs.save(compress(graph, 0.5), tmp_path / "m.pt")
    found = gs.load(tmp_path / "m.pt").module(x)
    assert type(found) in (tuple, dict)
    assert named_outputs(found).keys() == named_outputs(module(x)).keys()


@pytest.mark.parametrize(
    "form", ["dataclass", "in a record", "int", "text", "None", "dtype", "batch", "set", "dataclass and mapping"]
)
def test_an_onnx_file_gives_the_tensors(form, tmp_path):
    module, x, graph = traced((RECORDS | NESTED | OTHERS | MAPPINGS)[form])
    delivered = deliver(graph, tmp_path / "m.onnx")
    assert delivered.check.holds
    assert len(delivered.report.outputs) == len(tensors_of(module(x), numbers=False))


def test_an_onnx_file_of_no_tensor_is_refused(tmp_path):
    graph = gs.trace(network(lambda a, _: a.shape[0]), torch.randn(2, 4))
    with pytest.raises(gs.SurgeryError, match="it gives no tensor in evaluation, and an ONNX file gives tensors"):
        export_onnx(graph, tmp_path / "m.onnx")


@pytest.mark.parametrize("form", RECORDS | NESTED | OTHERS)
def test_a_trace_gives_what_its_module_gives(form):
    module, x, graph = traced((RECORDS | NESTED | OTHERS)[form])
    assert kinds(graph.module(x)) == kinds(module(x))
    same(run(graph.module, [x], 0), named_outputs(module(x)))


@pytest.mark.parametrize("form", ["dataclass", "in a record", "text", "flag", "dtype", "set", "ordered in a record"])
def test_doctor_finds_nothing_wrong(form):
    module, _, graph = traced((RECORDS | NESTED | OTHERS | MAPPINGS)[form])
    assert [c.name for c in examine(graph, module, onnx=False).contracts if c.status in ("fails", "refused")] == []


@pytest.mark.parametrize("kind", [OrderedDict, Fields])
def test_keys_that_only_training_gives(kind, tmp_path):
    def forward(net, x):
        h = torch.relu(net.stem(x))
        return kind(logits=net.head(h), aux=net.aux(h)) if net.training else kind(logits=net.head(h))

    torch.manual_seed(0)
    module = Network(forward, stem=nn.Linear(4, 8), head=nn.Linear(8, 3), aux=nn.Linear(8, 2))
    x = torch.randn(2, 4)
    graph = gs.trace(module, x)
    small = compress(graph, 0.5)
    for mode in (True, False):
        assert kinds(graph.module.train(mode)(x)) == kinds(small.module.train(mode)(x)) == kinds(module.train(mode)(x))
        same(run(graph.module, [x], 0), named_outputs(module(x)))
    gs.save(graph, tmp_path / "m.pt")
    loaded = gs.load(tmp_path / "m.pt").module
    assert [list(loaded.train(mode)(x)) for mode in (True, False)] == [["logits", "aux"], ["logits"]]
    assert deliver(graph, tmp_path / "m.onnx").check.holds


@pytest.mark.parametrize("form", DICTS)
def test_a_mapping_that_no_call_gives_back_is_a_dict(form):
    module, x, graph = traced(DICTS[form])
    found = graph.module(x)
    assert type(found) is dict
    same(run(graph.module, [x], 0), named_outputs(module(x)))


def test_a_set_is_stored(tmp_path):
    _, x, graph = traced(OTHERS["set"])
    gs.save(graph, tmp_path / "m.pt")
    assert gs.load(tmp_path / "m.pt").module(x)[1:] == (frozenset({1, 2.5, "x", None}), frozenset())


def test_a_set_of_tensors_is_refused():
    with pytest.raises(gs.SurgeryError, match="argument of type: <class 'frozenset'>"):
        traced(lambda a, b: (a, frozenset({b})))


def test_a_mapping_in_the_middle_is_opened():
    def forward(net, x):
        given = OrderedDict(logits=net.stem(x), rest=x)
        return net.head(torch.relu(torch.cat([given["logits"], *given.values()], 1)[:, :8]))

    module = Network(forward, stem=nn.Linear(4, 8), head=nn.Linear(8, 3))
    graph = gs.trace(module, torch.randn(2, 4))
    assert not any(isinstance(node.target, type) for node in graph.module.graph.nodes)


def test_a_record_in_the_middle_is_opened():
    def forward(net, x):
        pair = Pair(net.stem(x), x)
        return net.head(torch.relu(torch.cat([pair.logits, pair.logits], 1)[:, :8]))

    module = Network(forward, stem=nn.Linear(4, 8), head=nn.Linear(8, 3))
    graph = gs.trace(module, torch.randn(2, 4))
    assert not any(isinstance(node.target, type) for node in graph.module.graph.nodes)


def test_axes_of_a_dataclass_are_outputs():
    _, x, graph = traced(RECORDS["dataclass"])
    assert [(space.name, space.size) for space in graph.spaces] == [("stem", 8)]
    assert [t.shape for t in tensors_of(widen(graph, 2.0).module(x), numbers=False)] == [(2, 3), (2, 2)]
