"""Checkpoints of version 0.1.0, when our layers lay in `graphsurgery.layers`: they load, and give what they gave.

The files hold their input, `x`, and the output of that version, `y`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from graphsurgery.checkpoint import load, read_metadata, save
from graphsurgery.checkpoint.vocabulary import OLD_NAMES, class_name, function_name, functions, module_classes
from graphsurgery.models.mask_files import open_masks
from graphsurgery.recipes.slimming.slimmable import load_slimmable

STORED = Path(__file__).with_name("stored_0_1_0.pt")
SLIMMABLE = Path(__file__).with_name("stored_slim_0_1_0.pt")


def names_in(path: Path) -> set[str]:
    """The classes and functions of ours that a stored graph names."""
    graph = torch.load(path, weights_only=True)["graph"]
    found = {str(entry.get("class")) for entry in graph["modules"].values()}
    found |= {str(node["target"]) for node in graph["nodes"]}
    return {name for name in found if name.startswith("graphsurgery.")}


def test_every_old_name_stands_in_the_stored_file():
    assert names_in(STORED) == set(OLD_NAMES)


def test_stored_network_gives_what_it_gave():
    graph, stored = load(STORED), read_metadata(STORED)
    graph.module.eval()
    torch.testing.assert_close(graph(torch.tensor(stored["x"])), torch.tensor(stored["y"]), rtol=1e-5, atol=1e-5)


def test_saved_again_it_has_the_new_names(tmp_path):
    save(load(STORED), tmp_path / "again.pt")
    assert names_in(tmp_path / "again.pt") == set(OLD_NAMES.values())


@pytest.mark.parametrize(("old", "new"), sorted(OLD_NAMES.items()))
def test_an_old_name_is_another_word_for_the_new_one(old, new):
    table = module_classes() if old in module_classes() else functions()
    assert table[old] is table[new]
    assert (class_name if old in module_classes() else function_name)(table[old]) == new


def test_stored_masks_fit_the_stored_network():
    masks = open_masks(str(STORED))
    assert (masks.kept, masks.total) == (28, 42)


def test_stored_widths_have_their_own_norms():
    statistics, stored = load_slimmable(SLIMMABLE)
    assert statistics.slimmable.switchable == (0.5, 1.0)
    half = statistics.network(0.5)
    half.module.eval()
    torch.testing.assert_close(half(torch.tensor(stored["x"])), torch.tensor(stored["y"]), rtol=1e-5, atol=1e-5)
