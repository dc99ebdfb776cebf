"""Export to ONNX, the comparison in ONNX Runtime, and latency."""

from __future__ import annotations

import onnx
import pytest
import torch
import torch.nn.functional as F
from contracts import Network
from torch import Tensor, fx, nn

from graphsurgery.errors import CheckFailedError, SurgeryError
from graphsurgery.graph import InputSpec, ModelGraph
from graphsurgery.onnx.exporting import check_onnx, export_onnx, quick_shapes, translations
from graphsurgery.onnx.runtime.latency import measure_latency
from graphsurgery.tracing.trace import trace


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(F.relu(self.norm(self.conv(x))).flatten(1)))


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 4)

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        return {"out": self.head(left), "aux": self.head(right).sum(-1)}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    torch.manual_seed(0)
    model = Net()
    nn.init.uniform_(model.norm.running_var, 0.5, 2)
    graph = ModelGraph(fx.symbolic_trace(model.double()), (InputSpec("image", (2, 1, 6, 6)),), ({"pass": "trace"},))
    path = tmp_path_factory.mktemp("onnx") / "m.onnx"
    return graph, path, export_onnx(graph, path)


def test_export_keeps_names_and_frees_the_batch(exported):
    graph, path, report = exported
    assert (report.inputs, report.outputs) == (("image",), ("logits",))
    assert report.bytes == path.stat().st_size
    assert list(path.parent.iterdir()) == [path]
    model = onnx.load(path)
    assert [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == ["batch", 1, 6, 6]
    assert {p.key: p.value for p in model.metadata_props} == {"graphsurgery.lineage": '[{"pass": "trace"}]'}
    content = path.read_bytes()
    assert not any(text in content for text in (b"site-packages", b".py", str(path.parent).encode()))
    assert graph.module.training
    assert graph.module.conv.weight.dtype == torch.float64


def test_check_holds_on_random_and_real_inputs(exported):
    graph, path, _ = exported
    check = check_onnx(graph, path, inputs=[torch.rand(5, 1, 6, 6, generator=torch.Generator().manual_seed(1))])
    assert list(check.deviations) == ["batch 1", "batch 3", "batch 8", "given inputs"]
    assert check.holds
    assert check.deviation < 1e-5
    assert check.agreement == 1


def test_check_fails_on_another_network(exported):
    graph, path, _ = exported
    other = ModelGraph(fx.symbolic_trace(Net()), graph.inputs)
    with pytest.raises(
        CheckFailedError,
        match=r"m\.onnx: ONNX Runtime deviates by .* of what output logits varies by on .*, allowed is 1\.0e-04",
    ):
        check_onnx(other, path)
    assert not check_onnx(other, path, raise_on_failure=False).holds


def test_several_inputs_and_a_dict(tmp_path):
    torch.manual_seed(0)
    graph = ModelGraph(fx.symbolic_trace(Pair()), (InputSpec("left", (2, 3)), InputSpec("right", (2, 3))))
    report = export_onnx(graph, tmp_path / "m.onnx", opset=18)
    assert (report.inputs, report.outputs, report.opset) == (("left", "right"), ("out", "aux"), 18)
    assert check_onnx(graph, tmp_path / "m.onnx").holds


def test_a_fixed_batch_is_refused_and_nothing_written(tmp_path):
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.zeros(2, 3)

    graph = ModelGraph(fx.symbolic_trace(Fixed()), (InputSpec("x", (2, 3)),))
    with pytest.raises(SurgeryError, match=r"m\.onnx: the network cannot be exported: .*batch") as caught:
        export_onnx(graph, tmp_path / "m.onnx")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


class OwnKernels(nn.Module):
    """Each example is convolved with a kernel that is computed from it."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = nn.Linear(8, 4 * 2 * 9)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        batch, channels, *pixels = x.shape
        kernels = self.kernels(z).reshape(batch * 4, channels, 3, 3)
        return F.conv2d(x.reshape(1, batch * channels, *pixels), kernels, groups=batch).reshape(batch, 4, -1)


def test_groups_that_no_file_can_say_are_named(tmp_path):
    graph = trace(OwnKernels(), [torch.randn(2, 2, 5, 5), torch.randn(2, 8)], check=False)
    with pytest.raises(SurgeryError, match=r"conv2d: it has \w+ groups, a computed size, and an ONNX file"):
        export_onnx(graph, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_no_onnx(tmp_path, exported):
    (tmp_path / "m.onnx").write_bytes(b"no model")
    with pytest.raises(SurgeryError, match=r"m\.onnx: ONNX Runtime cannot open it"):
        check_onnx(exported[0], tmp_path / "m.onnx")


def test_latency_is_measured_in_turn(exported):
    _, path, _ = exported
    found = measure_latency({"before": path, "after": path}, batch=2, warmup=1, runs=7)
    assert list(found) == ["before", "after"]
    assert found["before"].runs == 7
    assert 0 < found["before"].median < 1000
    with pytest.raises(SurgeryError, match="found 0 runs of batch 1, expected at least 1"):
        measure_latency({"a": path}, runs=0)


def test_a_key_names_its_output_though_training_gives_more(tmp_path):
    def forward(net, x):
        h = torch.relu(net.a(x))
        return {"out": net.b(h), "aux": net.c(h)} if net.training else {"out": net.b(h)}

    network = Network(forward, a=nn.Linear(4, 8), b=nn.Unflatten(1, (2, 2, 2)), c=nn.Linear(8, 3)).eval()
    report = export_onnx(trace(network, torch.zeros(2, 4)), tmp_path / "m.onnx")
    assert report.outputs == ("out",)


def test_the_table_of_translations_is_made_once_and_the_files_are_the_same(exported, tmp_path, monkeypatch):
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    graph, path, _ = exported
    make, made = ONNXRegistry.from_torchlib, []

    def counted(_, **options):
        made.append(options)
        return make(**options)

    monkeypatch.setattr(ONNXRegistry, "from_torchlib", classmethod(counted))
    own = vars(ONNXRegistry)["from_torchlib"]
    for name in ("a.onnx", "b.onnx"):
        export_onnx(graph, tmp_path / name, opset=19)
        assert vars(ONNXRegistry)["from_torchlib"] is own
    assert made == [{"opset_version": 19}]
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    export_onnx(graph, tmp_path / "c.onnx")
    assert (tmp_path / "c.onnx").read_bytes() == path.read_bytes()
    assert len(made) == 2


def operators(path):
    return [node.op_type for node in onnx.load(path).graph.node]


def test_composed_operators_are_looked_up_once_for_each_file(exported, tmp_path, monkeypatch):
    from torch._export import utils

    monkeypatch.setattr(translations, "with_few_decomposed", lambda usual: usual)
    graph, path, _ = exported
    look, looked = utils._materialize_cpp_cia_ops, []
    monkeypatch.setattr(utils, "_materialize_cpp_cia_ops", lambda: looked.append(look()))
    for count in (1, 2):
        export_onnx(graph, tmp_path / "m.onnx")
        assert len(looked) == count
    assert operators(tmp_path / "m.onnx") == operators(path)


ELEMENTWISE = (F.relu, F.hardswish, F.hardsigmoid, F.gelu, F.leaky_relu, F.mish)


def every_shape(net, x):
    """All operators of which shapes are known, and some of them on what does not lie in order."""
    x = net.norm(net.conv(x))
    for function in ELEMENTWISE:
        x = function(x)
    x = F.relu(x.transpose(1, 2)).transpose(1, 2) + F.gelu(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return net.head(net.scale(x.flatten(1)))


def test_files_are_the_same_where_shapes_are_known(tmp_path, monkeypatch):
    torch.manual_seed(0)
    layers = {
        "conv": nn.Conv2d(1, 4, 3),
        "norm": nn.BatchNorm2d(4),
        "scale": nn.LayerNorm(64),
        "head": nn.Linear(64, 5),
    }
    monkeypatch.setattr(translations, "with_few_decomposed", lambda usual: usual)
    graph = trace(Network(every_shape, **layers).eval(), torch.zeros(2, 1, 6, 6))
    given: dict[str, set[bool]] = {}
    usual = quick_shapes._or_decomposed

    def counted(operator, rule):
        def noted(*args, **kwargs):
            found = rule(*args, **kwargs)
            given.setdefault(str(operator), set()).add(found is not None)
            return found

        return usual(operator, noted)

    monkeypatch.setattr(quick_shapes, "_or_decomposed", counted)
    export_onnx(graph, tmp_path / "a.onnx")
    known = {f"aten.{name}.default" for name in (*quick_shapes._ELEMENTWISE, "native_layer_norm", "addmm")}
    assert {name for name, kinds in given.items() if True in kinds} >= known
    assert given["aten.relu.default"] == given["aten.gelu.default"] == {True, False}
    assert True in given["aten._native_batch_norm_legit_no_training.default"]
    monkeypatch.setattr(translations, "with_quick_shapes", lambda table: table)
    export_onnx(graph, tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


@pytest.mark.parametrize(("kind", "promoted"), [(torch.float32, False), (torch.int64, True)])
def test_files_are_the_same_where_nothing_is_promoted(tmp_path, monkeypatch, kind, promoted):
    from torch.onnx._internal.exporter import _fx_passes

    scaled = Network(lambda net, x: net.head(x) * net.by, head=nn.Linear(4, 5)).eval()
    scaled.register_buffer("by", torch.arange(5).to(kind))
    graph = trace(scaled, torch.zeros(2, 4))
    followed, usual = [], _fx_passes.insert_type_promotion_nodes
    monkeypatch.setattr(_fx_passes, "insert_type_promotion_nodes", lambda part: followed.append(usual(part)))
    export_onnx(graph, tmp_path / "a.onnx")
    assert bool(followed) == promoted
    check_onnx(graph, tmp_path / "a.onnx")
    monkeypatch.setattr(translations, "with_few_promoted", lambda usual: usual)
    export_onnx(graph, tmp_path / "b.onnx")
    assert len(followed) == 1 + promoted
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_what_the_exporter_notes_and_keeps_is_set_back(exported, tmp_path):
    import torch._dynamo.config

    graph, path, _ = exported
    settings = ((torch._dynamo.config, "fake_tensor_cache_enabled"), (torch.fx.config, "do_not_emit_stack_traces"))
    before = [getattr(home, name) for home, name in settings]
    assert before == [True, False]
    export_onnx(graph, tmp_path / "m.onnx")
    assert [getattr(home, name) for home, name in settings] == before
    assert (tmp_path / "m.onnx").read_bytes() == path.read_bytes()


def test_rules_of_other_operators_are_not_tried_and_the_files_are_the_same(tmp_path, monkeypatch):
    """A transposition behind another is one that the rules find."""
    from onnxscript.rewriter import _rewrite_rule

    tried, usual = [], _rewrite_rule.Pattern.match

    def counted(*args, **options):
        tried.append(args)
        return usual(*args, **options)

    monkeypatch.setattr(_rewrite_rule.Pattern, "match", counted)
    own = vars(_rewrite_rule.RewriteRule)["try_rewrite"]
    network = Network(lambda net, x: net.head(x).transpose(0, 1).transpose(0, 1).relu(), head=nn.Linear(4, 5)).eval()
    graph = trace(network, torch.zeros(2, 4))
    export_onnx(graph, tmp_path / "a.onnx")
    assert vars(_rewrite_rule.RewriteRule)["try_rewrite"] is own
    assert "Transpose" not in operators(tmp_path / "a.onnx")
    few = len(tried)
    monkeypatch.setattr(translations, "_MATCHES", ("onnxscript.nowhere", "RewriteRule", "try_rewrite"))
    export_onnx(graph, tmp_path / "b.onnx")
    assert 0 < 10 * few < len(tried) - few
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_code_that_nobody_runs_is_not_written_and_the_files_are_the_same(exported, tmp_path, monkeypatch):
    graph, path, _ = exported
    written, usual = [], fx.GraphModule.recompile
    monkeypatch.setattr(fx.GraphModule, "recompile", lambda module: written.append(module) or usual(module))
    export_onnx(graph, tmp_path / "a.onnx")
    few = len(written)
    monkeypatch.setattr(translations, "_CODE", ("torch.fx.nowhere", "", "_use_lazy_graph_module_flag"))
    export_onnx(graph, tmp_path / "b.onnx")
    assert few < len(written) - few
    assert path.read_bytes() == (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_another_version_of_torch_keeps_its_ways(exported, tmp_path, monkeypatch):
    graph, path, _ = exported
    monkeypatch.setattr(translations, "_TRANSLATIONS", ("torch.onnx.nowhere", "ONNXRegistry", "from_torchlib"))
    monkeypatch.setattr(translations, "_COMPOSED", ("torch._export.utils", "", "nothing"))
    monkeypatch.setattr(translations, "_PIECES", ("torch.onnx.nowhere", "", "decompose_with_registry"))
    monkeypatch.setattr(translations, "_SHAPES", ("torch._subclasses.nowhere", "", "get_fast_op_impls"))
    monkeypatch.setattr(translations, "_PROMOTED", ("torch.onnx.nowhere", "", "insert_type_promotion_nodes"))
    monkeypatch.setattr(translations, "_RESULTS", ("torch._dynamo.config", "", "nowhere"))
    monkeypatch.setattr(translations, "_TRACES", ("torch.fx.config", "", "nowhere"))
    monkeypatch.setattr(translations, "_CODE", ("torch.fx.nowhere", "", "_use_lazy_graph_module_flag"))
    monkeypatch.setattr(translations, "_MATCHES", ("onnxscript.rewriter", "nowhere", "try_rewrite"))
    export_onnx(graph, tmp_path / "m.onnx")
    assert operators(tmp_path / "m.onnx") == operators(path)
    check_onnx(graph, tmp_path / "m.onnx")


class Echo(nn.Module):
    """What it gives is called as what it takes, as an operator, and as it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, sample: Tensor) -> dict[str, Tensor]:
        hidden = self.a(sample).relu()
        return {"sample": self.b(hidden), "linear": 2 * hidden, "free": hidden + 1}


def test_outputs_that_are_called_as_an_input_or_an_operator(tmp_path):
    torch.manual_seed(0)
    graph = trace(Echo(), torch.zeros(2, 4))
    report = export_onnx(graph, tmp_path / "net.onnx")
    assert report.outputs == ("sample_out", "linear_out", "free")
    assert check_onnx(graph, tmp_path / "net.onnx").holds
