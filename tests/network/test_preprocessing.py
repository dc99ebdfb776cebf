"""What images become before a network sees them."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import get_model_weights

from graphsurgery.errors import SpecError
from graphsurgery.models.preprocessing import of_spec, preprocessing_of
from graphsurgery.network.preprocessing import Preprocessing, find
from graphsurgery.training.data import load_data
from graphsurgery.training.data.calibration import read_calibration

PLAIN = Preprocessing(12, 12, 14, mean=None, std=None)


def image(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels, "RGB")


def pixels(picture):
    return torch.tensor(np.array(picture)).permute(2, 0, 1) / 255


@pytest.fixture
def images(tmp_path):
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for number in range(10):
            image(12, 12, number).save(tmp_path / label / f"{number}.png")
    return tmp_path


def test_an_image_of_the_size_stays_as_it_is():
    torch.testing.assert_close(PLAIN(image(12, 12)), pixels(image(12, 12)), rtol=0, atol=1e-7)


def test_mean_and_deviation():
    made = Preprocessing(12, 12, 14, mean=(0.1, 0.2, 0.3), std=(0.5,))
    expected = (pixels(image(12, 12)) - torch.tensor([0.1, 0.2, 0.3])[:, None, None]) / 0.5
    torch.testing.assert_close(made(image(12, 12)), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", [(30, 20), (20, 30), (12, 40), (5, 4), (12, 13)], ids=str)
@pytest.mark.parametrize("crop", [True, False])
@pytest.mark.parametrize("shape", [(12, 12), (8, 20)], ids=str)
def test_every_image_gets_the_size(size, crop, shape):
    assert Preprocessing.of_size(*shape, crop=crop)(image(*size)).shape == (3, *shape)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "vit_b_16", "swin_t"])
def test_what_torchvisions_weights_say_is_what_they_do(name):
    said = of_spec(f"torchvision/{name}?weights=DEFAULT")
    transforms = get_model_weights(name)["DEFAULT"].transforms()
    for size in ((500, 375), (300, 640)):
        torch.testing.assert_close(said(image(*size)), transforms(image(*size)), rtol=1e-5, atol=1e-5)
    assert f"the weights DEFAULT of torchvision/{name}" in str(said)


def test_what_timms_models_say():
    said = of_spec("timm/resnet10t")
    assert (said.height, said.resize, said.interpolation) == (176, 201, "bicubic")
    assert said.source == "the pretrained_cfg of timm/resnet10t"


@pytest.mark.parametrize(
    ("spec", "size"),
    [("torchvision/resnet18", 224), ("torchvision/inception_v3", 299), ("paper/resnet20", 32), ("nets.py:bare", None)],
)
def test_what_a_spec_without_weights_says_is_its_size(tmp_path, monkeypatch, spec, size):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text("def bare():\n    return None\n")
    found = preprocessing_of(spec)
    assert (found and found.height) == size


def test_the_options_of_a_folder(images):
    data = load_data(f"imagefolder:{images}?size=12&mean=0.25&std=none&augment=none")
    assert data.input_shape == (3, 12, 12)
    made = data.preprocessing
    assert (made.mean, made.std, made.augment) == ((0.25,), None, "none")
    assert made.source == "the data spec (resize, crop from nobody; these are ImageNet's)"
    sums = {round(float((pixels(image(12, 12, number)) - 0.25).sum()), 2) for number in range(10)}
    for part in (data.train, data.validation, data.test):
        assert {round(float(part[index][0].sum()), 2) for index in range(len(part))} <= sums


def test_flips_alone_keep_all_pixels(images):
    data = load_data(f"imagefolder:{images}?size=12&mean=none&std=none&augment=flip")
    sums = {round(float(pixels(image(12, 12, number)).sum()), 2) for number in range(10)}
    assert {round(float(data.train[index][0].sum()), 2) for index in range(len(data.train))} <= sums
    cropped = load_data(f"imagefolder:{images}?size=12&mean=none&std=none")
    torch.manual_seed(0)
    assert {round(float(cropped.train[index][0].sum()), 2) for index in range(8)} - sums


def test_the_spec_prevails_over_the_model(images):
    said = Preprocessing(16, 16, 20, mean=(0.5,), std=(0.25,), source="the model")
    spec = f"imagefolder:{images}?std=0.125"
    made = load_data(spec, preprocessing=said).preprocessing
    assert (made.height, made.resize, made.mean, made.std) == (16, 20, (0.5,), (0.125,))
    assert "mean" in made.source
    assert made.source.endswith("from the model)")
    assert load_data(f"imagefolder:{images}", preprocessing=said).preprocessing == said


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("size=0", "size=0 pixels; give a side of 1 or more"),
        ("size=8x8x8", "size=8x8x8 pixels"),
        ("size=-3", "size=-3 pixels"),
        ("resize=8", "resize=8; give the shorter side before the crop in pixels, at least 224"),
        ("crop=3", "crop=3; give true to cut out the middle, or false"),
        ("mean=a", "mean=a; give one number or three"),
        ("mean=1,2", "mean=1,2; give one number or three"),
        ("std=0", "std=0; give one number above 0 or three"),
        ("augment=much", "augment=much; give one of crop, flip, none"),
        (
            "side=3",
            "has no option 'side'; accepted: split_seed, size, resize, crop, mean, std, augment, train, validation",
        ),
    ],
)
def test_bad_options(images, option, message):
    with pytest.raises(SpecError, match=re.escape(message)):
        load_data(f"imagefolder:{images}?{option}")


def test_a_lineage_remembers():
    first, last = (Preprocessing(size, size, size).as_dict() for size in (8, 16))
    assert find([{"preprocessing": first}, {"pass": "x"}, {"preprocessing": last}], "m.pt").height == 16
    assert (
        find([{"pass": "concatenate", "teachers": [[{"pass": "x"}], [{"preprocessing": first}]]}], "m.pt").height == 8
    )
    assert find([{"pass": "x"}], "m.pt") is None
    again = find([{"preprocessing": first}], "m.pt")
    assert again == Preprocessing(8, 8, 8, source="m.pt")
    with pytest.raises(SpecError, match=r"m\.pt: its preprocessing cannot be read"):
        find([{"preprocessing": {"sides": 3}}], "m.pt")


def test_calibration_sees_what_the_network_says(images):
    said = Preprocessing(24, 24, 28, mean=(0.5,), std=(0.25,), source="the model")
    found = read_calibration(images, (3, 12, 12), preprocessing=said)
    assert (found.preprocessing.height, found.preprocessing.resize) == (12, 14)
    x = torch.cat([part.tensors[0] for part in (found.train, found.held)])
    expected = torch.stack([(pixels(image(12, 12, number)) - 0.5) / 0.25 for number in range(10)])
    assert float((x[:, None] - expected[None]).abs().flatten(2).amax(2).min(1).values.max()) < 1e-5
    own = read_calibration(f"{images}?mean=none&std=none", (3, 12, 12), preprocessing=said)
    assert 0 <= float(own.train.tensors[0].min()) <= float(own.train.tensors[0].max()) <= 1
    with pytest.raises(SpecError, match="has no option 'sides'"):
        read_calibration(f"{images}?sides=3", (3, 12, 12))
    with pytest.raises(SpecError, match="size=8x8, the network takes 12x12"):
        read_calibration(f"{images}?size=8", (3, 12, 12))


@pytest.mark.parametrize(
    ("kind", "ending"), [(np.uint16, "png"), (np.uint16, "tif"), (np.int32, "tif"), (np.float32, "tif")]
)
def test_pixels_of_more_than_8_bits_are_refused(images, kind, ending):
    """Whatever is above 255 would become white."""
    Image.fromarray((np.arange(144).reshape(12, 12) * 100).astype(kind)).save(images / "dog" / f"deep.{ending}")
    with pytest.raises(SpecError, match=rf"deep\.{ending}: has pixels of more than 8 bits .*; give images of 8 bits"):
        read_calibration(images, (1, 12, 12))
    data = load_data(f"imagefolder:{images}?size=12")
    with pytest.raises(SpecError, match=rf"deep\.{ending}: has pixels of more than 8 bits"):
        [part[number] for part in (data.train, data.validation, data.test) for number in range(len(part))]
