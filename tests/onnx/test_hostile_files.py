"""A share of the campaign on damaged `.onnx` files, and each kind of fault that it once found."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_files import written

from graphsurgery.errors import CheckpointError, SurgeryError, UnsupportedError
from graphsurgery.onnx.files import read_onnx
from graphsurgery.onnx.importing import import_onnx
from graphsurgery.onnx.runtime.comparing import compare_onnx
from graphsurgery.onnx.runtime.sessions import open_session
from graphsurgery.training.objectives.teachers import OnnxTeacher

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "campaigns"))

import damage
import damaged_onnx

OPENERS = {
    "import": import_onnx,
    "read": read_onnx,
    "session": lambda path: open_session(path, threads=1),
    "teacher": OnnxTeacher,
    "diff": lambda path: compare_onnx(path, path),
}


def linear(folder: Path, **entries: str) -> Path:
    """A product with a weight of 64 kB, which lies at the place that the entries say."""
    folder.mkdir(exist_ok=True)
    path = written(
        folder / "m.onnx",
        [helper.make_node("MatMul", ["x", "w"], ["y"], "mm")],
        {"x": [None, 128]},
        ["y"],
        {"w": np.zeros((128, 128), np.float32)},
    )
    model = onnx.load(path)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with weights, and links out of it, beside a file that nobody may read."""
    inner = tmp_path / "inner"
    (inner / "sub").mkdir(parents=True)
    for place in (tmp_path / "secret", inner / "weights", inner / "sub" / "weights"):
        place.write_bytes(np.arange(128 * 128, dtype=np.float32).tobytes())
    (inner / "link").symlink_to(tmp_path / "secret")
    (inner / "folder").symlink_to(tmp_path)
    (inner / "near").symlink_to(inner / "weights")
    return inner


@pytest.mark.parametrize("opener", OPENERS)
@pytest.mark.parametrize(
    "location",
    ["../secret", "sub/../../secret", "link", "folder/secret", "", ".", "missing", "/dev/zero", "..\\secret", "C:\\x"],
)
def test_weights_outside_the_folder_are_refused(folder, location, opener):
    path = linear(folder, location=location)
    with pytest.raises(CheckpointError, match=r"m\.onnx: .*(beside the model|link out of|missing)"):
        OPENERS[opener](path)


@pytest.mark.parametrize("opener", OPENERS)
def test_weights_at_an_absolute_path_are_refused(folder, opener):
    path = linear(folder, location=str(folder.parent / "secret"))
    with pytest.raises(CheckpointError, match="expected a file beside the model"):
        OPENERS[opener](path)


@pytest.mark.parametrize("location", ["weights", "sub/weights"])
def test_weights_in_the_folder_are_read(folder, location):
    imported = import_onnx(linear(folder, location=location))
    assert imported.file.constants["w"][0, 1] == 1


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"offset": "-4"}, "says no position"),
        ({"length": "-65536"}, "says no position"),
        ({"offset": "x"}, "says no position"),
        ({"offset": "4096"}, "truncated|cannot be read"),
        ({"length": "99999999999999999999"}, "truncated"),
        ({"length": "128"}, "cannot be read"),
    ],
)
def test_positions_in_the_file_of_weights(folder, entries, message):
    with pytest.raises(CheckpointError, match=message):
        import_onnx(linear(folder, location="weights", **entries))


def test_a_place_that_is_said_twice_is_refused(folder):
    path = linear(folder, location="weights")
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].external_data.add(key="location", value="../secret")
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match="expected a file beside the model"):
        import_onnx(path)


def constant_outside(model: onnx.ModelProto) -> None:
    value = onnx.TensorProto(name="c", data_type=1, dims=[128], data_location=TensorProto.EXTERNAL)
    value.external_data.add(key="location", value="weights")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["c"], "c", value=value))


def sparse_outside(model: onnx.ModelProto) -> None:
    sparse = model.graph.sparse_initializer.add(dims=[128])
    sparse.values.name, sparse.values.data_location = "s", TensorProto.EXTERNAL
    sparse.values.external_data.add(key="location", value="../secret")


@pytest.mark.parametrize("change", [constant_outside, sparse_outside])
def test_only_weights_may_lie_outside(folder, change):
    path = linear(folder, location="weights")
    model = onnx.load(path, load_external_data=False)
    change(model)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match="lies outside the file, which only weights may"):
        read_onnx(path)


def test_what_only_the_runtime_finds(tmp_path):
    path = written(
        tmp_path / "m.onnx",
        [helper.make_node("Relu", ["x"], ["y"], "act"), helper.make_node("Relu", ["x"], ["y"], "again")],
        {"x": [None, 3]},
        ["y"],
    )
    with pytest.raises(CheckpointError, match=r"m\.onnx: ONNX Runtime does not open it: .*y"):
        import_onnx(path)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (helper.make_node("Split", ["x"], ["y", "z"], "split", axis=1, num_outputs=3), "split"),
        (helper.make_node("Conv", ["x", "w"], ["y"], "conv", kernel_shape=[3, 7]), "conv has a kernel of"),
        (helper.make_node("Conv", [], ["y"], "conv"), r"m\.onnx: "),
        (helper.make_node("Transpose", ["x"], ["y"], "turn", perm=[0, 0, 9, 9]), "turn"),
        (helper.make_node("Concat", [], ["y"], "join", axis=1), r"m\.onnx: "),
        (helper.make_node("Relu", ["x"], [], "act"), r"m\.onnx: "),
        (helper.make_node("Constant", [], ["y"], "c"), r"m\.onnx: "),
    ],
)
def test_nodes_that_lack_something_or_contradict_themselves(tmp_path, node, message):
    constants = {"w": np.zeros((4, 4, 3, 3), np.float32)}
    path = written(tmp_path / "m.onnx", [node], {"x": [None, 4, 8, 8]}, ["y"], constants)
    with pytest.raises(SurgeryError, match=message):
        import_onnx(path)


@pytest.mark.parametrize("kind", [TensorProto.BFLOAT16, TensorProto.STRING, TensorProto.COMPLEX64, 99, 0])
def test_inputs_of_other_types(tmp_path, kind):
    path = written(tmp_path / "m.onnx", [helper.make_node("Identity", ["x"], ["y"], "same")], {"x": [None, 3]}, ["y"])
    model = onnx.load(path)
    model.graph.node[0].op_type = "Relu"
    model.graph.input[0].type.tensor_type.elem_type = kind
    path.write_bytes(model.SerializeToString())
    with pytest.raises((UnsupportedError, CheckpointError), match=r"m\.onnx: "):
        import_onnx(path)


@pytest.mark.parametrize("dims", [[2**40, 2**40], [2**62, 4], [-1, -128], [-128, -128], [2**33]])
def test_weights_of_absurd_sizes(tmp_path, dims):
    path = written(
        tmp_path / "m.onnx",
        [helper.make_node("MatMul", ["x", "w"], ["y"], "mm")],
        {"x": [None, 128]},
        ["y"],
        {"w": np.zeros((128, 128), np.float32)},
    )
    model = onnx.load(path)
    model.graph.initializer[0].dims[:] = dims
    path.write_bytes(model.SerializeToString())
    for opener in (import_onnx, lambda path: compare_onnx(path, path)):
        with pytest.raises(CheckpointError, match=r"m\.onnx: "):
            opener(path)


@pytest.mark.parametrize("kind", damaged_onnx.KINDS)
@pytest.mark.filterwarnings("ignore:Ignoring unknown external data")
def test_a_share_of_the_campaign(tmp_path, kind):
    for seed in range(1000, 1009):
        folder = tmp_path / str(seed)
        folder.mkdir()
        found = damaged_onnx.examine(kind, seed, folder)
        assert found.outcome not in damage.FAULTS, (seed, found)
