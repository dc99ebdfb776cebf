"""Masks from whatever says which weights live."""

import pytest
import torch
from zoo import traced

import graphsurgery as gs
from graphsurgery.models.mask_files import open_masks
from graphsurgery.models.supermasks import Supermask, save_supermask
from graphsurgery.passes.mask import mask
from graphsurgery.surgery.masks.mask_set import MaskSet, maskable

SPEC = "paper/lenet5"


@pytest.fixture
def masks():
    graph, _ = traced(SPEC)
    generator = torch.Generator().manual_seed(0)
    return MaskSet({name: torch.rand(w.shape, generator=generator) < 0.3 for name, w in maskable(graph).items()})


def written(masks, folder):
    """The same masks in every form that a file can have."""
    graph, _ = traced(SPEC)
    masks.save(folder / "masks.json")
    masks.save(folder / "masks")
    save_supermask(Supermask(SPEC, 0, (1, 28, 28), masks), folder / "supermask.pt")
    # Dead weights that are constants, not 0: the bits are needed.
    frozen = {name: torch.full_like(w, 0.5) for name, w in maskable(graph).items()}
    gs.save(mask(graph, masks, frozen), folder / "ticket.pt", masks=masks.as_dict())
    gs.save(mask(graph, masks), folder / "zeros.pt")
    gs.export_onnx(mask(graph, masks), folder / "zeros.onnx")
    torch.save(mask(graph, masks).module.state_dict(), folder / "weights.pth")


@pytest.mark.parametrize("name", ["masks.json", "masks", "supermask.pt", "ticket.pt", "zeros.pt", "zeros.onnx"])
def test_every_form_gives_the_same_masks(masks, name, tmp_path):
    written(masks, tmp_path)
    assert open_masks(str(tmp_path / name)) == masks


def test_a_state_dict_needs_its_architecture(masks, tmp_path):
    written(masks, tmp_path)
    assert open_masks(str(tmp_path / "weights.pth"), arch=SPEC) == masks
    with pytest.raises(gs.CheckpointError, match="give --arch"):
        open_masks(str(tmp_path / "weights.pth"))


def test_of_a_spec_all_weights_live():
    assert open_masks(SPEC).density == 1.0


def test_masks_that_do_not_fit_their_checkpoint_are_refused(masks, tmp_path):
    graph, _ = traced("paper/conv2?image_size=8")
    gs.save(graph, tmp_path / "other.pt", masks=masks.as_dict())
    with pytest.raises(gs.CheckpointError, match=r"other.pt: masks: the network has no weight conv1.weight"):
        open_masks(str(tmp_path / "other.pt"))
    gs.save(graph, tmp_path / "odd.pt", masks={"shapes": {}})
    with pytest.raises(gs.CheckpointError, match=r"odd.pt: masks: their shapes or bits are damaged"):
        open_masks(str(tmp_path / "odd.pt"))
    gs.save(graph, tmp_path / "text.pt", masks="many")
    with pytest.raises(gs.CheckpointError, match=r"text.pt: masks: their shapes or bits are damaged"):
        open_masks(str(tmp_path / "text.pt"))
    with pytest.raises(gs.CheckpointError, match=r"none.json: cannot be read"):
        open_masks(str(tmp_path / "none.json"))
