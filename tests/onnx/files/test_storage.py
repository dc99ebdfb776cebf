"""Large weights are read where they lie, in the file or beside it, and written back there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx_files import written

import graphsurgery as gs
from graphsurgery.errors import CheckFailedError, CheckpointError
from graphsurgery.onnx.editing.rewriting import rewrite_onnx
from graphsurgery.onnx.files.storage import open_model, save_model
from graphsurgery.onnx.importing import import_onnx
from graphsurgery.onnx.importing.reading import read_program
from graphsurgery.passes.compress import compress
from graphsurgery.passes.factorize import factorize


def chain(path, *widths, opset=17):
    """Linear layers of these widths, with relus between them."""
    rng = np.random.default_rng(0)
    nodes, constants, value = [], {}, "x"
    for index, (read, made) in enumerate(pairwise(widths)):
        constants[f"l{index}.weight"] = (rng.normal(size=(made, read)) / read**0.5).astype(np.float32)
        constants[f"l{index}.bias"] = rng.normal(size=made).astype(np.float32)
        inputs = [value, f"l{index}.weight", f"l{index}.bias"]
        nodes.append(helper.make_node("Gemm", inputs, [f"h{index}"], f"gemm{index}", transB=1))
        nodes.append(helper.make_node("Relu", [f"h{index}"], [f"r{index}"], f"relu{index}"))
        value = f"r{index}"
    return written(path, nodes, {"x": ["b", widths[0]]}, [value], constants, opset=opset, ir=8)


def outside(path, *, files=1):
    """The same file with its weights in one or more files beside it."""
    model = onnx.load(path)
    onnx.save_model(
        model, str(path), save_as_external_data=True, all_tensors_to_one_file=files == 1,
        location=f"{path.name}.data" if files == 1 else None, size_threshold=0,
    )  # fmt: skip
    assert all(tensor.external_data for tensor in onnx.load(path, load_external_data=False).graph.initializer)
    return path


def bytes_of(folder):
    return {place.name: place.read_bytes() for place in folder.iterdir()}


def test_weights_are_mapped_and_the_model_is_small(tmp_path):
    path = chain(tmp_path / "m.onnx", 40, 64, 30)
    model, weights = open_model(path)
    assert model.ByteSize() < 2000
    whole = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    assert set(weights.arrays) == {"l0.weight", "l1.weight"}
    for name, array in weights.arrays.items():
        np.testing.assert_array_equal(array, whole[name])
    constants = read_program(path).constants
    assert set(constants) == set(whole)
    for name, array in whole.items():
        np.testing.assert_array_equal(constants[name], array)


@pytest.mark.parametrize("beside", [False, True])
def test_a_model_is_written_as_onnx_writes_it(tmp_path, beside):
    path = chain(tmp_path / "m.onnx", 40, 64, 600, 5)
    model, weights = open_model(path)
    arrays = {name: lambda array=array: array for name, array in weights.arrays.items()}
    save_model(model, arrays, tmp_path / "n.onnx", tmp_path / "n.data" if beside else None)
    first, second = onnx.load(path), onnx.load(tmp_path / "n.onnx")
    for tensor in second.graph.initializer:
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
    assert bool(first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True))


@pytest.mark.parametrize("files", [1, 2])
def test_weights_that_lie_beside_the_file_do_so_again(tmp_path, files):
    path = outside(chain(tmp_path / "m.onnx", 40, 64, 600, 5), files=files)
    before = bytes_of(tmp_path)
    graph = import_onnx(path).graph
    (tmp_path / "out").mkdir()
    assert rewrite_onnx(path, compress(graph, 0.5), tmp_path / "out" / "small.onnx").holds
    assert rewrite_onnx(path, factorize(graph, rank=0.5, force=True), tmp_path / "two.onnx").holds
    assert set(bytes_of(tmp_path / "out")) == {"small.onnx", "small.onnx.data"}
    assert (tmp_path / "out" / "small.onnx").stat().st_size < 4000
    assert {name: (tmp_path / name).read_bytes() == content for name, content in before.items()} == dict.fromkeys(
        before, True
    )
    assert (tmp_path / "two.onnx.data").is_file()


def test_a_file_with_weights_beside_it_takes_its_own_place(tmp_path):
    path = outside(chain(tmp_path / "m.onnx", 40, 64, 600, 5))
    data = (tmp_path / "m.onnx.data").read_bytes()
    small = compress(import_onnx(path).graph, 0.5)
    assert rewrite_onnx(path, small, path).holds
    assert (tmp_path / "m.onnx.data").read_bytes() == data
    assert {place.name for place in tmp_path.iterdir()} == {"m.onnx", "m.onnx.data", "m.onnx.2.data"}
    assert gs.check_onnx(small, path).holds


def test_nothing_is_left_of_a_file_that_is_refused(tmp_path):
    path = outside(chain(tmp_path / "m.onnx", 40, 64, 5))
    before = bytes_of(tmp_path)
    small = compress(import_onnx(path).graph, 0.5)
    with pytest.raises(CheckFailedError, match="not written"):
        rewrite_onnx(path, small, tmp_path / "small.onnx", rtol=0.0)
    assert set(bytes_of(tmp_path)) == set(before)


def test_weights_that_do_not_change_keep_their_bytes(tmp_path):
    path = chain(tmp_path / "m.onnx", 40, 64, 600, 5)
    rewrite_onnx(path, factorize(import_onnx(path).graph, "l1", rank=3), tmp_path / "two.onnx")
    old, new = (
        {tensor.name: tensor.SerializeToString() for tensor in onnx.load(place).graph.initializer}
        for place in (path, tmp_path / "two.onnx")
    )
    kept = {"l0.weight", "l0.bias", "l2.weight", "l2.bias"}
    assert {name: old[name] == new[name] for name in kept} == dict.fromkeys(kept, True)


def damaged(path: Path, change) -> Path:
    model = onnx.load(path)
    change(model.graph.initializer[0])
    onnx.save(model, path)
    return path


def longer(tensor):
    tensor.dims[0] += 1


def test_damage_is_told(tmp_path):
    path = chain(tmp_path / "m.onnx", 40, 64, 5)
    whole = path.read_bytes()
    path.write_bytes(whole[:5000])
    with pytest.raises(CheckpointError, match=r"is truncated or no ONNX file at all"):
        read_program(path)
    path.write_bytes(whole)
    with pytest.raises(CheckpointError, match=r"is truncated or no ONNX file at all|tensor l0.weight is damaged"):
        read_program(damaged(path, longer))
    path = outside(chain(tmp_path / "n.onnx", 40, 64, 5))
    model = onnx.load(path, load_external_data=False)
    longer(model.graph.initializer[0])
    onnx.save(model, path)
    with pytest.raises(CheckpointError, match=r"its weights cannot be read: tensor l0.weight is damaged"):
        read_program(path)


MEASURED = """
import gc; gc.disable()
import re, sys
from pathlib import Path
from graphsurgery.cli import run
from graphsurgery.onnx.exporting import checking
from graphsurgery.onnx.importing import import_onnx
checking.LARGE = 2**22  # these files are large, too
def status(name): return 1024 * int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
def edit(path, *words): assert not run([words[0], path, *words[1:], "-o", path + ".out.onnx", "--overwrite", "--quiet"])
edits = (("compress", "--keep", "0.9"), ("factorize", "--rank", "0.1", "--how", "random"))
for small, large in zip(sys.argv[1::2], sys.argv[2::2]):
    for words in edits: edit(small, *words)
    gc.freeze(); gc.enable()  # what is imported is no garbage
    Path("/proc/self/clear_refs").write_text("5")  # the highest memory counts from here
    start = status("VmRSS")
    import_onnx(large, check=False)
    print(status("VmHWM") - start)
    for words in edits:
        edit(large, *words)
        print(status("VmHWM") - start)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="measured as Linux counts memory")
def test_a_large_file_takes_little_memory(tmp_path):
    """Reading takes once the weights and one layer more; an edited file with its proofs twice, and some layers."""
    files = []
    for place, moved in (("inside", lambda path: path), ("beside", outside)):
        (tmp_path / place).mkdir()
        for name, widths in (("small", [50]), ("large", [600] * 16)):
            files.append(str(moved(chain(tmp_path / place / f"{name}.onnx", 40, *widths, 5))))
    weights = 4 * 15 * 600 * 600
    returned = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed does not count any more
    command = [sys.executable, "-c", MEASURED, *files]
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=returned)
    numbers = [int(number) / weights for number in re.findall(r"^-?\d+$", found.stdout, re.MULTILINE)]
    assert len(numbers) == 6
    for read, compressed, factorized in (numbers[:3], numbers[3:]):
        assert read < 1.3
        assert compressed < 2.3
        assert factorized < 2.5
