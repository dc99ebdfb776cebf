"""Random numbers that follow a seed."""

from types import SimpleNamespace

import pytest
import torch

from graphsurgery.network.outputs.randomness import seed_all, seeded


def test_what_is_drawn_follows_the_seed_and_the_caller_goes_on():
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    with seeded(5):
        drawn = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), drawn)


@pytest.mark.parametrize(
    ("kind", "used", "everything"),
    [(None, False, False), ("cuda", False, False), ("cuda", True, True), ("mps", False, True)],
)
def test_what_is_in_use_is_seeded(monkeypatch, kind, used, everything):
    """A GPU that nothing has used has no random numbers; of other devices torch is left to know."""
    seeds = []
    with torch.random.fork_rng(devices=[]), monkeypatch.context() as patch:
        patch.setattr(torch.accelerator, "current_accelerator", lambda: kind and torch.device(kind))
        patch.setattr(torch, "get_device_module", lambda _: SimpleNamespace(is_initialized=lambda: used))
        patch.setattr(torch, "manual_seed", seeds.append)
        torch.default_generator.manual_seed(1)
        seed_all(7)
        assert torch.default_generator.initial_seed() == (1 if everything else 7)
    assert seeds == ([7] if everything else [])
