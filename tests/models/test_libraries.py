"""Specs of libraries. A library of our own stands for transformers, so that no package is needed."""

from __future__ import annotations

import importlib.util
import json
import sys

import pytest
import stand_in_transformers
import torch
from safetensors.torch import load_file, save_file
from stand_in_transformers import Config, ScaledModel, TinyModel
from torch import nn

import graphsurgery as gs
from graphsurgery.cli import run
from graphsurgery.errors import CheckpointError, SpecError, SurgeryError
from graphsurgery.models.libraries.installing import write_installed
from graphsurgery.models.libraries.library import Trust
from graphsurgery.models.specs import build, trained_instead

SMALL = "hf:TinyModel?hidden_size=16&num_heads=4&layers=2"


@pytest.fixture
def library(monkeypatch):
    """A module that is called transformers."""
    return stand_in_transformers.install(monkeypatch)


@pytest.fixture
def folder(library, tmp_path):  # noqa: ARG001
    torch.manual_seed(0)
    TinyModel(Config(hidden_size=16, num_heads=4, layers=2)).save_pretrained(tmp_path / "big")
    return tmp_path / "big"


@pytest.mark.usefixtures("library")
def test_a_class_with_options_is_opened_on_invented_inputs():
    graph = gs.open_model(SMALL)
    assert [spec.name for spec in graph.inputs] == ["input_ids", "attention_mask"]
    assert graph.inputs[0].high > 7
    assert (graph.inputs[1].low, graph.inputs[1].high) == (0, 1)
    assert {space.size for space in graph.spaces} >= {4, 10, 16}
    assert "hf:FOLDER" in (trained_instead(SMALL) or "")


def test_a_folder_is_opened_with_its_weights(folder):
    graph = gs.open_model(f"hf:{folder}")
    model = TinyModel.from_pretrained(folder)
    x = graph.example_inputs(3)
    torch.testing.assert_close(graph(*x)["logits"], model(*x)["logits"], rtol=1e-5, atol=1e-6)
    assert trained_instead(f"hf:{folder}") is None


def test_weights_in_shards(folder):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({name: tensors[name] for name in part}, folder / f"{number}.safetensors")
    shards = {name: f"{index % 2}.safetensors" for index, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}), encoding="utf-8")
    assert gs.open_model(f"hf:{folder}").tensors()["head.bias"].shape == (3,)
    (folder / "1.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"1 of 2 shards of its model.safetensors.index.json are missing: 1\.safet"
    ):
        gs.open_model(f"hf:{folder}")


def _without(folder, name):
    (folder / name).unlink()


def _damage(folder, name):
    (folder / name).write_bytes(b"{")


def _pickled(folder):
    _without(folder, "model.safetensors")
    torch.save({}, folder / "pytorch_model.bin")


def _with(folder, **fields):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | fields), encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: _without(f, "config.json"), r"has no config.json; expected a folder as save_pretrained writes it"),
        (lambda f: _damage(f, "config.json"), r"config.json: is damaged"),
        (lambda f: _without(f, "model.safetensors"), r"has no weights; .* random ones are drawn by hf:TinyModel"),
        (lambda f: _damage(f, "model.safetensors"), r"model.safetensors: is damaged"),
        (_pickled, r"has only pickled weights \(pytorch_model.bin\), which are not read"),
        (
            lambda f: _with(f, auto_map={"AutoModel": "code.Net"}),
            r"code in the folder \(code.Net\); with --trust-remote-code",
        ),
        (lambda f: _with(f, architectures=["NewModel"]), r"names the class NewModel, which transformers 0 has not"),
        (lambda f: _with(f, layers=3), r"weights are missing for TinyModel: layers.2"),
    ],
)
def test_a_folder_that_cannot_be_opened(folder, change, message):
    change(folder)
    with pytest.raises(CheckpointError, match=message):
        gs.open_model(f"hf:{folder}")


@pytest.mark.parametrize(
    ("spec", "kind", "message"),
    [
        ("hf:TinyMode", SpecError, r"transformers has no model TinyMode; did you mean TinyModel"),
        ("hf:AutoModel", SpecError, r"stands for many classes; name one"),
        ("hf:TinyModel?hidden_sise=3", SpecError, r"has no option 'hidden_sise'; did you mean hidden_size\?"),
        ("hf:TinyModel?num_heads=0", SpecError, r"cannot be built \(ZeroDivisionError"),
        ("hf:no/such", CheckpointError, r"there is no such folder, nor a class of that name"),
        ("ultralytics:yolo11n.pt", CheckpointError, r"there is no file yolo11n.pt; ultralytics would download it"),
        ("ultralytics:yolo11n", SpecError, r"expected a .yaml of ultralytics"),
    ],
)
@pytest.mark.usefixtures("library")
def test_specs_that_name_nothing(spec, kind, message):
    with pytest.raises(kind, match=message):
        gs.open_model(spec)


@pytest.mark.parametrize(
    ("spec", "package", "extra"),
    [
        ("hf:BertModel", "transformers", "hf"),
        ("smp:Unet", "segmentation_models_pytorch", "smp"),
        ("ultralytics:yolo11n.yaml", "ultralytics", "ultralytics"),
    ],
)
def test_a_missing_library_says_which_extra_has_it(spec, package, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        SpecError, match=rf"{package} is not installed; install the extra: pip install 'graphsurgery\[{extra}\]"
    ):
        build(spec)


def test_pickled_files_of_ultralytics_are_not_opened_untrusted(tmp_path):
    torch.save({}, tmp_path / "net.pt")
    with pytest.raises(CheckpointError, match="executes code when it is opened; allow it with --trust-pickle"):
        build(f"ultralytics:{tmp_path / 'net.pt'}", Trust())


# Back into the class --------------------------------------------------------------------------------------------------


def test_fields_of_the_configuration(folder):
    model = TinyModel.from_pretrained(folder)
    graph = gs.open_model(f"hf:{folder}")
    assert gs.config_of(gs.compress(graph, 0.5), model) == {"hidden_size": 8, "num_heads": 2, "inner": 5}
    inner = [space.name for space in graph.spaces if space.size == 10]
    assert gs.config_of(gs.compress(graph, dict.fromkeys(inner, 4)), model) == {"inner": 4}
    assert gs.config_of(graph, model) == {}


class OwnWeights(TinyModel):
    """The sizes of its weights stand nowhere but in their shapes, as those of experts in one tensor."""

    def __init__(self, config):
        super().__init__(config)
        self.up = nn.Parameter(torch.randn(config.hidden_size, 2 * config.inner) / 9)
        self.down = nn.Parameter(torch.empty((config.inner, config.hidden_size)).normal_() / 9)

    def forward(self, input_ids, attention_mask=None):  # noqa: ARG002
        left, right = (self.words(input_ids) @ self.up).chunk(2, -1)
        return {"logits": self.head((left.relu() * right) @ self.down)}


def test_fields_that_stand_in_the_shapes_of_weights_alone():
    torch.manual_seed(0)
    model = OwnWeights(Config(hidden_size=16, layers=0, inner=10)).eval()
    graph = gs.trace(model, torch.tensor([[1, 2, 3], [4, 5, 6]]))
    assert gs.config_of(gs.compress(graph, 0.5), model) == {"hidden_size": 8, "inner": 5}
    assert gs.install(gs.compress(graph, 0.5), model).up.shape == (8, 10)


def test_layers_that_are_not_alike_have_no_configuration(folder):
    model = TinyModel.from_pretrained(folder)
    graph = gs.open_model(f"hf:{folder}")
    inner = [space.name for space in graph.spaces if space.size == 10]
    small = gs.compress(graph, {inner[0]: 4, inner[1]: 5})
    assert gs.install(small, model).layers[1].up.out_features == 5
    with pytest.raises(SurgeryError, match=r"config.inner cannot be right everywhere: .* needs 5, and .* to be 4"):
        gs.config_of(small, model)


def test_a_number_that_the_class_computes_from_a_width():
    torch.manual_seed(0)
    model = ScaledModel(Config(hidden_size=16, num_heads=4)).eval()
    x = torch.tensor([[1, 2, 3], [4, 5, 6]])
    graph = gs.trace(model, [x, torch.ones_like(x)])
    width = next(space.name for space in graph.spaces if space.size == 16)
    with pytest.raises(SurgeryError, match="install: "):
        gs.config_of(gs.compress(graph, {width: 8}), model)


def test_a_folder_is_written_read_again_and_the_same(folder, tmp_path, capsys):
    small, written = tmp_path / "small.pt", tmp_path / "small"
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    assert run(["compress", f"hf:{folder}", "--keep", "0.5", "-o", str(small)]) == 0
    assert run(["install", str(small), "--into", f"hf:{folder}", "-o", str(written)]) == 0
    assert "inner = " in capsys.readouterr().out
    graph, model = gs.load(small), TinyModel.from_pretrained(written)
    x = graph.example_inputs(3)
    assert torch.equal(graph(*x)["logits"], model(*x)["logits"])
    assert json.loads((written / "config.json").read_text(encoding="utf-8"))["use_cache"] is True
    assert (written / "tokenizer.json").is_file()
    assert run(["install", str(small), "--into", f"hf:{folder}", "-o", str(written)]) == 2
    assert "exists; give another name" in capsys.readouterr().err


def test_a_library_without_files_of_its_own(tmp_path):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    graph = gs.trace(model, torch.zeros(2, 3))
    with pytest.raises(SurgeryError, match=r"in Python, gs.install\(graph, model\) gives the module"):
        write_installed(graph, model, "torchvision/resnet18", tmp_path / "out")


# The libraries themselves, where they are installed -------------------------------------------------------------------

_SIZES = "hidden_size=32&num_hidden_layers=1&num_attention_heads=4&intermediate_size=40&vocab_size=50"
REAL = {
    f"hf:BertModel?{_SIZES}": "transformers",
    f"hf:LlamaForCausalLM?{_SIZES}&num_key_value_heads=2": "transformers",
    "smp:Unet?encoder_name=resnet18": "segmentation_models_pytorch",
    "ultralytics:yolo11n.yaml": "ultralytics",
}


@pytest.mark.parametrize("spec", REAL)
@pytest.mark.filterwarnings("ignore")
def test_networks_of_libraries_are_cut_and_put_back(spec):
    if importlib.util.find_spec(REAL[spec]) is None:
        pytest.skip(f"{REAL[spec]} is not installed")
    shape = None if spec.startswith("hf:") else (3, 64, 64)
    graph = gs.open_model(spec, example_shape=shape)
    torch.manual_seed(0)
    installed = gs.install(gs.compress(graph, 0.5), build(spec))
    assert type(installed).__name__ == type(graph.module).__name__
