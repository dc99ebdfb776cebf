"""Random networks of convolutions, linears, norms, attention, sums, concats, splits, reshapes, groups and writes in
place, for property tests; with channel shuffles in many spellings, results by index, and shapes that are stored, if
asked for."""

from __future__ import annotations

import random
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RandomNetwork(nn.Module):
    """A chain of random steps on `[batch, channels, 4, 4]`, then a flatten and a linear layer."""

    def __init__(self, seed: int, steps: int = 5, kinds: Iterable[str] | None = None) -> None:
        super().__init__()
        self.plan: list[tuple[str, int]] = []
        self.layers = nn.ModuleList()
        choose = random.Random(seed)
        channels = choose.choice([4, 8, 12])
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        for _ in range(steps):
            kind = choose.choice(list(STEPS if kinds is None else kinds))
            layers, produced, detail = (STEPS | SHUFFLES | INDEXED)[kind](channels, choose)
            if layers is None:
                continue
            self.plan.append((kind, detail))
            self.layers.append(nn.ModuleList(layers))
            channels = produced
        self.head = nn.Linear(channels * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for (kind, detail), layers in zip(self.plan, self.layers, strict=True):
            x = FORWARD[kind](x, layers, detail)
        return self.head(torch.flatten(torch.relu(x), 1))


def _conv(channels, choose):
    new = choose.choice([4, 6, 8, 12])
    return [nn.Conv2d(channels, new, 3, padding=1, bias=choose.random() < 0.5), nn.BatchNorm2d(new)], new, 0


def _grouped(channels, choose):
    groups = choose.choice([g for g in (2, 4, channels) if channels % g == 0])
    new = channels * choose.choice([1, 2])
    return [nn.Conv2d(channels, new, 3, padding=1, groups=groups)], new, 0


def _residual(channels, choose):
    inner = choose.choice([3, 5, 8])
    return [nn.Conv2d(channels, inner, 1), nn.BatchNorm2d(inner), nn.Conv2d(inner, channels, 1)], channels, 0


def _branches(channels, choose):
    a, b = choose.choice([2, 4]), choose.choice([4, 6])
    return [nn.Conv2d(channels, a, 1), nn.Conv2d(channels, b, 3, padding=1)], a + b, 0


def _dense(channels, choose):
    growth = choose.choice([2, 4])
    return [nn.BatchNorm2d(channels), nn.Conv2d(channels, growth, 1)], channels + growth, 0


def _split(channels, _):
    if channels % 2:
        return None, channels, 0
    half = channels // 2
    return [nn.Conv2d(half, half, 1)], channels, half


def _excite(channels, choose):
    squeezed = choose.choice([2, 3])
    return [nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)], channels, 0


def _reshape(channels, _):
    if channels % 4:
        return None, channels, 0
    return [], channels, 4


def _transposed(channels, choose):
    new = choose.choice([4, 6])
    return [nn.Conv2d(channels, new, 2, stride=2), nn.ConvTranspose2d(new, new, 2, stride=2)], new, 0


def _multiplier(channels, choose):
    new = channels * choose.choice([1, 2])
    return [nn.Conv2d(channels, new, 3, padding=1, groups=channels)], new, 0


def _group_norm(channels, choose):
    groups = choose.choice([g for g in (1, 2, 4, channels) if channels % g == 0])
    return [nn.GroupNorm(groups, channels)], channels, 0


def _channels_last(channels, choose):
    new = choose.choice([4, 6])
    return [nn.Linear(channels, new), nn.LayerNorm(new)], new, 0


def _attention(channels, choose):
    if channels % 2:
        return None, channels, 0
    drawn = choose.random()
    form = {"batch_first": drawn < 0.5, "add_bias_kv": drawn % 0.5 < 0.2, "add_zero_attn": 0.1 < drawn % 0.5 < 0.3}
    return [nn.MultiheadAttention(channels, 2, **form)], channels, 0


def _product(channels, _):
    return [nn.ParameterList([torch.randn(channels, 4)])], 4, 0


def _tied(channels, _):
    return [nn.Conv2d(channels, channels, 1)], channels, 0


def _one_channel(channels, _):
    return [nn.Conv2d(channels, 1, 1)], channels, channels


def _padded(channels, choose):
    more = choose.choice([1, 2])
    return [], channels + more, more


def _stacked(channels, choose):
    return [nn.Conv2d(channels, channels, 1)], 2 * channels, choose.choice([1, 2])


def _uneven(channels, choose):
    pieces = choose.choice([2, 3])
    return (None, channels, 0) if channels < pieces else ([], channels, pieces)


def _in_place(channels, _):
    return [nn.Conv2d(channels, channels, 1), nn.ReLU(inplace=True), nn.Conv2d(channels, channels, 1)], channels, 0


def _shuffled(channels, choose):
    groups = [g for g in (2, 3, 4) if channels % g == 0 and channels > g]
    return ([], channels, choose.choice(groups)) if groups else (None, channels, 0)


def _shuffle_module(channels, choose):
    _, _, groups = _shuffled(channels, choose)
    return ([nn.ChannelShuffle(groups)], channels, 0) if groups else (None, channels, 0)


def _shuffled_sum(channels, choose):
    _, _, groups = _shuffled(channels, choose)
    return ([nn.Conv2d(channels, channels, 1)], channels, groups) if groups else (None, channels, 0)


def _unit(channels, _):
    if channels % 2:
        return None, channels, 0
    half = channels // 2
    depthwise = nn.Conv2d(half, half, 3, padding=1, groups=half)
    return [nn.Conv2d(half, half, 1), depthwise, nn.BatchNorm2d(half)], channels, 0


def _interleaved(channels, _):
    return [nn.Conv2d(channels, channels, 1)], 2 * channels, 0


def _shuffle(x, groups):
    """As torchvision writes it."""
    batch, channels, height, width = x.size()
    x = x.view(batch, groups, channels // groups, height, width)
    return torch.transpose(x, 1, 2).contiguous().view(batch, channels, height, width)


def _permute_groups(x, groups):
    batch, channels, height, width = x.shape
    return x.reshape(batch, groups, channels // groups, height, width).permute(0, 2, 1, 3, 4).flatten(1, 2)


def _shuffle_and_split(x):
    """Even and odd channels."""
    batch, channels, height, width = x.size()
    x = x.reshape(batch * channels // 2, 2, height * width).permute(1, 0, 2)
    x = x.reshape(2, -1, channels // 2, height, width)
    return x[0], x[1]


def _change_half(halves, layers):
    kept, changed = halves
    for layer in layers:
        changed = layer(changed)
    return torch.cat([kept, torch.relu_(changed)], 1)


def _mix_tokens(x, layers, _):
    attention = layers[0]
    tokens = x.flatten(2).permute(*((0, 2, 1) if attention.batch_first else (2, 0, 1)))
    tokens = tokens + attention(tokens, tokens, tokens, need_weights=False)[0]
    return tokens.permute(*((0, 2, 1) if attention.batch_first else (1, 2, 0))).unflatten(-1, (4, 4))


def _written_between_reads(x, layers, _):
    y = layers[0](x)
    y += x
    first = layers[2](y)
    part = y[:, :1]
    part *= 2
    return first + layers[1](y)


STEPS = {
    "conv": _conv, "grouped": _grouped, "residual": _residual, "branches": _branches, "dense": _dense,
    "split": _split, "excite": _excite, "reshape": _reshape, "transposed": _transposed, "multiplier": _multiplier,
    "group_norm": _group_norm, "channels_last": _channels_last, "attention": _attention, "product": _product,
    "tied": _tied, "one_channel": _one_channel, "padded": _padded, "stacked": _stacked, "uneven": _uneven,
    "in_place": _in_place,
}  # fmt: skip
FORWARD = {
    "conv": lambda x, layers, _: torch.relu(layers[1](layers[0](x))),
    "grouped": lambda x, layers, _: layers[0](x),
    "residual": lambda x, layers, _: torch.relu(x + layers[2](torch.relu(layers[1](layers[0](x))))),
    "branches": lambda x, layers, _: torch.cat([layers[0](x), torch.tanh(layers[1](x))], 1),
    "dense": lambda x, layers, _: torch.cat([x, layers[1](torch.relu(layers[0](x)))], 1),
    "split": lambda x, layers, half: torch.cat([layers[0](x[:, :half]), x.split(half, 1)[1]], 1),
    "excite": lambda x, layers, _: x * torch.sigmoid(layers[1](torch.relu(layers[0](x.mean((2, 3), keepdim=True))))),
    "reshape": lambda x, _, groups: x.view(x.shape[0], groups, -1, 4, 4).flatten(1, 2),
    "transposed": lambda x, layers, _: layers[1](torch.relu(layers[0](x))),
    "multiplier": lambda x, layers, _: layers[0](x),
    "group_norm": lambda x, layers, _: layers[0](x),
    "channels_last": lambda x, layers, _: layers[1](layers[0](x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2),
    "attention": _mix_tokens,
    "product": lambda x, layers, _: (x.flatten(2).transpose(1, 2) @ layers[0][0]).transpose(1, 2).reshape(-1, 4, 4, 4),
    "tied": lambda x, layers, _: torch.relu(layers[0](torch.relu(layers[0](x)))),
    "one_channel": lambda x, layers, channels: x * torch.sigmoid(layers[0](x)).expand(-1, channels, -1, -1),
    "padded": lambda x, _, more: F.pad(x, (0, 0, 0, 0, 0, more)),
    "stacked": lambda x, layers, dim: torch.stack([x, layers[0](x)], dim).flatten(1, 2),
    "uneven": lambda x, _, pieces: torch.cat(x.chunk(pieces, 1)[::-1], 1),
    "in_place": _written_between_reads,
}

SHUFFLES = {
    "shuffle": _shuffled, "shuffle_permute": _shuffled, "shuffle_function": _shuffled, "shuffle_in_place": _shuffled,
    "shuffle_module": _shuffle_module, "shuffle_sum": _shuffled_sum, "sum_shuffle": _shuffled_sum,
    "shuffle_unit": _unit, "odd_even": _unit, "interleaved": _interleaved,
}  # fmt: skip
FORWARD |= {
    "shuffle": lambda x, _, groups: _shuffle(x, groups),
    "shuffle_permute": lambda x, _, groups: _permute_groups(x, groups),
    "shuffle_function": lambda x, _, groups: F.channel_shuffle(x, groups),
    "shuffle_in_place": lambda x, _, groups: torch.relu_(_shuffle(x, groups)),
    "shuffle_module": lambda x, layers, _: layers[0](x),
    "shuffle_sum": lambda x, layers, groups: _shuffle(x, groups) + layers[0](x),
    "sum_shuffle": lambda x, layers, groups: x + _shuffle(layers[0](x), groups),
    "shuffle_unit": lambda x, layers, _: _shuffle(_change_half(x.chunk(2, 1), layers), 2),
    "odd_even": lambda x, layers, _: _change_half(_shuffle_and_split(x), layers),
    "interleaved": lambda x, layers, _: torch.stack([x, layers[0](x)], 2).flatten(1, 2),
}


def _same_width(channels, _):
    return [nn.Conv2d(channels, channels, 1)], channels, 0


def _one_by_one(channels, _):
    return [nn.Linear(channels, channels)], channels, 0


def _doubled(channels, choose):
    new = choose.choice([4, 6])
    return [nn.Conv2d(channels, 2 * new, 1)], new, 0


def _quantized(x, layers):
    """As a vector quantizer has it: a shape is stored, and indexed and used later."""
    x = x.permute(0, 2, 3, 1)
    shape = x.shape
    flat = torch.tanh(x.reshape(-1, shape[3]))
    return layers[0](flat).view(shape).permute(0, 3, 1, 2)


def _stored(x, layers):
    """A shape that is laid out by, and indexed after that."""
    shape = x.shape
    y = torch.tanh(layers[0](x)).view(shape)
    return y.reshape(shape[0], shape[1], -1).view(shape)


def _unpacked(x, layers):
    batch, channels, height, width = x.shape
    y = layers[0](x).view(batch, channels, height * width)
    return torch.relu(y).view(batch, channels, height, width) + x.view(x.shape)


def _moments(x, layers):
    variance, mean = torch.var_mean(x, (2, 3), keepdim=True)
    return layers[0]((x - mean) * torch.rsqrt(variance + 0.1))


def _largest(x, layers):
    values, _ = x.max(3, keepdim=True)
    least = x.min(2, keepdim=True)
    return layers[0](x * torch.sigmoid(values) + least[0])


def _gated_linear(x, layers):
    a, b = layers[0](x).chunk(2, 1)
    return a * torch.sigmoid(b)


def _by_number(x, layers):
    parts = layers[0](x).split(x.shape[1] // 2 or 1, 1)
    sizes = [part.size() for part in parts]
    return torch.cat([torch.tanh(part).reshape(size) for part, size in zip(parts, sizes, strict=True)], 1)


INDEXED = {
    "stored": _same_width, "quantized": _one_by_one, "unpacked": _same_width, "moments": _same_width,
    "largest": _same_width, "gated_linear": _doubled, "by_number": _same_width,
}  # fmt: skip
FORWARD |= {
    "stored": lambda x, layers, _: _stored(x, layers),
    "quantized": lambda x, layers, _: _quantized(x, layers),
    "unpacked": lambda x, layers, _: _unpacked(x, layers),
    "moments": lambda x, layers, _: _moments(x, layers),
    "largest": lambda x, layers, _: _largest(x, layers),
    "gated_linear": lambda x, layers, _: _gated_linear(x, layers),
    "by_number": lambda x, layers, _: _by_number(x, layers),
}
