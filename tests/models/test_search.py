"""What the commands list is what can be named."""

import json

import pytest
import torch

from graphsurgery.cli import run
from graphsurgery.errors import SpecError
from graphsurgery.models import available, build
from graphsurgery.models.libraries.table import LIBRARIES
from graphsurgery.models.loading import open_model
from graphsurgery.models.paper.table import PAPER_NETWORKS
from graphsurgery.models.search import about, matching, paper_listing
from graphsurgery.models.sources.catalogue import SPECS
from graphsurgery.models.specs import SOURCES
from graphsurgery.network import preprocessing
from graphsurgery.training.data import load_data
from graphsurgery.training.data import sources as data_sources
from graphsurgery.training.data.catalogue import DATA, OPTIONS


def test_every_source_of_models_is_listed():
    assert set(SPECS) == {*SOURCES, *LIBRARIES, "file"}


def test_every_network_of_a_paper_is_built_by_its_line():
    rows = paper_listing().plain()
    assert [row[0] for row in rows] == [f"paper/{name}" for name in PAPER_NETWORKS]
    for name, _, options in rows:
        with torch.device("meta"):
            build(f"{name}?{'&'.join(options.split(', '))}")


def test_a_word_finds_names():
    assert matching("LeNet5") == ["paper/lenet5"]
    assert set(matching("")) == set(available())
    with pytest.raises(SpecError, match=r"no name has 'lenett5' in it; did you mean .*paper/lenet5"):
        matching("lenett5")


def test_what_is_known_of_a_name():
    found = about("torchvision/resnet18")
    assert (found.weights, found.shape) == (("DEFAULT", "IMAGENET1K_V1"), (3, 224, 224))
    assert {"weights", "num_classes"} <= set(found.options)
    assert not {"block", "layers"} & set(found.options)  # resnet18 says these itself
    assert about("paper/cnn").options == ("in_channels", "classes", "width")


@pytest.mark.parametrize(
    ("tokens", "following"),
    [([], "models resnet18"), (["lenet"], "inspect paper/lenet5"), (["paper/cnn"], "paper/cnn")],
)
def test_the_command_lists_them(tokens, following, capsys):
    assert run(["models", *tokens]) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[-1].endswith(following)
    assert run(["models", *tokens, "--json"]) == 0
    models = json.loads(capsys.readouterr().out)["models"]
    assert all((each if isinstance(each, str) else each["model"]) in shown for each in models)


def test_a_word_that_finds_nothing(capsys):
    assert run(["models", "lenett5"]) == 2
    assert "did you mean" in capsys.readouterr().err


def test_all_data_are_listed_with_their_options(capsys):
    assert set(DATA) == set(data_sources._LOADERS)
    assert {name for entry in DATA.values() for name in entry.options} <= set(OPTIONS)
    assert tuple(name for name, option in OPTIONS.items() if option.images) == preprocessing.OPTIONS
    assert run(["data"]) == 0
    shown = capsys.readouterr().out
    assert all(entry.form in shown for entry in DATA.values())
    assert all(text in shown for option in OPTIONS.values() for text in option.examples)


@pytest.mark.parametrize("name", ["digits", "sine"])
def test_inputs_are_as_the_list_says(name):
    data = load_data(f"{name}?train=50&split_seed=1")
    assert "x".join(map(str, data.input_shape)) == DATA[name].inputs
    assert len(data.train) == 50


@pytest.mark.parametrize("name", [name for name, entry in DATA.items() if entry.folder == "never"])
def test_data_without_a_folder_refuse_one(name):
    with pytest.raises(SpecError, match="takes no folder"):
        load_data(f"{name}:here")


def test_the_options_of_images_are_taken(tmp_path):
    from PIL import Image

    for part in ("train", "val", "test"):
        (tmp_path / part / "a").mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(tmp_path / part / "a" / "1.png")
    for option in OPTIONS.values():
        for text in option.examples if option.images else ():
            assert load_data(f"imagefolder:{tmp_path}?{text}").classes == 1


def test_a_folder_is_no_spec(tmp_path):
    with pytest.raises(SpecError, match=r"is a folder; give a file of it, or hf:/\S+ for one of transformers"):
        build(str(tmp_path))
    with pytest.raises(SpecError, match=r"is a folder; give imagefolder:/\S+ for one of images"):
        load_data(str(tmp_path))
    (tmp_path / "data.npz").touch()
    with pytest.raises(SpecError, match=r"is a file; give file\.py:function, whose function reads it"):
        load_data(str(tmp_path / "data.npz"))


def test_a_file_is_no_spec(tmp_path):
    (tmp_path / "a.pt").touch()
    with pytest.raises(SpecError, match="is a file, expected a model spec, such as paper/cnn"):
        build(str(tmp_path / "a.pt"))
    (tmp_path / "nets.py").write_text("def small(): ...\n")
    with pytest.raises(SpecError, match=r"names a Python file, and which function of it is missing"):
        open_model(str(tmp_path / "nets.py"))
