"""Any file that says which weights live, opened as masks."""

from __future__ import annotations

from pathlib import Path

from graphsurgery.checkpoint.files import is_checkpoint, load, read_metadata
from graphsurgery.errors import CheckpointError, SurgeryError
from graphsurgery.models.loading import Shape, open_pair
from graphsurgery.models.supermasks import is_supermask, load_supermask
from graphsurgery.surgery.masks.mask_set import MaskSet


def open_masks(
    source: str,
    *,
    arch: str | None = None,
    key: str | None = None,
    trust_pickle: bool = False,
    example_shape: Shape | None = None,
) -> MaskSet:
    """Which weights live in what `source` names.

    Args:
        source: what `MaskSet.save` wrote; a supermask; a checkpoint with masks in its metadata, as tickets are; or any
            other network that `open_model` takes: its masks of `torch.nn.utils.prune`, of the other weights those that
            are not 0.
        arch, key, trust_pickle, example_shape: as for `open_model`.

    Raises:
        CheckpointError: the masks are damaged, or belong to another network than the one that they are stored with.
        SurgeryError: as for `open_model`.
    """
    path = Path(source)
    if path.suffix == ".json" or (path.is_file() and path.suffix != ".safetensors" and _begins_as_json(path)):
        return MaskSet.load(path)
    if is_checkpoint(source):
        return _of_checkpoint(source)
    if is_supermask(source):
        return load_supermask(source, trust_files=trust_pickle).masks
    graph, module = open_pair(source, arch=arch, key=key, trust_pickle=trust_pickle, example_shape=example_shape)
    return MaskSet.nonzero(graph) if module is None else MaskSet.pruned(graph, module)


def _of_checkpoint(source: str) -> MaskSet:
    graph, stored = load(source), read_metadata(source)
    if "masks" not in stored:
        return MaskSet.nonzero(graph)
    try:
        masks = MaskSet.from_dict(stored["masks"])
        masks.check_fits(graph)
    except SurgeryError as cause:
        raise CheckpointError(f"{source}: {cause}") from cause
    return masks


def _begins_as_json(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(1) == b"{"
