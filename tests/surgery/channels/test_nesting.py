"""Which spaces stand inside which, and where the choice inside groups may differ: where it may, the result is exact."""

import random
import re

import pytest
import torch
import torch.nn.functional as F
from contracts import Masked, Network, typed
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from zoo import traced

from graphsurgery.passes.compress import compress
from graphsurgery.surgery.channels.nesting import Nesting
from graphsurgery.surgery.deviation import deviation

HEADS, TOKENS, WIDTH = 3, 4, 5


def names(spaces):
    return [space.name for space in spaces]


def test_families_of_grouped_convolutions_and_heads():
    graph, _ = traced("vit")
    heads = [family for family in Nesting(graph).families if family.inners]
    assert [(len(family.outers), [s.size for s in family.inners]) for family in heads] == [(1, [8, 8])] * 2
    graph, _ = traced("resnext")
    first = next(family for family in Nesting(graph).families if family.inners)
    assert (names(first.outers), names(first.inners)) == (["layer1.0.conv1"], ["layer1.0.conv1:2", "layer1.0.conv2"])
    graph, _ = traced("mobilenet_v2")
    assert not any(family.inners for family in Nesting(graph).families)


def test_groups_that_share_what_is_inside_are_one_family():
    def forward(net, x):
        return net.out(torch.cat([net.grouped(net.a(x))[:, :4], net.b(x)], 1))

    layers = {"a": nn.Conv2d(3, 8, 1), "grouped": nn.Conv2d(8, 8, 1, groups=4), "b": nn.Conv2d(3, 5, 1)}
    graph, _, _ = typed(Network(forward, **layers, out=nn.Conv2d(9, 2, 1)), (3, 2, 2))
    nesting = Nesting(graph)
    (family,) = (family for family in nesting.families if family.inners)
    assert [s.size for s in family.outers] == [2, 2]
    assert [s.size for s in family.inners] == [2, 2]
    assert [d.size for d in nesting.outers(family.inners[0])] == [2, 2]
    assert all(nesting.why_alike(space) is None for space in family.inners)


def test_spaces_inside_each_other_are_only_cut_as_groups():
    network = nn.Sequential(
        nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1, groups=4), nn.GroupNorm(2, 16), nn.Conv2d(16, 2, 1)
    )
    graph, _, _ = typed(network, (3, 2, 2))
    assert max(len([d for d in term if not d.fixed]) for term in Nesting(graph)._products) == 3
    assert not any(family.inners for family in Nesting(graph).families)


class Heads(nn.Module):
    """Steps on `[batch, heads, tokens, width]`, between a linear layer into heads and one out of them."""

    def __init__(self, *steps: str) -> None:
        super().__init__()
        self.steps = steps
        self.stem = nn.Linear(6, HEADS * WIDTH)
        self.layers = nn.ModuleList(LAYERS[step]() if step in LAYERS else nn.Identity() for step in steps)
        self.head = nn.Linear(HEADS * WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.stem(x).reshape(x.shape[0], TOKENS, HEADS, WIDTH).transpose(1, 2)
        for step, layer in zip(self.steps, self.layers, strict=True):
            heads = STEPS[step](heads, layer)
        return self.head(heads.transpose(1, 2).flatten(2))


class Weight(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(shape))


def _convolve(heads, conv):
    channels = heads.transpose(2, 3).flatten(1, 2)
    return conv(channels).unflatten(1, (HEADS, WIDTH)).transpose(2, 3)


def _densely(heads, layer):
    return layer(heads.transpose(1, 2).flatten(2)).unflatten(2, (HEADS, WIDTH)).transpose(1, 2)


def _merged(heads, _):
    tokens = heads.flatten(0, 1)
    return torch.tanh(tokens @ tokens.transpose(1, 2) @ tokens).unflatten(0, (-1, HEADS))


def _among_heads(heads, _):
    tokens = heads.transpose(1, 2)
    return F.scaled_dot_product_attention(tokens, tokens, tokens).transpose(1, 2)


def _among_heads_by_hand(heads, _):
    tokens = heads.transpose(1, 2)
    return ((tokens @ tokens.transpose(2, 3)).softmax(-1) @ tokens).transpose(1, 2)


def _scores(heads):
    return torch.einsum("bhsd,bhtd->bhst", heads, heads) * WIDTH**-0.5


STEPS = {
    "relu": lambda heads, _: torch.relu(heads),
    "scale of heads": lambda heads, p: heads * p.w,
    "scale of both": lambda heads, p: heads * p.w,
    "positions": lambda heads, p: heads + p.w,
    "attention": lambda heads, p: F.scaled_dot_product_attention(heads * p.w, heads, heads),
    "attention by hand": lambda heads, _: (heads @ heads.transpose(2, 3) * WIDTH**-0.5).softmax(-1) @ heads,
    "channel attention": lambda heads, _: heads + torch.tanh(heads @ (heads.transpose(2, 3) @ heads)),
    "weights of heads": lambda heads, p: heads @ p.w,
    "dense": _densely,
    "grouped": _convolve,
    "merged with the batch": _merged,
    "grouped transposed": _convolve,
    "attention by letters": lambda heads, _: torch.einsum("bhst,bhtd->bhsd", _scores(heads).softmax(-1), heads),
    "weights by letters": lambda heads, p: torch.einsum("bhld,hde->bhle", heads, p.w),
    "scale of widths": lambda heads, p: heads * p.w,
    "one linear for all": lambda heads, layer: layer(heads),
    "sum of heads": lambda heads, _: heads + heads.sum(1, keepdim=True),
    "softmax of heads": lambda heads, _: heads * heads.softmax(1),
    "heads by heads": lambda heads, p: heads * F.linear(heads, p.w).sum(3, keepdim=True),
    "heads for heads": lambda heads, p: heads + F.linear(heads, p.w).transpose(1, 3).sum(3, keepdim=True),
    "convolution over heads": lambda heads, conv: conv(heads),
    "attention among heads": _among_heads,
    "attention among heads by hand": _among_heads_by_hand,
    "pairs of heads by letters": lambda heads, p: heads + torch.einsum("bhld,gd->bgl", heads, p.w)[..., None],
    "other heads by letters": lambda heads, p: heads + torch.einsum("bhld,hg->bgld", heads, p.w),
    "scores of heads by letters": lambda heads, _: (
        heads * torch.einsum("bhld,bgld->bhg", heads, heads).sum(2)[..., None, None]
    ),
}
LAYERS = {
    "scale of heads": lambda: Weight(HEADS, 1, 1),
    "scale of both": lambda: Weight(HEADS, 1, WIDTH),
    "positions": lambda: Weight(HEADS, TOKENS, WIDTH),
    "attention": lambda: Weight(HEADS, 1, WIDTH),
    "weights of heads": lambda: Weight(HEADS, WIDTH, WIDTH),
    "dense": lambda: nn.Linear(HEADS * WIDTH, HEADS * WIDTH),
    "grouped": lambda: nn.Conv1d(HEADS * WIDTH, HEADS * WIDTH, 3, padding=1, groups=HEADS),
    "grouped transposed": lambda: nn.ConvTranspose1d(HEADS * WIDTH, HEADS * WIDTH, 1, groups=HEADS),
    "weights by letters": lambda: Weight(HEADS, WIDTH, WIDTH),
    "pairs of heads by letters": lambda: Weight(HEADS, WIDTH),
    "other heads by letters": lambda: Weight(HEADS, HEADS),
    "scale of widths": lambda: Weight(WIDTH),
    "one linear for all": lambda: nn.Linear(WIDTH, WIDTH),
    "heads by heads": lambda: Weight(HEADS, WIDTH),
    "heads for heads": lambda: Weight(HEADS, WIDTH),
    "convolution over heads": lambda: nn.Conv2d(HEADS, HEADS, 1),
}
ALIKE = {
    "scale of widths": r"layers\.0\.w does not tell its groups",
    "one linear for all": r"layers\.0\.weight does not tell its groups",
    "sum of heads": "sum_1 does not tell its groups",
    "softmax of heads": "softmax mixes its groups",
    "heads by heads": r"layers\.0\.w does not tell|linear pairs its groups with each other",
    "heads for heads": "linear pairs its groups with each other",
    "convolution over heads": r"layers\.0 mixes its groups",
    "attention among heads": "scaled_dot_product_attention mixes its groups",
    "attention among heads by hand": "matmul pairs its groups with each other",
    "pairs of heads by letters": "einsum mixes its groups|einsum pairs its groups with each other",
    "other heads by letters": "einsum pairs its groups with each other",
    "scores of heads by letters": "einsum pairs its groups with each other",
}


def check_choices(network: nn.Module, seed: int = 0) -> list[str | None]:
    """Cut inside heads at random: differently in each head wherever that is said to be possible, and exactly then."""
    graph, (x,), _ = typed(network, (TOKENS, 6), seed=seed)
    x = x[:2]
    nesting = Nesting(graph)
    generator = torch.Generator().manual_seed(seed)
    reasons = []
    for space in graph.spaces:
        if space.outer or space.mixed or space.size < 2:
            continue
        reasons.append(nesting.why_alike(space))
        if reasons[-1] is None:
            groups = sum(dim.size for dim in nesting.outers(space))
            kept = torch.rand(groups, space.size, generator=generator).argsort()[:, : space.size - 2].sort().values
            with torch.no_grad():
                expected = Masked(graph, {space.name: kept}).run(x)
                assert deviation(compress(graph, {space.name: kept})(x), expected) < 1e-10
    return reasons


@pytest.mark.parametrize("step", STEPS)
def test_every_step_of_heads(step):
    reasons = check_choices(Heads(step))
    assert reasons
    if step in ALIKE:
        found = [reason for reason in reasons if reason is not None]
        assert found
        assert all(re.search(ALIKE[step], reason) for reason in found), found
    else:
        assert reasons == [None] * len(reasons)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_random_heads(seed):
    choose = random.Random(seed)
    check_choices(Heads(*(choose.choice(list(STEPS)) for _ in range(choose.randint(2, 3)))), seed)
