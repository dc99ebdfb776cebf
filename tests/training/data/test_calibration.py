"""Examples without labels from folders."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from PIL import Image

import graphsurgery as gs
from graphsurgery.training.data import calibration, load_data
from graphsurgery.training.data.calibration import calibration_of, read_calibration
from graphsurgery.training.objectives.agreement_metrics import Deviation, SameClass


def picture(path, size=(8, 8), mode="L", seed=0):
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], *channels), dtype=np.uint8)
    Image.fromarray(pixels, mode).save(path)
    return pixels


def test_images_of_nested_folders_are_brought_to_the_networks_size(tmp_path):
    (tmp_path / "inner").mkdir()
    for number in range(12):
        folder = tmp_path / "inner" if number % 2 else tmp_path
        picture(folder / f"{number}.png", (20, 11), ("RGB", "L", "RGBA")[number % 3], number)
    found = read_calibration(tmp_path, (3, 8, 8))
    assert (len(found.train), len(found.held)) == (11, 1)
    x, label = found.train[0]
    assert (x.shape, x.dtype, int(label)) == ((3, 8, 8), torch.float32, -1)


def test_images_of_the_right_size_are_not_resampled(tmp_path):
    pixels = [picture(tmp_path / f"{number}.png", (6, 4), "RGB", number) for number in range(5)]
    found = read_calibration(tmp_path, (3, 4, 6))
    x = torch.cat([part.tensors[0] for part in (found.train, found.held)])
    back = x * torch.tensor([0.229, 0.224, 0.225])[:, None, None] + torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    expected = torch.tensor(np.stack(pixels)).permute(0, 3, 1, 2) / 255
    distance = (back[:, None] - expected[None]).abs().flatten(2).amax(2)
    assert sorted(distance.argmin(1).tolist()) == [0, 1, 2, 3, 4]
    assert float(distance.min(1).values.max()) < 1e-6


@pytest.mark.parametrize(("room", "close"), [(2**30, 1e-5), (3 * 4 * 64, 0.2)], ids=["in memory", "of three"])
def test_grey_images_are_normalised_by_themselves(tmp_path, monkeypatch, room, close):
    monkeypatch.setattr(calibration, "_IN_MEMORY", room)
    for number in range(5):
        picture(tmp_path / f"{number}.png", seed=number)
    found = read_calibration(tmp_path, (1, 8, 8))
    x = torch.stack([part[number][0] for part in (found.train, found.held) for number in range(len(part))])
    assert float(x.mean()) == pytest.approx(0, abs=close)
    assert float(x.std()) == pytest.approx(1, abs=close)


def test_arrays_are_taken_as_they_are(tmp_path):
    stack, single = np.arange(30.0).reshape(10, 3), np.full(3, 50.0)
    np.save(tmp_path / "a.npy", stack)
    np.save(tmp_path / "b.npy", single)
    found = read_calibration(tmp_path, (3,), seed=1)
    rows = torch.cat([found.train.tensors[0], found.held.tensors[0]])
    assert rows.dtype == torch.float32
    assert sorted(rows[:, 0].tolist()) == [*stack[:, 0].tolist(), 50.0]
    assert read_calibration(tmp_path, (3,), torch.int64).train.tensors[0].dtype == torch.int64


def test_a_spec_loses_its_labels():
    data = load_data("digits")
    found = calibration_of(data)
    assert set(found.train.tensors[1].tolist()) == set(found.held.tensors[1].tolist()) == {-1}
    torch.testing.assert_close(found.train.tensors[0], data.train.tensors[0])


BAD = {
    "no folder": (lambda _: None, "nowhere: is not a folder; give --calib one with images"),
    "empty": (lambda folder: (folder / "notes.txt").write_text("-"), "has no images and no .npy arrays"),
    "mixed": (
        lambda folder: (np.save(folder / "a.npy", np.ones((9, 1, 8, 8))), picture(folder / "b.png")),
        "has 1 images and 1 arrays; give a folder with one kind",
    ),
    "few": (lambda folder: picture(folder / "a.png"), "has 1 examples, expected at least 4"),
    "unreadable image": (lambda folder: (folder / "a.png").write_bytes(b"none"), "a.png: cannot be read as an image"),
    "unreadable array": (lambda folder: (folder / "a.npy").write_bytes(b"none"), "a.npy: cannot be read as an array"),
    "wrong shape": (
        lambda folder: np.save(folder / "a.npy", np.ones((9, 1, 8, 9))),
        "a.npy: holds [9, 1, 8, 9] of float64, expected numbers in the shape [1, 8, 8]",
    ),
    "no numbers": (
        lambda folder: np.save(folder / "a.npy", np.full((9, 1, 8, 8), "x")),
        "of <U1, expected numbers in the shape",
    ),
    "objects": (
        lambda folder: np.save(folder / "a.npy", np.array([{}], dtype=object), allow_pickle=True),
        "a.npy: cannot be read as an array",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_folders(case, tmp_path):
    fill, message = BAD[case]
    fill(tmp_path)
    with pytest.raises(gs.SpecError, match=re.escape(message)) as caught:
        read_calibration(tmp_path / "nowhere" if case == "no folder" else tmp_path, (1, 8, 8))
    assert "\n" not in str(caught.value)


def test_images_for_a_network_that_takes_none(tmp_path):
    picture(tmp_path / "a.png")
    with pytest.raises(gs.SpecError, match=r"holds images, the network takes inputs \[64\]; give \.npy arrays"):
        read_calibration(tmp_path, (64,))


@pytest.mark.parametrize("mean", [3, 30_000])
def test_agreement_and_deviation_over_batches(mean):
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(40, 5, generator=generator) + mean
    output = target + 0.5 * torch.randn(40, 5, generator=generator)
    same, deviation = SameClass(), Deviation()
    for part in range(0, 40, 16):
        same.update(output[part : part + 16], target[part : part + 16])
        deviation.update(output[part : part + 16], target[part : part + 16])
    assert float(same.compute()) == pytest.approx(float((output.argmax(1) == target.argmax(1)).float().mean()))
    output, target = output.double(), target.double()
    expected = (output - target).square().sum() / (target - target.mean(0)).square().sum()
    assert float(deviation.compute()) == pytest.approx(float(expected.sqrt()), rel=1e-5)
    deviation.reset()
    deviation.update(target, target)
    assert float(deviation.compute()) == 0
