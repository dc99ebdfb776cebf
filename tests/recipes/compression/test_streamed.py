"""A folder of Hugging Face that is cut tensor by tensor: as in memory, in little memory, and after any kill."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
import warnings
import weakref

import pytest
import stand_in_transformers
import torch
from full_disk import full_at
from safetensors.torch import load_file, save_file
from stand_in_transformers import Config, ScaledModel, TiedModel, TinyModel

import graphsurgery as gs
from graphsurgery.errors import CheckpointError, SurgeryError, UnsupportedError
from graphsurgery.models.libraries import streaming
from graphsurgery.models.libraries.streaming import filled, open_stored
from graphsurgery.models.libraries.tensor_files import StoredTensor
from graphsurgery.passes.compress import compress
from graphsurgery.recipes.compression import streamed
from graphsurgery.recipes.compression.shrink import Cut
from graphsurgery.recipes.compression.streamed import compress_folder, cut_stored
from graphsurgery.surgery.channels.targets import parse_target
from graphsurgery.surgery.remapping import gathering

SIZES = {"hidden_size": 16, "num_heads": 4, "layers": 2}


@pytest.fixture(autouse=True)
def library(monkeypatch):
    return stand_in_transformers.install(monkeypatch)


def in_shards(folder, shards):
    """Spread the weights of a folder over several files."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    places = {name: f"part-{index % shards}.safetensors" for index, name in enumerate(names)}
    for file in set(places.values()):
        save_file({name: tensors[name] for name in names if places[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}), encoding="utf-8")


def made(folder, kind=TinyModel, *, shards=1, dtype=torch.float64, **sizes):
    torch.manual_seed(0)
    kind(Config(**{**SIZES, **sizes})).to(dtype).save_pretrained(folder)
    if shards > 1:
        in_shards(folder, shards)
    return f"hf:{folder}"


def written(folder):
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("shard_bytes", [1, 5000, 10**9], ids=["a file each", "some files", "one file"])
@pytest.mark.parametrize("kind", [TinyModel, TiedModel])
def test_the_folder_is_what_memory_gives(tmp_path, kind, shard_bytes, monkeypatch):
    spec, out = made(tmp_path / "big", kind, shards=3), tmp_path / "small"
    (tmp_path / "big" / "tokenizer.json").write_text("{}", encoding="utf-8")
    monkeypatch.setattr(gathering, "_READ", 40)
    done = compress_folder(open_stored(spec), Cut(keep=0.5), out, shard_bytes=shard_bytes)
    before = gs.trace(model := kind.from_pretrained(tmp_path / "big").double(), done.graph.example_inputs(2))
    expected = compress(before, 0.5)
    assert done.config == gs.config_of(expected, model) == {"hidden_size": 8, "num_heads": 2, "inner": 5}
    small = kind.from_pretrained(out).double()
    x = expected.example_inputs(3)
    assert torch.equal(small(*x)["logits"], expected(*x)["logits"])
    assert set(written(out)) == set(written(tmp_path / "big"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["big", "small"]
    assert (out / "tokenizer.json").is_file()
    assert len(list(out.glob("*.safetensors"))) == len(done.shards) == (1 if shard_bytes > 5000 else len(done.shards))
    assert json.loads((out / "config.json").read_text(encoding="utf-8"))["use_cache"] is True


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_precision_is_that_of_the_files(tmp_path, dtype):
    spec = made(tmp_path / "big", TiedModel, dtype=dtype)
    compress_folder(open_stored(spec), Cut(keep=0.5), tmp_path / "small")
    old, new = written(tmp_path / "big"), written(tmp_path / "small")
    assert {name: tensor.dtype for name, tensor in new.items()} == {name: t.dtype for name, t in old.items()}
    assert torch.equal(new["ages"], old["ages"])
    assert torch.equal(new["unread.weight"], old["unread.weight"])


@pytest.mark.parametrize(
    "plan",
    [
        Cut(target=parse_target("params=0.5x", ranking="uniform"), importance="l1"),
        Cut(target=parse_target("macs=0.6x", ranking="uniform")),
        Cut(keep=0.5, importance="random", seed=3),
        Cut(target=parse_target("params=0.5x", ranking="global")),
        Cut(keep=0.5, within="best"),
    ],
    ids=["params", "macs", "random", "global", "best"],
)
def test_plans_are_those_of_networks_in_memory(tmp_path, plan):
    spec = made(tmp_path / "big", shards=2, inner=16)
    small = cut_stored(network := open_stored(spec), plan)
    graph = gs.open_model(spec)
    keep = plan.keep if plan.target is None else None
    asked = {"target": plan.target, "within": plan.within, "importance": plan.importance, "seed": plan.seed}
    expected = compress(graph, keep, **asked)
    assert small.lineage[-1] == expected.lineage[-1]
    tensors = filled(network, small).tensors()
    assert all(torch.equal(tensors[name], tensor.to(tensors[name])) for name, tensor in expected.tensors().items())


def test_a_checkpoint_of_our_own_and_onnx(tmp_path):
    spec = made(tmp_path / "big", TiedModel, dtype=torch.float32)
    small = filled(network := open_stored(spec), cut_stored(network, Cut(keep=0.5)))
    gs.save(small, tmp_path / "small.pt")
    again, expected = gs.load(tmp_path / "small.pt"), compress(gs.open_model(spec), 0.5)
    x = expected.example_inputs(3)
    assert torch.equal(again(*x)["logits"], expected(*x)["logits"])
    assert again.module.words.weight is again.module.head.weight
    gs.export_onnx(again, tmp_path / "small.onnx")


def test_no_more_is_in_memory_than_a_shard_and_some_rows(tmp_path, monkeypatch):
    """All that is read is counted as long as it lives, and the files are larger than what they are read by."""
    spec = made(tmp_path / "big", shards=4, hidden_size=64, inner=64, layers=8, vocab_size=400, dtype=torch.float32)
    alive, most, read = [0], [0], StoredTensor.read

    def counted(self, start=0, stop=None):
        found = read(self, start, stop)
        alive[0] += found.nbytes
        most[0] = max(most[0], alive[0])
        weakref.finalize(found, lambda size=found.nbytes: alive.__setitem__(0, alive[0] - size))
        return found

    monkeypatch.setattr(StoredTensor, "read", counted)
    monkeypatch.setattr(gathering, "_READ", 1000)
    network = open_stored(spec)
    files = []
    write = streamed.write_shards

    def written_one_by_one(*arguments):
        for shard in write(*arguments):
            files.append(shard.bytes)
            yield shard

    monkeypatch.setattr(streamed, "write_shards", written_one_by_one)
    compress_folder(network, Cut(keep=0.5), tmp_path / "small", shard_bytes=40_000)
    assert network.bytes > 900_000
    assert most[0] <= 3 * 4000
    assert len(files) > 5
    assert max(files) <= 51_200  # the largest tensor


# Interrupted ----------------------------------------------------------------------------------------------------------


def stopped(tmp_path, monkeypatch, after=3):
    """A run that ends with an error after some shards."""
    spec, count = made(tmp_path / "big", shards=2), [0]
    write = streamed.write_shards

    def until(*arguments):
        for shard in write(*arguments):
            count[0] += 1
            if count[0] > after:
                raise KeyboardInterrupt
            yield shard

    network = open_stored(spec)
    monkeypatch.setattr(streamed, "write_shards", until)
    with pytest.raises(KeyboardInterrupt):
        compress_folder(network, Cut(keep=0.5), tmp_path / "small", shard_bytes=1)
    monkeypatch.setattr(streamed, "write_shards", write)
    return spec


def begun(spec, out):
    """A process that writes shard by shard, slowly."""
    network, edited = open_stored(spec), streaming.edited
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a process with threads; the child starts none
        child = os.fork()
    if child:
        return child
    try:
        streaming.edited = lambda *given: (time.sleep(0.1), edited(*given))[1]
        compress_folder(network, Cut(keep=0.5), out, shard_bytes=1)
    finally:
        os._exit(1)


def test_a_killed_run_goes_on(tmp_path):
    spec = made(tmp_path / "big", shards=2)
    compress_folder(open_stored(spec), Cut(keep=0.5), tmp_path / "whole", shard_bytes=1)
    killed = begun(spec, tmp_path / "small")
    result, deadline = tmp_path / "small.part" / "result", time.monotonic() + 60
    while len(done := sorted(result.glob("*.safetensors"))) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(killed, signal.SIGKILL)
    os.waitpid(killed, 0)
    assert not (tmp_path / "small").exists()
    times = {file.name: file.stat().st_mtime_ns for file in done}
    found = compress_folder(open_stored(spec), Cut(keep=0.5), tmp_path / "small", shard_bytes=1)
    assert len(done) <= found.resumed < len(found.shards)
    assert {name: (tmp_path / "small" / name).stat().st_mtime_ns for name in times} == times
    files = [{file.name: file.read_bytes() for file in (tmp_path / out).iterdir()} for out in ("small", "whole")]
    assert files[0] == files[1]
    assert not (tmp_path / "small.part").exists()


def test_what_is_known_of_the_importance_is_not_read_again(tmp_path, monkeypatch):
    spec = stopped(tmp_path, monkeypatch)
    monkeypatch.setattr(streamed.StreamedScores, "read", lambda *_: pytest.fail("read again"))
    assert compress_folder(open_stored(spec), Cut(keep=0.5), tmp_path / "small", shard_bytes=1).resumed >= 3


def test_a_damaged_shard_of_an_unfinished_result_is_written_again(tmp_path, monkeypatch):
    spec = stopped(tmp_path, monkeypatch)
    first = min((tmp_path / "small.part" / "result").glob("*.safetensors"))
    first.write_bytes(first.read_bytes()[:-1])
    (tmp_path / "small.part" / "importance" / "00001.safetensors").write_bytes(b"")
    assert compress_folder(open_stored(spec), Cut(keep=0.5), tmp_path / "small", shard_bytes=1).resumed == 3
    TinyModel.from_pretrained(tmp_path / "small")


def test_an_unfinished_result_of_another_task(tmp_path, monkeypatch):
    spec = stopped(tmp_path, monkeypatch)
    network = open_stored(spec)
    with pytest.raises(SurgeryError, match=r"small.part: is the unfinished .* task \(not the same: cut\); repeat"):
        compress_folder(network, Cut(keep=0.25), tmp_path / "small", shard_bytes=1)
    os.utime(network.tensors["head.bias"].file, ns=(1, 1))
    with pytest.raises(SurgeryError, match=r"not the same: weights"):
        compress_folder(network, Cut(keep=0.5), tmp_path / "small", shard_bytes=1)
    done = compress_folder(network, Cut(keep=0.25), tmp_path / "small", shard_bytes=1, overwrite=True)
    assert (done.resumed, done.config["inner"]) == (0, 2)


def test_something_else_in_the_place_of_an_unfinished_result(tmp_path):
    network = open_stored(made(tmp_path / "big"))
    (tmp_path / "small.part").mkdir()
    (tmp_path / "small.part" / "letters").write_text("dear")
    with pytest.raises(SurgeryError, match=r"small.part: is in the way"):
        compress_folder(network, Cut(keep=0.5), tmp_path / "small", overwrite=True)
    shutil.rmtree(tmp_path / "small.part")
    (tmp_path / "small.part").write_text("")
    with pytest.raises(SurgeryError, match=r"small.part: is in the way"):
        compress_folder(network, Cut(keep=0.5), tmp_path / "small")


@pytest.mark.parametrize("size", [0, 100, 900, 2000])
def test_a_full_disk(tmp_path, size):
    spec = made(tmp_path / "big", shards=2)
    network = open_stored(spec)
    with full_at(size), pytest.raises(SurgeryError, match=r"cannot be written .*; free space"):
        compress_folder(network, Cut(keep=0.5), tmp_path / "small", shard_bytes=2500)
    assert not (tmp_path / "small").exists()
    compress_folder(network, Cut(keep=0.5), tmp_path / "small", shard_bytes=2500)
    TinyModel.from_pretrained(tmp_path / "small")


def test_a_disk_that_is_too_small_is_known_before(tmp_path, monkeypatch):
    network = open_stored(made(tmp_path / "big"))
    monkeypatch.setattr(streamed.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(SurgeryError, match=r"GB are still to be written, and the disk has 0.0 GB; free space"):
        compress_folder(network, Cut(keep=0.5), tmp_path / "small")


# What cannot be done --------------------------------------------------------------------------------------------------


def _retouched(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def _index_with(folder, **places):
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({"weight_map": index["weight_map"] | places}), encoding="utf-8")


def _cut_off(file):
    file.write_bytes(file.read_bytes()[:-3])


@pytest.mark.parametrize(
    ("change", "shards", "message"),
    [
        (lambda f: (f / "part-1.safetensors").unlink(), 2, r"1 of 2 shards of its .* are missing: part-1"),
        (lambda f: _cut_off(f / "part-1.safetensors"), 2, r"part-1.safetensors: is damaged: .*; take another copy"),
        (lambda f: (f / "part-0.safetensors").write_bytes(b"\xff" * 40), 2, r"part-0.safetensors: is damaged"),
        (lambda f: _index_with(f, new="part-0.safetensors"), 2, r"part-0.safetensors: has no new, which the .*index"),
        (lambda f: _index_with(f, new="../x.safetensors"), 2, r"is damaged: \.\./x.safetensors is no file of"),
        (lambda f: (f / "model.safetensors.index.json").write_text("{}"), 2, r"index.json: is damaged: it has no"),
        (lambda f: (f / "model.safetensors").unlink(), 1, r"has no weights"),
        (lambda f: (f / "config.json").unlink(), 1, r"has no config.json"),
        (
            lambda f: _retouched(f, lambda t: t.update(bias=t.pop("head.bias"))),
            1,
            r"1 weights are missing for TinyModel: head.bias",
        ),
        (lambda f: _retouched(f, lambda t: t.pop("head.bias")), 1, r"1 weights are missing for TinyModel: head.bias"),
        (lambda f: _retouched(f, lambda t: t.update(a=torch.ones(1))), 1, r"1 weights are unexpected for TinyModel: a"),
        (
            lambda f: _retouched(f, lambda t: t.update({"head.bias": torch.ones(9)})),
            1,
            r"1 weights are mismatched for TinyModel: head.bias",
        ),
    ],
)  # fmt: skip
def test_folders_that_are_not_whole(tmp_path, change, shards, message):
    spec = made(tmp_path / "big", shards=shards)
    change(tmp_path / "big")
    with pytest.raises(CheckpointError, match=message):
        open_stored(spec)


def test_weights_that_the_library_gives_other_names(tmp_path, monkeypatch):
    """The files keep their names, so that the library loads the result as it loaded them."""
    spec = made(tmp_path / "big")
    network = open_stored(spec)
    expected = {
        name: streaming.edited(network, small, name)
        for small in [cut_stored(network, Cut(keep=0.5))]
        for name in network.names
    }
    _retouched(tmp_path / "big", lambda t: t.update({f"old.{name}": t.pop(name) for name in list(t)}))
    with pytest.raises(CheckpointError, match=r"weights are missing for TinyModel"):
        open_stored(spec)
    stand_in_transformers.renames(monkeypatch, {"old.": ""})
    network = open_stored(spec)
    small = cut_stored(network, Cut(keep=0.5))
    assert set(network.names) == {f"old.{name}" for name in expected}
    for name, tensor in expected.items():
        assert torch.equal(streaming.edited(network, small, f"old.{name}"), tensor)
    compress_folder(network, Cut(keep=0.5), tmp_path / "small")
    assert set(written(tmp_path / "small")) == set(network.tensors)


def test_weights_that_the_library_computes_from_others_are_refused(tmp_path, monkeypatch):
    """Under the same name as well: what lies in the file is not what the class has."""
    spec = made(tmp_path / "big")
    stand_in_transformers.renames(monkeypatch, {}, converted="head.weight")
    with pytest.raises(
        UnsupportedError, match=r"computes head.weight from head.weight and others .* install FILE.pt --into hf:"
    ):
        open_stored(spec)


def test_a_file_that_goes_while_it_is_read(tmp_path):
    network = open_stored(made(tmp_path / "big"))
    (tmp_path / "big" / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"model.safetensors: .* cannot be read"):
        cut_stored(network, Cut(keep=0.5))


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Cut(keep=0.5, importance="taylor"), r"importance taylor needs gradients of the whole network"),
        (Cut(keep=0.5, importance="gate"), r"importance gate needs gates, which a folder has not"),
        (Cut(), r"nothing says what to keep"),
        (Cut(keep=0.5, importance="l3"), r"importance l3 is unknown"),
        (Cut(spaces={"nowhere": 3}), r"nowhere is not a space"),
    ],
)
def test_plans_that_need_more_than_weights(tmp_path, plan, message):
    with pytest.raises(SurgeryError, match=message):
        compress_folder(open_stored(made(tmp_path / "big")), plan, tmp_path / "small")
    assert [path.name for path in tmp_path.iterdir()] == ["big"]


def test_a_size_of_weights_in_several_precisions(tmp_path):
    spec = made(tmp_path / "big")
    _retouched(tmp_path / "big", lambda t: t.update({"head.bias": t["head.bias"].half()}))
    network = open_stored(spec)
    with pytest.raises(SurgeryError, match=r"several precisions, so a size cannot be aimed at; give params"):
        cut_stored(network, Cut(target=parse_target("size=0.5x")))
    compress_folder(network, Cut(keep=0.5), tmp_path / "small")
    assert written(tmp_path / "small")["head.bias"].dtype == torch.float16


def test_what_no_configuration_says(tmp_path):
    network = open_stored(made(tmp_path / "big"))
    inner = [space.name for space in network.graph.spaces if space.size == 10]
    with pytest.raises(SurgeryError, match=r"config.inner cannot be right everywhere"):
        compress_folder(network, Cut(spaces={inner[0]: 4, inner[1]: 5}), tmp_path / "small")


def test_a_number_that_the_class_computes_from_a_width(tmp_path):
    network = open_stored(made(tmp_path / "big", ScaledModel))
    with pytest.raises(SurgeryError, match=r"ScaledModel .* computes something else at mul.* than the network at mul"):
        compress_folder(network, Cut(keep=0.5), tmp_path / "small")


def test_specs_without_stored_weights():
    with pytest.raises(SurgeryError, match=r"hf:TinyModel: is no folder of Hugging Face"):
        open_stored("hf:TinyModel")
