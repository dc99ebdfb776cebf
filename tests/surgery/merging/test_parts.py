"""The spaces of a direct sum that are parts of one, and how a number of channels is shared out among them."""

import pytest
import torch
from torch import nn

import graphsurgery as gs
from graphsurgery.passes.concatenate import concatenate
from graphsurgery.passes.gate import gate
from graphsurgery.surgery.merging.parts import parts_of, shared_out


class Packed(nn.Module):
    """A product over channels of what one layer writes, beside channels that stand side by side."""

    def __init__(self, width):
        super().__init__()
        self.first, self.packed, self.last = nn.Linear(3, width), nn.Linear(width, 3 * width), nn.Linear(width, 2)

    def forward(self, x):
        q, k, v = self.packed(torch.relu(self.first(x))).chunk(3, -1)
        return self.last(torch.softmax(q @ k.transpose(1, 2), -1) @ v)


@pytest.mark.parametrize("widths", [(6, 6), (6, 4, 5)])
def test_parts_of_a_packed_axis(widths):
    graphs = [gs.trace(Packed(width), torch.zeros(2, 5, 3)) for width in widths]
    big, count = concatenate(graphs), len(widths)
    names = [f"packed:{number}" if number > 1 else "packed" for number in range(1, 2 * count + 1)]
    expected = {"first": ["first"], "packed": names[:count], "packed:2": names[count:]}
    assert parts_of(graphs[0], big) == expected
    assert parts_of(graphs[0], gate(big)) == expected
    sizes = {space.name: space.size for space in big.spaces}
    assert [sizes[name] for name in names] == [*widths, *widths]


def test_parts_of_what_each_network_writes_itself():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.mix, self.last = nn.Linear(3, 6), nn.Linear(6, 9), nn.Linear(6, 2)

        def forward(self, x):
            x, gates = self.mix(torch.relu(self.first(x))).split((6, 3), -1)
            return self.last(torch.relu(x * gates[..., 1:2]))

    graphs = [gs.trace(Mixed(), torch.zeros(2, 5, 3)) for _ in range(2)]
    found = parts_of(graphs[0], concatenate(graphs))
    assert found["first"] == ["first", "first:2"]
    assert found["mix"] == ["mix", "mix_of_2"]


@pytest.mark.parametrize(
    ("total", "sizes", "expected"),
    [(5, (4, 6), [2, 3]), (6, (6, 6), [3, 3]), (1, (3, 3), [1, 1]), (7, (6, 6, 6), [3, 2, 2]), (9, (1, 8), [1, 8])],
)
def test_shared_out(total, sizes, expected):
    assert shared_out(total, sizes) == expected
