"""Every operator means what ONNX Runtime takes it for."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper
from onnx_files import written

from graphsurgery.onnx.editing.rewriting import rewrite_onnx
from graphsurgery.onnx.importing import import_onnx
from graphsurgery.passes.compress import compress
from graphsurgery.passes.widen import widen

node = helper.make_node


def array(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def whole(*numbers):
    return np.asarray(numbers, dtype=np.int64)


def one(kind, shape=("b", 4, 6, 6), constants=None, opset=18, **attributes):
    """A file of one operator whose other inputs are constants."""
    constants = constants or {}
    return [node(kind, ["x", *constants], ["y"], **attributes)], {"x": shape}, constants, opset


PLAIN = (
    "Relu", "Sigmoid", "Tanh", "Exp", "Abs", "Neg", "Erf", "Floor", "Ceil",
    "Round", "Sign", "Reciprocal", "Sin", "Cos", "Softplus", "Softsign", "HardSwish", "Atan",
    "Elu", "Selu", "Celu", "LeakyRelu", "HardSigmoid", "GlobalAveragePool", "GlobalMaxPool", "Flatten",
)  # fmt: skip
CASES = {
    **{
        kind: one(kind)
        for kind in PLAIN
    },
    "Mish": one("Mish"),
    "Gelu": one("Gelu", opset=20),
    "Gelu tanh": one("Gelu", opset=20, approximate="tanh"),
    "Selu, other slopes": one("Selu", alpha=1.1, gamma=0.9),
    "HardSigmoid of mobilenet": one("HardSigmoid", alpha=1 / 6),
    "Clip": one("Clip", constants={"a": np.float32(-0.5), "z": np.float32(0.7)}),
    "Clip, one side": ([node("Clip", ["x", "", "z"], ["y"])], {"x": ["b", 4]}, {"z": np.float32(0.3)}, 18),
    "Clip, old": one("Clip", opset=9, min=-0.1, max=0.2),
    "Softmax": one("Softmax", axis=1),
    "Softmax, old": one("Softmax", ("b", 5), opset=11, axis=1),
    "Softmax, old, several axes": one("Softmax", opset=11, axis=1),
    "LogSoftmax": one("LogSoftmax", axis=-1),
    "PRelu": one("PRelu", constants={"slope": array(4, 1, 1)}),
    "PRelu, each": one("PRelu", constants={"slope": array(4, 6, 6)}),
    "Add": one("Add", constants={"c": array(4, 1, 1)}),
    "Sub": one("Sub", constants={"c": array(1)}),
    "Mul": one("Mul", constants={"c": np.float32(0.3)}),
    "Div": one("Div", constants={"c": np.float32(0.3)}),
    "Pow": ([node("Abs", ["x"], ["a"]), node("Pow", ["a", "c"], ["y"])], {"x": ["b", 4]}, {"c": np.float32(1.5)}, 18),
    "Max": one("Max", constants={"c": array(4, 1, 1), "d": np.float32(0.1)}),
    "Min": one("Min", constants={"c": np.float32(0.1)}),
    "Sum": one("Sum", constants={"c": array(4, 1, 1), "d": array(1, 1, 6)}),
    "Where": (
        [node("Less", ["x", "c"], ["l"]), node("Where", ["l", "x", "c"], ["y"])],
        {"x": ["b", 4]},
        {"c": array(4)},
        18,
    ),
    "MatMul": one("MatMul", ("b", 3, 5), {"w": array(5, 7)}),
    "MatMul, batched": one("MatMul", ("b", 3, 5), {"w": array(1, 5, 7)}),
    "MatMul and Add": (
        [node("MatMul", ["x", "w"], ["m"]), node("Add", ["c", "m"], ["y"])],
        {"x": ["b", 3, 5]},
        {"w": array(5, 7), "c": array(7)},
        18,
    ),
    "MatMul and a wider Add": (
        [node("MatMul", ["x", "w"], ["m"]), node("Add", ["m", "c"], ["y"])],
        {"x": ["b", 3, 5]},
        {"w": array(5, 7), "c": array(3, 7)},
        18,
    ),
    "Gemm": one("Gemm", ("b", 5), {"w": array(5, 7), "c": array(7)}),
    "Gemm, transposed": one("Gemm", ("b", 5), {"w": array(7, 5), "c": array(1, 7)}, transB=1),
    "Gemm, scaled": one("Gemm", ("b", 5), {"w": array(7, 5), "c": array(7)}, transB=1, alpha=0.5, beta=2.0),
    "Einsum": one("Einsum", ("b", 3, 5), {"w": array(5, 7)}, equation="bij,jk->bik"),
    "Conv": one("Conv", constants={"w": array(8, 4, 3, 3), "c": array(8)}, pads=[1, 1, 1, 1], strides=[2, 2]),
    "Conv, groups": one("Conv", constants={"w": array(8, 2, 3, 3)}, group=2, dilations=[2, 2]),
    "Conv, uneven pads": one("Conv", constants={"w": array(8, 4, 3, 3)}, pads=[0, 1, 2, 1]),
    "Conv, same upper": one("Conv", constants={"w": array(8, 4, 3, 3)}, auto_pad="SAME_UPPER", strides=[2, 2]),
    "Conv, same lower": one("Conv", constants={"w": array(8, 4, 4, 4)}, auto_pad="SAME_LOWER"),
    "Conv, one axis": one("Conv", ("b", 4, 9), {"w": array(8, 4, 3)}),
    "Conv, three axes": one("Conv", ("b", 4, 5, 5, 5), {"w": array(2, 4, 3, 3, 3)}),
    "ConvTranspose": one("ConvTranspose", constants={"w": array(4, 3, 2, 2)}, strides=[2, 2]),
    "ConvTranspose, groups": one(
        "ConvTranspose", constants={"w": array(4, 3, 3, 3), "c": array(6)}, group=2, pads=[1, 1, 1, 1], strides=[2, 2],
        output_padding=[1, 1],
    ),
    "BatchNormalization": one(
        "BatchNormalization", constants={"a": array(4), "c": array(4), "m": array(4), "v": np.abs(array(4)) + 0.1}
    ),
    "BatchNormalization, vectors": one(
        "BatchNormalization", ("b", 4), {"a": array(4), "c": array(4), "m": array(4), "v": np.abs(array(4)) + 0.1}
    ),
    "LayerNormalization": one("LayerNormalization", ("b", 3, 8), {"a": array(8), "c": array(8)}),
    "LayerNormalization, two axes": one("LayerNormalization", ("b", 3, 8), {"a": array(3, 8)}, axis=1),
    "InstanceNormalization": one("InstanceNormalization", constants={"a": array(4), "c": array(4)}),
    "GroupNormalization": one("GroupNormalization", constants={"a": array(4), "c": array(4)}, opset=21, num_groups=2),
    "LpNormalization": one("LpNormalization", ("b", 5), axis=1),
    "LRN": one("LRN", size=3),
    "MaxPool": one("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "MaxPool, up": one("MaxPool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    "MaxPool, uneven": one("MaxPool", kernel_shape=[2, 2], pads=[0, 0, 1, 1]),
    "AveragePool": one("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    "AveragePool, counting": one("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
    "AveragePool, uneven": one("AveragePool", kernel_shape=[2, 2], auto_pad="SAME_UPPER"),
    "ReduceMean": one("ReduceMean", constants={"axes": whole(2, 3)}),
    "ReduceMean, old": one("ReduceMean", opset=13, axes=[1], keepdims=0),
    "ReduceSum": one("ReduceSum", constants={"axes": whole(-1)}, keepdims=0),
    "ReduceMax": one("ReduceMax", constants={"axes": whole(1)}),
    "ReduceL2": one("ReduceL2", constants={"axes": whole(1)}),
    "ReduceSumSquare": one("ReduceSumSquare", constants={"axes": whole(1)}),
    "ReduceLogSumExp": one("ReduceLogSumExp", constants={"axes": whole(1)}),
    "CumSum": one("CumSum", constants={"axis": np.asarray(1)}),
    "Reshape": one("Reshape", constants={"s": whole(0, 2, 2, -1)}),
    "Transpose": one("Transpose", perm=[0, 2, 3, 1]),
    "Squeeze": one("Squeeze", ("b", 1, 4, 1), {"axes": whole(1, -1)}),
    "Squeeze, old": one("Squeeze", ("b", 1, 4), opset=11, axes=[1]),
    "Unsqueeze": one("Unsqueeze", ("b", 4), {"axes": whole(1, -1)}),
    "Flatten, three": one("Flatten", axis=3),
    "Concat": ([node("Concat", ["x", "x"], ["y"], axis=1)], {"x": ["b", 4]}, {}, 18),
    "Split": (
        [node("Split", ["x", "s"], ["p", "q"], axis=1), node("Concat", ["q", "p"], ["y"], axis=1)],
        {"x": ["b", 4]},
        {"s": whole(1, 3)},
        18,
    ),
    "Split, old": (
        [node("Split", ["x"], ["p", "q"], axis=1, split=[3, 1]), node("Concat", ["q", "p"], ["y"], axis=1)],
        {"x": ["b", 4]},
        {},
        11,
    ),
    "Split, even": (
        [node("Split", ["x"], ["p", "q"], axis=1, num_outputs=2), node("Sub", ["q", "p"], ["y"])],
        {"x": ["b", 4]},
        {},
        18,
    ),
    "Slice": one("Slice", constants={"s": whole(1, -3), "e": whole(2**62, 5), "a": whole(1, 3), "t": whole(1, 2)}),
    "Slice, backwards": one("Slice", constants={"s": whole(-1), "e": whole(-(2**62)), "a": whole(1), "t": whole(-1)}),
    "Slice, old": one("Slice", opset=9, starts=[1], ends=[3], axes=[1]),
    "Gather": one("Gather", constants={"i": whole(2, 0)}, axis=1),
    "Gather, one": one("Gather", constants={"i": np.asarray(2)}, axis=1),
    "Gather of weights": (
        [node("Gather", ["w", "i"], ["g"]), node("Add", ["x", "g"], ["y"])],
        {"x": ["b", 2, 3]},
        {"w": array(5, 3), "i": whole(4, 1)},
        18,
    ),
    "Expand": ([node("Expand", ["x", "s"], ["y"])], {"x": ["b", 1, 3]}, {"s": whole(1, 4, 1)}, 18),
    "Tile": one("Tile", ("b", 3), {"r": whole(1, 2)}),
    "Pad": one("Pad", constants={"p": whole(0, 1, 0, 2, 0, 0, 1, 0), "v": np.float32(0.5)}),
    "Pad, reflected": one("Pad", constants={"p": whole(0, 0, 1, 2, 0, 0, 1, 0)}, mode="reflect"),
    "DepthToSpace": one("DepthToSpace", blocksize=2),
    "DepthToSpace, CRD": one("DepthToSpace", blocksize=2, mode="CRD"),
    "SpaceToDepth": one("SpaceToDepth", blocksize=2),
    "Resize, nearest": (
        [node("Resize", ["x", "", "s"], ["y"], coordinate_transformation_mode="asymmetric", nearest_mode="floor")],
        {"x": ["b", 4, 6, 6]},
        {"s": np.float32([1, 1, 2, 2])},
        18,
    ),
    "Resize, linear": (
        [node("Resize", ["x", "", "", "s"], ["y"], mode="linear")],
        {"x": [2, 4, 6, 6]},
        {"s": whole(2, 4, 9, 5)},
        18,
    ),
    "Resize, corners": (
        [node("Resize", ["x", "", "s"], ["y"], mode="linear", coordinate_transformation_mode="align_corners")],
        {"x": ["b", 4, 6, 6]},
        {"s": np.float32([1, 1, 2, 2])},
        18,
    ),
    "Resize, linear from the first pixel": (
        [node("Resize", ["x", "", "s"], ["y"], mode="linear", coordinate_transformation_mode="asymmetric")],
        {"x": ["b", 4, 6, 5]},
        {"s": np.float32([1, 1, 2, 3])},
        18,
    ),
    "Resize, linear from the first pixel, to sizes": (
        [node("Resize", ["x", "", "", "s"], ["y"], mode="linear", coordinate_transformation_mode="asymmetric")],
        {"x": [2, 4, 6, 5]},
        {"s": whole(2, 4, 9, 4)},
        18,
    ),
    "Resize, odd": (
        [node("Resize", ["x", "", "s"], ["y"], nearest_mode="ceil")],
        {"x": ["b", 4, 6, 6]},
        {"s": np.float32([1, 1, 1.5, 1.5])},
        18,
    ),
    "Trilu": one("Trilu", ("b", 4, 4), {"k": np.asarray(1)}, upper=0),
    "Cast": ([node("Cast", ["x"], ["i"], to=7), node("Cast", ["i"], ["y"], to=1)], {"x": ["b", 4]}, {}, 18),
    "a shape that is computed": (
        [
            node("Shape", ["x"], ["s"]),
            node("Gather", ["s", "zero"], ["n"]),
            node("Unsqueeze", ["n", "at"], ["batch"]),
            node("Concat", ["batch", "rest"], ["target"], axis=0),
            node("Reshape", ["x", "target"], ["y"]),
        ],
        {"x": ["b", 4, 6]},
        {"zero": np.asarray(0), "at": whole(0), "rest": whole(6, 4)},
        18,
    ),
    "unknown to torch": one("MeanVarianceNormalization", axes=[1, 2, 3]),
    "Identity chain": (
        [node("Identity", ["w"], ["v"]), node("Identity", ["v"], ["u"]), node("MatMul", ["x", "u"], ["y"])],
        {"x": ["b", 3]},
        {"w": array(3, 2)},
        18,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_an_operator_gives_what_onnx_runtime_gives(tmp_path, name):
    nodes, inputs, constants, opset = CASES[name]
    path = written(tmp_path / "m.onnx", nodes, inputs, ["y"], constants, opset)
    imported = import_onnx(path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options)
    for batch in (2,) if inputs["x"][0] == 2 else (1, 3):
        x = array(batch, *inputs["x"][1:], seed=batch)
        (expected,) = session.run(None, {"x": x})
        found = imported.graph.module(torch.from_numpy(x)).detach().numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


WHOLE = {"Selu, other slopes", "Softmax, old, several axes", "Resize, odd", "unknown to torch"}


@pytest.mark.parametrize("name", CASES)
def test_what_torch_has_is_not_kept_whole(tmp_path, name):
    nodes, inputs, constants, opset = CASES[name]
    imported = import_onnx(written(tmp_path / "m.onnx", nodes, inputs, ["y"], constants, opset))
    kinds = [type(module).__name__ for module in imported.graph.module.modules()]
    assert ("OnnxOperator" in kinds) == (name in WHOLE)


@pytest.mark.parametrize("factor", [2.0, 1.5])
def test_a_resize_from_the_first_pixel_is_edited(tmp_path, factor):
    """By whole factors its channels are cut; others are kept whole, and freeze them."""
    nodes = [
        node("Conv", ["x", "w"], ["c"]), node("Resize", ["c", "", "s"], ["r"], mode="linear",
        coordinate_transformation_mode="asymmetric"), node("Conv", ["r", "v"], ["y"]),
    ]  # fmt: skip
    constants = {"w": array(8, 3, 1, 1), "v": array(4, 8, 1, 1), "s": np.float32([1, 1, factor, factor])}
    path = written(tmp_path / "m.onnx", nodes, {"x": ["b", 3, 6, 4]}, ["y"], constants, 18)
    graph = import_onnx(path).graph
    assert [space.size for space in graph.spaces] == ([8] if factor == 2 else [])
    if factor == 2:
        rewrite_onnx(path, compress(graph, 0.5), tmp_path / "small.onnx")
        kinds = [each.op_type for each in onnx.load(tmp_path / "small.onnx").graph.node]
        assert kinds == ["Conv", "Resize", "Conv"]


_TOKENS, _PIXELS = ((4, 3), [(5, 3), (6, 3), (9, 3)]), ((3, 8, 8), [(3, 9, 7), (3, 10, 11)])
_LENGTH = [
    node("Shape", ["r"], ["shape"]),
    node("Gather", ["shape", "one"], ["length"]),
    node("Mul", ["length", "minus"], ["below"]),
    node("Div", ["below", "two"], ["half"]),
    node("Mul", ["half", "minus"], ["end"]),
    node("Unsqueeze", ["end", "first"], ["ends"]),
    node("Slice", ["r", "first", "ends", "axis"], ["q"]),
]
_BACK = [node("Slice", ["r", "start", "past", "axis", "back"], ["q"])]
_BACKWARDS = {"past": whole(-(2**63) + 1), "axis": whole(1), "back": whole(-1)}
OF_ANY_SIZE = {
    "half of a length below 0": (
        _TOKENS, _LENGTH,
        {"one": np.array(1), "minus": np.array(-1), "two": np.array(2), "first": whole(0), "axis": whole(1)},
    ),
    "even parts": (_TOKENS, [node("Split", ["r"], ["q", "rest"], axis=1, num_outputs=2)], {}),
    "backwards from the end": (_TOKENS, _BACK, {"start": whole(-1), **_BACKWARDS}),
    "backwards from a place": (_TOKENS, _BACK, {"start": whole(3), **_BACKWARDS}),
    **{
        f"{kind} {mode}": (_PIXELS, [node(kind, ["r", *given], ["q"], auto_pad=mode, strides=[2, 2], **more)], given)
        for mode in ("SAME_UPPER", "SAME_LOWER")
        for kind, given, more in (
            ("Conv", {"k": array(6, 6, 3, 3)}, {}),
            ("MaxPool", {}, {"kernel_shape": [3, 3]}),
            ("AveragePool", {}, {"kernel_shape": [3, 3]}),
        )
    },
    "a resize of one side": (
        _PIXELS,
        [node("Resize", ["r", "", "", "to"], ["q"], axes=[2], mode="linear")],
        {"to": whole(5)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OF_ANY_SIZE)
def test_a_network_and_its_edited_file_take_what_the_file_takes(tmp_path, name):
    """Sizes that the file leaves free are no numbers of the example."""
    (example, others), middle, constants = OF_ANY_SIZE[name]
    kind = "MatMul" if len(example) == 2 else "Conv"
    shape = ["b", *("t", 3)] if kind == "MatMul" else ["b", 3, "height", "width"]
    weights = (array(3, 6), array(6, 4)) if kind == "MatMul" else (array(6, 3, 1, 1), array(4, 6, 1, 1))
    nodes = [node(kind, ["x", "w"], ["h"]), node("Relu", ["h"], ["r"]), *middle, node(kind, ["q", "v"], ["y"])]
    path = written(tmp_path / "m.onnx", nodes, {"x": shape}, ["y"], {"w": weights[0], "v": weights[1], **constants})
    graph = import_onnx(path, shape=example).graph
    rewrite_onnx(path, widen(graph, 2), tmp_path / "wide.onnx")
    files = [onnxruntime.InferenceSession(str(tmp_path / name)) for name in ("m.onnx", "wide.onnx")]
    for size in others:
        x = array(2, *size)
        expected, edited = (file.run(None, {"x": x})[0] for file in files)
        np.testing.assert_allclose(edited, expected, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(graph.module(torch.from_numpy(x)).detach(), expected, rtol=1e-3, atol=1e-4)


def test_a_reduction_of_each_number_by_itself(tmp_path):
    nodes = [node("ReduceSumSquare", ["x", "none"], ["y"], noop_with_empty_axes=1)]
    path = written(tmp_path / "m.onnx", nodes, {"x": ["b", 4]}, ["y"], {"none": np.array([], np.int64)})
    x = array(3, 4)
    expected = onnxruntime.InferenceSession(str(path)).run(None, {"x": x})[0]
    np.testing.assert_allclose(import_onnx(path).graph.module(torch.from_numpy(x)), expected, rtol=1e-6)
