"""Supermasks: an architecture, a seed and a bit for each weight, in a small file."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import graphsurgery as gs
from graphsurgery.models.loading import open_model
from graphsurgery.models.supermasks import Supermask, drawn, is_supermask, load_supermask, save_supermask
from graphsurgery.surgery.deviation import double
from graphsurgery.surgery.masks.mask_set import MaskSet, maskable

SPECS = {
    "paper/lenet_300_100": (1, 28, 28),
    "paper/conv2?image_size=8": (3, 8, 8),
    "paper/resnet20?width=4": (3, 16, 16),
    "torchvision/squeezenet1_1?num_classes=10": (3, 32, 32),
}


def supermask(spec="paper/lenet_300_100", seed=3, density=0.5, **options):
    shape = SPECS[spec]
    generator = torch.Generator().manual_seed(seed)
    weights = maskable(drawn(spec, seed, shape))
    masks = MaskSet({name: torch.rand(w.shape, generator=generator) < density for name, w in weights.items()})
    return Supermask(spec, seed, shape, masks, **options)


@pytest.mark.parametrize("spec", SPECS)
def test_the_network_comes_back_from_its_file(spec, tmp_path):
    found = supermask(spec, constant=True, factors={"fc1.weight": 1.5} if "lenet" in spec else {})
    norms = {n: t for n, t in drawn(spec, 3, SPECS[spec]).tensors().items() if n.endswith("running_mean")}
    found = dataclasses.replace(found, buffers={n: torch.rand(t.shape) for n, t in norms.items()})
    size = save_supermask(found, tmp_path / "mask.pt")
    assert size == (tmp_path / "mask.pt").stat().st_size
    assert is_supermask(tmp_path / "mask.pt")
    again = load_supermask(tmp_path / "mask.pt")
    assert again.masks == found.masks
    expected, network = double(found.network()), double(open_model(str(tmp_path / "mask.pt")))
    x = torch.randn(2, *SPECS[spec], dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(network(x), expected(x))
    assert MaskSet.nonzero(network) == found.masks


@given(st.integers(0, 10**6), st.floats(0, 1))
@settings(max_examples=10, deadline=None)
def test_any_mask_comes_back(tmp_path_factory, seed, density):
    file = tmp_path_factory.mktemp("masks") / "mask.pt"
    found = supermask("paper/conv2?image_size=8", seed, density)
    save_supermask(found, file)
    assert load_supermask(file).masks == found.masks


@pytest.mark.parametrize(("density", "most"), [(0.5, 37_000), (0.1, 22_000), (0.03, 12_000)])
def test_the_file_takes_no_more_than_a_bit_for_each_weight(density, most, tmp_path):
    assert save_supermask(supermask(density=density), tmp_path / "mask.pt") < most


def test_living_weights_are_signed_constants_with_factors():
    found = supermask(constant=True, factors={"fc2.weight": 2.0})
    initial, network = drawn(found.spec, found.seed, found.input_shape).tensors(), found.network().tensors()
    weight, living = network["fc2.weight"], found.masks["fc2.weight"]
    std = initial["fc2.weight"].std(correction=0)
    torch.testing.assert_close(weight[living].abs(), (2 * std).expand(int(living.sum())))
    assert torch.equal(weight[living].sign(), initial["fc2.weight"][living].sign())


def test_onnx_runtime_computes_the_same(tmp_path):
    network = supermask().network()
    gs.export_onnx(network, tmp_path / "mask.onnx")
    assert gs.check_onnx(network, tmp_path / "mask.onnx").holds


def changed(**fields):
    def change(content):
        content.update(fields)

    return change


BAD = {
    "format": (changed(format="another"), r"is no supermask"),
    "version": (changed(version=7), r"is of version 7, this graphsurgery reads 1"),
    "no bits": (changed(bits=None), r"has no bits of type Tensor"),
    "floats": (changed(bits=torch.rand(5)), r"its bits are no bytes"),
    "bits": (changed(bits=torch.zeros(9, dtype=torch.uint8)), r"their bits are damaged"),
    "shapes": (changed(shapes={"fc1.weight": "a"}), r"its shapes or factors are no numbers"),
    "fewer": (changed(shapes={"fc1.weight": [300, 784]}), r"have \d+ bytes, their shapes ask for 29400"),
    "seed": (changed(seed=4), r"seed 4 draws other weights for paper/lenet_300_100 here"),
    "spec": (changed(spec="paper/lenet5"), r"fc1.weight has the shape|no weight"),
    "nothing": (changed(spec="paper/nothing"), r"paper has no model 'nothing'"),
    "code": (changed(spec="evil.py:network"), r"executes a Python file; open it with --trust-pickle"),
    "trained": (changed(spec="torchvision/resnet18?weights=DEFAULT"), r"asks for trained weights"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_in_one_line(case, tmp_path):
    change, message = BAD[case]
    save_supermask(supermask(), tmp_path / "mask.pt")
    content = torch.load(tmp_path / "mask.pt", weights_only=True)
    change(content)
    torch.save(content, tmp_path / "mask.pt")
    with pytest.raises(gs.CheckpointError, match=message) as refusal:
        load_supermask(tmp_path / "mask.pt")
    assert "\n" not in str(refusal.value)


def test_damaged_files_and_pickled_objects_are_refused(tmp_path):
    file = tmp_path / "mask.pt"
    save_supermask(supermask(), file)
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(gs.CheckpointError, match=r"is truncated or no checkpoint"):
        load_supermask(file)
    torch.save({"format": "graphsurgery supermask", "spec": slice}, file)
    with pytest.raises(gs.CheckpointError, match=r"cannot be read as a checkpoint"):
        load_supermask(file)
    assert not is_supermask(file)
    with pytest.raises(gs.CheckpointError, match=r"no such file"):
        load_supermask(tmp_path / "none.pt")


def test_masks_of_another_architecture_are_refused(tmp_path):
    found = dataclasses.replace(supermask(), spec="paper/conv2?image_size=8", input_shape=(3, 8, 8))
    with pytest.raises(gs.SurgeryError, match=r"masks: .* has the shape .* in the masks"):
        save_supermask(found, tmp_path / "mask.pt")
    with pytest.raises(gs.SurgeryError, match=r"masks: .* has the shape .* in the masks"):
        found.network()
