"""What folders of Hugging Face say of images."""

from __future__ import annotations

import json

import pytest
import torch

from graphsurgery.errors import SpecError
from graphsurgery.models.preprocessing import of_spec, preprocessing_of

HALF = {"do_normalize": True, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}


@pytest.fixture
def said(tmp_path):
    """What is made of the fields of an image processor."""

    def read(**fields):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(fields))
        return preprocessing_of(f"hf:{tmp_path}")

    return read


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"size": {"height": 96, "width": 64}, "resample": 2}, (96, 64, False, "bilinear")),
        ({"size": 224, "resample": 3}, (224, 224, False, "bicubic")),
        (
            {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {"height": 224, "width": 200}},
            (224, 200, True, "bilinear"),
        ),
        ({"size": [80, 80], "do_center_crop": False, "crop_size": 64}, (80, 80, False, "bilinear")),
    ],
)
def test_sizes_in_the_ways_in_which_they_are_written(said, fields, expected):
    found = said(**fields, **HALF)
    assert (found.height, found.width, found.crop, found.interpolation) == expected
    assert (found.mean, found.std) == ((0.5,) * 3, (0.25,) * 3)
    assert "preprocessor_config.json" in found.source


def test_the_shorter_side_before_the_middle(said):
    crop = {"do_center_crop": True, "crop_size": 224}
    assert said(size={"shortest_edge": 256}, **crop, **HALF).resize == 256
    share = said(size={"shortest_edge": 224}, crop_pct=0.875, **HALF)
    assert (share.height, share.resize, share.crop) == (224, 256, True)
    assert not said(size={"shortest_edge": 384}, crop_pct=0.875, **HALF).crop


@pytest.mark.parametrize(
    "fields",
    [
        HALF,
        {**HALF, "rescale_factor": 1 / 127.5},
        {"do_rescale": False, "image_mean": [120.0, 110.0, 100.0], "image_std": [60.0, 50.0, 40.0]},
        {"do_normalize": False},
        {"do_normalize": False, "do_rescale": False},
    ],
)
def test_numbers_are_those_that_the_processor_gives(said, fields):
    found = said(size=8, **fields)
    pixels = torch.randint(0, 256, (3, 5, 5)).double()
    expected = pixels * fields.get("rescale_factor", 1 / 255) if fields.get("do_rescale", True) else pixels
    if fields.get("do_normalize", True):
        mean, std = (torch.tensor(fields[f"image_{name}"]).view(3, 1, 1) for name in ("mean", "std"))
        expected = (expected - mean) / std
    ours = pixels / 255
    if found.mean is not None:
        ours = (ours - torch.tensor(found.mean).view(-1, 1, 1)) / torch.tensor(found.std).view(-1, 1, 1)
    torch.testing.assert_close(ours, expected.double(), rtol=1e-5, atol=1e-5)


def test_folders_that_say_nothing_of_one_size(said):
    assert said(size={"shortest_edge": 800, "longest_edge": 1333}, do_pad=True, **HALF) is None
    assert said(**HALF) is None


def test_folders_without_a_processor_say_nothing(tmp_path):
    assert of_spec(f"hf:{tmp_path}") is None


def test_damaged_folders_are_refused(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(SpecError, match=r"preprocessor_config.json: cannot be read as JSON \(Expecting"):
        preprocessing_of(f"hf:{tmp_path}")
    (tmp_path / "preprocessor_config.json").write_text("[]")
    with pytest.raises(SpecError, match="holds no fields"):
        preprocessing_of(f"hf:{tmp_path}")
