"""What an ONNX file is made of, and what differs between two."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphsurgery.errors import CheckpointError, SpecError, SurgeryError
from graphsurgery.onnx.files import read_onnx
from graphsurgery.onnx.files.nodes import OnnxNode, read_nodes
from graphsurgery.onnx.importing import import_onnx
from graphsurgery.onnx.runtime.comparing import aligned, compare_latency, compare_onnx
from graphsurgery.onnx.runtime.measured_shapes import counted_nodes
from graphsurgery.surgery.channels.cost import cost


def weights(name, *shape, seed=0):
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return numpy_helper.from_array(values, name)


def network(
    *, batch="batch", width=4, inserted=False, renamed=False, seed=0, head=5, size=8, extra=(), initializers=()
):
    """Conv (stride 2, groups 1), Relu, some times a second pair, mean over the pixels, Gemm."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, size, size])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, head])
    prefix = "other" if renamed else "net"
    nodes = [
        helper.make_node(
            "Conv", ["x", f"{prefix}.stem.weight"], ["c"], f"{prefix}_conv", strides=[2, 2], pads=[1, 1, 1, 1]
        ),
        helper.make_node("Relu", ["c"], ["r"], f"{prefix}_relu"),
    ]
    tensors = [weights(f"{prefix}.stem.weight", width, 3, 3, 3, seed=seed)]
    last = "r"
    if inserted:
        nodes += [
            helper.make_node("Conv", ["r", f"{prefix}.more.weight"], ["c2"], f"{prefix}_more"),
            helper.make_node("Relu", ["c2"], ["r2"], f"{prefix}_relu2"),
        ]
        tensors.append(weights(f"{prefix}.more.weight", width, width, 1, 1))
        last = "r2"
    nodes += [
        helper.make_node("GlobalAveragePool", [last], ["p"], f"{prefix}_pool"),
        helper.make_node("Flatten", ["p"], ["f"], f"{prefix}_flat"),
        helper.make_node("Gemm", ["f", f"{prefix}.head.weight"], ["y"], f"{prefix}_head", transB=1),
    ]
    tensors.append(weights(f"{prefix}.head.weight", head, width))
    graph = helper.make_graph([*nodes, *extra], "g", [x], [y], [*tensors, *initializers])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture
def saved(tmp_path):
    def save(name, **options):
        onnx.save(network(**options), tmp_path / name)
        return tmp_path / name

    return save


def kinds(diff):
    return [(pair.kind, (pair.after or pair.before).operator) for pair in diff.pairs if pair.kind != "same"]


def test_nodes_for_a_batch_of_one(saved):
    found = read_nodes(read_onnx(saved("a.onnx")))
    assert [node.operator for node in found.nodes] == ["Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm"]
    assert [node.shapes[0] for node in found.nodes] == [(1, 4, 4, 4), (1, 4, 4, 4), (1, 4, 1, 1), (1, 4), (1, 5)]
    assert [node.parameters for node in found.nodes] == [108, 0, 0, 0, 20]
    assert [node.macs for node in found.nodes] == [108 * 16, 0, 0, 0, 20]
    assert (found.parameters, found.macs, found.uncounted) == (128, 108 * 16 + 20, ())
    assert found.inputs == {"x": ("batch", 3, 8, 8)}
    assert [node.layer for node in found.nodes] == ["net.stem", "", "", "", "net.head"]


@pytest.mark.parametrize(
    ("operator", "shapes", "attributes", "macs"),
    [
        ("Conv", ([2, 6, 5, 5], [9, 2, 3, 3]), {"group": 3}, 2 * 9 * 3 * 3 * 2 * 9),
        ("ConvTranspose", ([2, 6, 5, 5], [6, 4, 2, 2]), {"strides": [2, 2]}, 2 * 6 * 25 * 4 * 4),
        ("MatMul", ([7, 2, 3], [3, 4]), {}, 7 * 2 * 3 * 4),
        ("Gemm", ([3, 2], [3, 4]), {"transA": 1}, 2 * 3 * 4),
        ("Einsum", ([2, 3, 4], [2, 5, 4]), {"equation": "bid,bjd->bij"}, 2 * 3 * 4 * 5),
        ("Einsum", ([2, 3, 4], [2, 4, 5]), {"equation": "...ij,...jk"}, None),
        ("MatMul", (["n", 3], [3, 4]), {}, 12),
        ("MatMul", ([2, "free", 3], [3, 4]), {}, None),
        ("Add", ([2, 3], [2, 3]), {}, 0),
    ],
)
def test_macs(tmp_path, operator, shapes, attributes, macs):
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in zip("ab", shapes, strict=True)]
    node = helper.make_node(operator, ["a", "b"], ["y"], **attributes)
    graph = helper.make_graph([node], "g", ends, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), tmp_path / "m.onnx")
    found = read_nodes(read_onnx(tmp_path / "m.onnx"))
    assert found.nodes[0].macs == macs
    assert bool(found.uncounted) == (macs is None)


def test_equal_files_have_no_changes(saved):
    diff = compare_onnx(saved("a.onnx"), saved("b.onnx"))
    assert kinds(diff) == []
    assert diff.ends == ()
    assert diff.before.bytes == saved("a.onnx").stat().st_size


def test_a_compressed_network_changes_shapes(saved):
    diff = compare_onnx(saved("a.onnx"), saved("b.onnx", width=2))
    conv = diff.pairs[0]
    assert conv.changes == ("shapes", "parameters", "macs", "weights")
    assert (conv.before.shapes, conv.after.shapes) == (((1, 4, 4, 4),), ((1, 2, 4, 4),))
    assert [pair.kind for pair in diff.pairs] == ["changed"] * 5
    assert diff.after.parameters / diff.before.parameters == 0.5


def test_a_deeper_network_has_inserted_nodes(saved):
    diff = compare_onnx(saved("a.onnx"), saved("b.onnx", inserted=True))
    assert kinds(diff) == [("inserted", "Conv"), ("inserted", "Relu")]
    back = compare_onnx(saved("b.onnx", inserted=True), saved("a.onnx"))
    assert kinds(back) == [("removed", "Conv"), ("removed", "Relu")]


def test_nodes_with_other_names_match_by_their_order(saved):
    diff = compare_onnx(saved("a.onnx"), saved("b.onnx", renamed=True))
    assert kinds(diff) == []
    assert [pair.after.name for pair in diff.pairs][:2] == ["other_conv", "other_relu"]
    both = compare_onnx(saved("a.onnx"), saved("b.onnx", renamed=True, inserted=True))
    assert [kind for kind, _ in kinds(both)] == ["inserted", "inserted"]


def test_repeated_nodes_with_gaps_match_as_many_as_can():
    def row(prefix, count, missing=()):
        kinds = ("Conv", "Relu", "Add")
        names = [f"{prefix}{i}" for i in range(count) if i not in missing]
        return [OnnxNode(name, kinds[int(name[1:]) % 3], (), (name,), ((1, 4),), {}, 0, 0, {}) for name in names]

    left, right = row("a", 60), row("b", 60, missing=(7, 20, 21, 40))
    pairs = aligned(left, right)
    assert sum(i is not None and j is not None for i, j in pairs) == 56
    assert [i for i, _ in pairs if i is not None] == list(range(60))
    assert [j for _, j in pairs if j is not None] == list(range(56))
    assert aligned([], right) == [(None, j) for j in range(56)]


def test_other_values_and_attributes_are_told(saved, tmp_path):
    assert compare_onnx(saved("a.onnx"), saved("b.onnx", seed=1)).pairs[0].changes == ("weights",)
    model = network()
    next(a for a in model.graph.node[0].attribute if a.name == "strides").ints[:] = [2, 1]
    onnx.save(model, tmp_path / "c.onnx")
    changes = compare_onnx(tmp_path / "a.onnx", tmp_path / "c.onnx").pairs[0].changes
    assert changes == ("shapes", "macs", "attribute strides")


def test_inputs_that_differ_are_told(saved):
    diff = compare_onnx(saved("a.onnx"), saved("b.onnx", batch=2))
    assert diff.ends == ("inputs: x [batch, 3, 8, 8] → x [2, 3, 8, 8]", "outputs: y [batch, 5] → y [2, 5]")


def small(
    path, *, read=("a", "b"), clip=("", "limit"), given=("d", "y"), opset=13, alpha=0.1, value=1.0, kind="float32"
):
    """A product, its ReLU, their difference, a limit; what each reads is said."""
    dtype = np.dtype(kind)
    code = helper.np_dtype_to_tensor_dtype(dtype)
    ends = [helper.make_tensor_value_info(name, code, ["b", 4]) for name in ("x", *given)]
    nodes = [
        helper.make_node("LeakyRelu", ["x"], ["a"], alpha=alpha),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Sub", read, ["d"]),
        helper.make_node("Clip", ["d", *clip], ["c"]),
        helper.make_node("Add", ["c", "sparse"], ["y"]),
    ]
    limit = numpy_helper.from_array(np.array(1, dtype), "limit")
    values = numpy_helper.from_array(np.array([value], dtype), "sparse")
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([2]), "at"), [4])
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [limit], sparse_initializer=[sparse])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


CHANGES = {
    "inputs in another order": ({"read": ("b", "a")}, ["inputs"], []),
    "the other limit": ({"clip": ("limit",)}, ["inputs"], []),
    "a neighbouring number": ({"alpha": 0.10000001}, ["attribute alpha"], []),
    "a sparse weight": ({"value": 2.0}, ["weights"], []),
    "an opset": ({"opset": 14}, [], ["opset: 13 → 14"]),
    "a precision": (
        {"kind": "float64"}, ["weights"],
        ["inputs: x float [b, 4] → x double [b, 4]", "outputs: d float [b, 4], y float [b, 4] → d double [b, 4], "
         "y double [b, 4]"],
    ),
    "another output": (
        {"given": ("a", "y")}, [],
        ["outputs: d [b, 4], y [b, 4] → a [b, 4], y [b, 4]", "outputs: a given by another node"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_as_large_and_no_weight_is_told(tmp_path, name):
    options, changes, ends = CHANGES[name]
    found = compare_onnx(small(tmp_path / "a.onnx"), small(tmp_path / "b.onnx", **options))
    assert sorted({change for pair in found.pairs for change in pair.changes}) == changes
    assert list(found.ends) == ends


def test_what_reads_a_node_that_came_reads_what_it_did(saved):
    found = compare_onnx(saved("a.onnx"), saved("b.onnx", inserted=True))
    assert not any("inputs" in pair.changes for pair in found.pairs)


def test_weights_in_another_file(tmp_path, saved):
    whole = saved("a.onnx")
    onnx.save(network(), tmp_path / "b.onnx", save_as_external_data=True, location="b.data", size_threshold=0)
    diff = compare_onnx(whole, tmp_path / "b.onnx")
    assert kinds(diff) == []
    assert diff.after.bytes == sum((tmp_path / name).stat().st_size for name in ("b.onnx", "b.data"))
    data = (tmp_path / "b.data").read_bytes()
    (tmp_path / "b.data").write_bytes(data[:100])
    with pytest.raises(CheckpointError, match=r"b\.onnx: its weights in .*b\.data are truncated"):
        compare_onnx(whole, tmp_path / "b.onnx")
    (tmp_path / "b.data").unlink()
    with pytest.raises(CheckpointError, match=r"b\.onnx: its weights in .*b\.data are missing"):
        compare_onnx(whole, tmp_path / "b.onnx")


def test_weights_outside_the_folder_are_refused(tmp_path):
    model = network()
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], "../secret")
    model.graph.initializer[0].ClearField("raw_data")
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match=r"lies in '\.\./secret', expected a file beside the model"):
        read_onnx(tmp_path / "m.onnx")


@pytest.mark.parametrize("keep", [0, 1, 10, 100, 400])
def test_truncated_files(tmp_path, keep):
    content = network().SerializeToString()
    (tmp_path / "m.onnx").write_bytes(content[:keep])
    with pytest.raises(CheckpointError, match=r"m\.onnx: (is truncated or no ONNX file|holds no whole ONNX model)"):
        read_onnx(tmp_path / "m.onnx")


@pytest.mark.parametrize("content", [b"no model", b"PK\x03\x04" + bytes(100), b"\x0a\x03abc"])
def test_files_that_are_no_onnx(tmp_path, content):
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"m\.onnx: (is truncated or no ONNX file|holds no whole ONNX model)"):
        read_onnx(tmp_path / "m.onnx")


def test_a_weight_whose_bytes_do_not_fit(tmp_path, saved):
    model = network()
    model.graph.initializer[0].raw_data = b"1234"
    (tmp_path / "b.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match=r"b\.onnx: weight net\.stem\.weight is damaged"):
        compare_onnx(saved("a.onnx"), tmp_path / "b.onnx")


def test_functions_are_looked_into(tmp_path):
    body = [helper.make_node("MatMul", ["a", "b"], ["c"]), helper.make_node("Relu", ["c"], ["d"])]
    function = helper.make_function("own", "Layer", ["a", "b"], ["d"], body, [helper.make_opsetid("", 20)])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])
    call = helper.make_node("Layer", ["x", "w"], ["y"], domain="own")
    graph = helper.make_graph([call], "g", [x], [y], [weights("w", 3, 2)])
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    onnx.save(helper.make_model(graph, functions=[function], opset_imports=imports), tmp_path / "m.onnx")
    found = read_nodes(read_onnx(tmp_path / "m.onnx"))
    assert [(node.operator, node.macs) for node in found.nodes] == [("MatMul", 6), ("Relu", 0)]


def test_latency_of_both(saved):
    before, after = compare_latency(saved("a.onnx"), saved("b.onnx", width=2), runs=3)
    assert (before.runs, after.batch) == (3, 1)
    assert compare_latency(saved("a.onnx"), saved("b.onnx", batch=2), runs=2)[0].batch == 2
    with pytest.raises(SurgeryError, match="fixed at batches of 3 and 2"):
        compare_latency(saved("c.onnx", batch=3), saved("b.onnx", batch=2))
    with pytest.raises(SurgeryError, match="only the batch may be free"):
        compare_latency(saved("a.onnx"), saved("d.onnx", size="side"))


def free(path, *, pixels=("height", "width"), batch="batch", extra=(), weights_=()):
    """A convolution over an image of free sides, whose map is reshaped to a computed size, and a linear layer."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, *pixels])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Concat", ["n", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["c", "target"], ["r"]),
        helper.make_node("Gemm", ["r", "v", "b2"], ["y"], transB=1),
        *extra,
    ]
    tensors = [
        weights("w", 4, 3, 3, 3), weights("b", 4), weights("v", 5, 4 * 6 * 8), weights("b2", 5),
        numpy_helper.from_array(np.array([0], np.int64), "zero"),
        numpy_helper.from_array(np.array([-1], np.int64), "rest"), *weights_,
    ]  # fmt: skip
    graph = helper.make_graph(nodes, "free", [x], [y], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


_FREE_MACS = 6 * 8 * 4 * 27 + 5 * 4 * 6 * 8


@pytest.mark.parametrize("shapes", [(3, 6, 8), {"x": (1, 3, 6, 8)}])
def test_free_axes_have_the_sizes_that_are_given(tmp_path, shapes):
    file = read_onnx(free(tmp_path / "m.onnx"))
    assert len(read_nodes(file).uncounted) == 2
    found = counted_nodes(file, shapes)
    assert (found.macs, found.uncounted) == (_FREE_MACS, ())
    graph = import_onnx(tmp_path / "m.onnx", shape=shapes).graph
    assert (cost(graph).macs, cost(graph).parameters) == (found.macs, found.parameters)
    diff = compare_onnx(file.path, file.path, shapes)
    assert diff.before.macs == diff.after.macs == _FREE_MACS
    assert compare_latency(file.path, file.path, runs=2, shapes=shapes)[0].median > 0


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ((3, 6), r"m.onnx: input x is 3x\?x\? in the file, not 3x6"),
        ({"z": (1, 3, 6, 8)}, r"m.onnx: has no input z; choose from x"),
        ({"x": (1, 4, 6, 8)}, r"m.onnx: input x is \?x3x\?x\? in the file, not 1x4x6x8"),
    ],
)
def test_shapes_that_do_not_fit_are_named(tmp_path, shapes, message):
    path = free(tmp_path / "m.onnx")
    with pytest.raises(SpecError, match=message):
        compare_onnx(path, path, shapes)


def test_what_only_real_inputs_run_stays_uncounted(tmp_path):
    file = read_onnx(free(tmp_path / "m.onnx"))
    assert len(counted_nodes(file, (3, 5, 5)).uncounted) == 1  # the linear layer reads another number


def test_a_fixed_batch_counts_once(tmp_path):
    found = counted_nodes(read_onnx(free(tmp_path / "m.onnx", pixels=(6, 8), batch=7)))
    assert (found.batch, found.macs) == (7, _FREE_MACS)


def test_parameters_are_those_of_the_network(tmp_path):
    """Options, single numbers and masks are none; an equal vector that is stored once is one of each layer."""
    extra = [
        helper.make_node("Resize", ["c", "", "scales"], ["big"]),
        helper.make_node("Mul", ["big", "factor"], ["scaled"]),
        helper.make_node("Add", ["scaled", "mask"], ["masked"]),
        helper.make_node("BatchNormalization", ["masked", "b", "b", "mean", "var"], ["normed"]),
        helper.make_node("Identity", ["b"], ["alias"]),
        helper.make_node("Conv", ["normed", "turned", "alias"], ["z"], kernel_shape=[1, 1]),
        helper.make_node("Transpose", ["u"], ["turned"], perm=[1, 0, 2, 3]),
    ]
    tensors = [
        weights("mean", 4), numpy_helper.from_array(np.ones(4, np.float32), "var"), weights("u", 4, 4, 1, 1),
        numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales"),
        numpy_helper.from_array(np.array(0.5, np.float32), "factor"),
        numpy_helper.from_array(np.full((1, 1, 12, 16), -1e9, np.float32), "mask"), weights("unread", 9, 9),
    ]  # fmt: skip
    path = free(tmp_path / "m.onnx", pixels=(6, 8), extra=extra, weights_=tensors)
    model = onnx.load(path)
    model.graph.node.insert(0, model.graph.node.pop())
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    onnx.save(model, path)
    found = counted_nodes(read_onnx(path))
    wanted = (108 + 4) + (5 * 4 * 48 + 5) + 2 * 4 + (16 + 4)
    assert found.parameters == wanted
    assert cost(import_onnx(path).graph).parameters == wanted


def test_parameters_inside_of_branches_count(tmp_path):
    inner = [helper.make_node("MatMul", ["r", "inside"], ["t"])]
    then = helper.make_graph(inner, "then", [], [onnx.ValueInfoProto(name="t")], [weights("inside", 192, 2)])
    other = helper.make_graph(
        [helper.make_node("MatMul", ["r", "outside"], ["e"])], "else", [], [onnx.ValueInfoProto(name="e")]
    )
    node = helper.make_node("If", ["yes"], ["z"], then_branch=then, else_branch=other)
    yes = numpy_helper.from_array(np.array(True), "yes")
    path = free(tmp_path / "m.onnx", pixels=(6, 8), extra=[node], weights_=[weights("outside", 192, 2), yes])
    model = onnx.load(path)
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    onnx.save(model, path)
    wanted = (108 + 4) + (5 * 192 + 5) + 2 * 192 * 2
    assert read_nodes(read_onnx(path)).parameters == wanted
    assert cost(import_onnx(path).graph).parameters == wanted
