"""Random networks of more than a hundred kinds of steps: all of `random_networks`, and what models do besides.

Weights that are computed, transposed or read twice; channels that are summed, sorted, turned round, looked up and
transformed; attention, norms and recurrences in many spellings; masks, indices and embeddings; inputs of tokens and
masks; several outputs, as tuples, named tuples and dicts. For campaigns: a network is its seed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from random_networks import FORWARD, INDEXED, SHUFFLES, STEPS
from torch import Tensor, nn

Built = tuple[Any, int, Any]
"""The layers of a step (None where it does not take so many channels), the channels that it gives, a detail."""


class Answer(NamedTuple):
    """What a network gives that has a name for each output."""

    classes: Tensor
    features: Tensor


class UnusualNetwork(nn.Module):
    """A chain of random steps on `[batch, channels, 4, 4]`, behind an image or tokens, in front of one or two heads."""

    def __init__(self, seed: int, steps: int = 4, kinds: Iterable[str] | None = None) -> None:
        super().__init__()
        choose = random.Random(seed)
        known = list(KINDS if kinds is None else kinds)
        self.given = choose.choice(["image"] * 5 + ["tokens", "image and mask"])
        self.outputs = choose.choice(["one"] * 6 + ["tuple", "dict", "named", "nested", "auxiliary"])
        self.plan: list[tuple[str, Any, int]] = []
        self.layers = nn.ModuleList()
        channels = choose.choice([4, 6, 8, 12])
        self.stem = nn.Embedding(11, channels) if self.given == "tokens" else nn.Conv2d(3, channels, 3, padding=1)
        tried = 0
        while len(self.plan) < steps and tried < 40:
            tried += 1
            if self.plan and choose.random() < 0.05 and (again := self._again(channels, choose)) is not None:
                self.plan.append(again)
                continue
            kind = choose.choice(known)
            layers, produced, detail = BUILD[kind](channels, choose)
            if layers is None or produced > 24:
                continue
            self.plan.append((kind, detail, len(self.layers)))
            self.layers.append(nn.ModuleList(layers))
            self.layers[-1].ends = (channels, produced)
            channels = produced
        self.norm = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels * 16, 5)
        self.other = nn.Linear(channels, 3)

    def _again(self, channels: int, choose: random.Random) -> tuple[str, Any, int] | None:
        """An earlier step that takes and gives so many channels, to be taken once more with the same layers."""
        fits = [step for step in self.plan if self.layers[step[2]].ends == (channels, channels)]
        return choose.choice(fits) if fits else None

    def inputs(self, batch: int, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> list[Tensor]:
        """Random inputs of the network."""
        if self.given == "tokens":
            return [torch.randint(0, 11, (batch, 16), generator=generator)]
        image = torch.randn(batch, 3, 4, 4, generator=generator, dtype=dtype)
        if self.given == "image":
            return [image]
        return [image, torch.rand(batch, 1, 4, 4, generator=generator) < 0.8]

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:
        x = self.stem(x)
        if self.given == "tokens":
            x = x.transpose(1, 2).unflatten(2, (4, 4))
        if mask is not None:
            x = x.masked_fill(~mask, 0.0)
        for kind, detail, place in self.plan:
            x = FORWARDS[kind](x, self.layers[place], detail)
        x = torch.relu(self.norm(x))
        classes = self.head(torch.flatten(x, 1))
        if self.outputs == "one":
            return classes
        features = self.other(x.mean((2, 3)))
        if self.outputs == "auxiliary":
            return (classes, features) if self.training else classes
        return OUTPUTS[self.outputs](classes, features)


OUTPUTS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tuple": lambda classes, features: (classes, features),
    "dict": lambda classes, features: {"classes": classes, "features": features},
    "named": Answer,
    "nested": lambda classes, features: {"classes": classes, "more": [features, (features * 2, classes.argmax(1))]},
}


def fill(network: nn.Module, seed: int) -> None:
    """Random values at which signals neither fade nor blow up, in place; norms and statistics are not trivial."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*network.named_parameters(), *network.named_buffers()):
            if not tensor.is_floating_point() or "constant" in name:
                continue
            if "var" in name or (name.endswith("weight") and tensor.dim() == 1):
                tensor.uniform_(0.5, 1.5, generator=generator)
            else:
                spread = 1.5 / math.sqrt(tensor[0].numel()) if tensor.dim() > 1 else 0.5
                tensor.uniform_(-spread, spread, generator=generator)


# Layers -------------------------------------------------------------------------------------------------------------


def _table(*shape: int) -> nn.ParameterList:
    return nn.ParameterList([torch.zeros(shape)])


class _Constant(nn.Module):
    """A buffer."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.register_buffer("constant", tensor)


def _nothing(channels: int, _: random.Random) -> Built:
    return [], channels, 0


def _even(channels: int, _: random.Random) -> Built:
    return (None if channels % 2 else []), channels, channels // 2


def _pointwise(channels: int, _: random.Random) -> Built:
    return [nn.Conv2d(channels, channels, 1)], channels, 0


def _linear(channels: int, _: random.Random) -> Built:
    return [nn.Linear(channels, channels)], channels, 0


def _new(choose: random.Random) -> int:
    return choose.choice([4, 6, 8, 12])


def _divisors(channels: int) -> list[int]:
    return [g for g in (2, 3, 4) if channels % g == 0 and channels > g]


def _dense(channels: int, choose: random.Random) -> Built:
    new = _new(choose)
    return [nn.Conv2d(channels, new, 1)], new, 0


def _gate_of_all(channels: int, _: random.Random) -> Built:
    return [nn.Conv2d(1, 1, 3, padding=1)], channels, 0


def tokens_of(x: Tensor) -> Tensor:
    """`[batch, positions, channels]`."""
    return x.flatten(2).transpose(1, 2)


def image_of(tokens: Tensor) -> Tensor:
    """`[batch, channels, 4, 4]`."""
    return tokens.transpose(1, 2).unflatten(2, (4, 4))


# Convolutions -------------------------------------------------------------------------------------------------------


def _grouped_transposed(channels: int, choose: random.Random) -> Built:
    groups = _divisors(channels)
    if not groups:
        return None, channels, 0
    group = choose.choice(groups)
    new = group * choose.choice([1, 2, 3])
    return [nn.ConvTranspose2d(channels, new, 3, padding=1, groups=group, bias=choose.random() < 0.5)], new, 0


def _depthwise_transposed(channels: int, _: random.Random) -> Built:
    return [nn.ConvTranspose2d(channels, channels, 2, stride=2, groups=channels), nn.AvgPool2d(2)], channels, 0


def _dynamic(channels: int, choose: random.Random) -> Built:
    new, kernels = _new(choose), choose.choice([2, 3])
    return [nn.Linear(channels, kernels), _table(kernels, new * channels * 9)], new, (new, kernels)


def _dynamic_conv(x: Tensor, layers: Any, detail: Any) -> Tensor:
    """A convolution for each example: a mean of kernels, by shares that are computed."""
    new, _ = detail
    batch, channels = x.shape[0], x.shape[1]
    shares = torch.softmax(layers[0](x.mean((2, 3))), 1)
    weight = (shares @ layers[1][0]).view(batch * new, channels, 3, 3)
    return F.conv2d(x.reshape(1, batch * channels, 4, 4), weight, padding=1, groups=batch).view(batch, new, 4, 4)


def _kernel(channels: int, choose: random.Random) -> Built:
    new = _new(choose)
    return [_table(new, channels, 3, 3)], new, 0


def _standardized(x: Tensor, layers: Any, _: Any) -> Tensor:
    weight = layers[0][0]
    weight = (weight - weight.mean((1, 2, 3), keepdim=True)) / (weight.std((1, 2, 3), keepdim=True) + 0.1)
    return F.conv2d(x, weight, padding=1)


def _modulated(channels: int, choose: random.Random) -> Built:
    new = _new(choose)
    return [_table(new, channels, 1, 1), nn.Linear(channels, channels)], new, new


def _modulated_conv(x: Tensor, layers: Any, new: int) -> Tensor:
    """As StyleGAN2: every example scales what a convolution reads, and the weights are put back to norm 1."""
    batch, channels = x.shape[:2]
    style = layers[1](x.mean((2, 3)))
    weight = layers[0][0].unsqueeze(0) * style.view(batch, 1, channels, 1, 1)
    weight = weight * torch.rsqrt(weight.square().sum((2, 3, 4), keepdim=True) + 0.1)
    y = F.conv2d(x.reshape(1, -1, 4, 4), weight.view(-1, channels, 1, 1), groups=batch)
    return y.view(batch, new, 4, 4)


def _generated(channels: int, choose: random.Random) -> Built:
    new = _new(choose)
    return [nn.Linear(3, new * channels), _Constant(torch.linspace(-1, 1, 3))], new, new


def _hyper(x: Tensor, layers: Any, new: int) -> Tensor:
    weight = layers[0](layers[1].constant.to(x.dtype)).view(new, x.shape[1], 1, 1)
    return F.conv2d(x, weight)


def _low_rank(channels: int, choose: random.Random) -> Built:
    new = _new(choose)
    return [_table(new, 3), _table(3, channels)], new, 0


def _computed_depthwise(channels: int, _: random.Random) -> Built:
    return [nn.Linear(channels, channels * 9)], channels, 0


def _involution(x: Tensor, layers: Any, _: Any) -> Tensor:
    """A depthwise convolution whose kernels are computed from the mean."""
    batch, channels = x.shape[:2]
    weight = layers[0](x.mean((2, 3))).view(batch * channels, 1, 3, 3)
    y = F.conv2d(x.reshape(1, batch * channels, 4, 4), torch.tanh(weight), padding=1, groups=batch * channels)
    return y.view(batch, channels, 4, 4)


def _separable(channels: int, choose: random.Random) -> Built:
    new = _new(choose)
    depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
    return [depthwise, nn.BatchNorm2d(channels), nn.Conv2d(channels, new, 1)], new, 0


def _dilated(channels: int, choose: random.Random) -> Built:
    new = _new(choose)
    layers = [
        nn.Conv2d(channels, new, 3, padding=d, dilation=d, padding_mode=m) for d, m in ((1, "reflect"), (2, "zeros"))
    ]
    return layers, new, 0


def _along_one_axis(channels: int, choose: random.Random) -> Built:
    new = _new(choose)
    return [nn.Conv1d(channels, new, 3, padding=1), nn.Conv1d(new, new, 1)], new, 0


def _in_depth(channels: int, choose: random.Random) -> Built:
    new = _new(choose)
    return [nn.Conv3d(channels, new, (1, 3, 3), padding=(0, 1, 1))], new, 0


def _channels_as_depth(channels: int, _: random.Random) -> Built:
    return [nn.Conv3d(1, 1, (1, 3, 3), padding=(0, 1, 1))], channels, 0


def _unfolded(channels: int, choose: random.Random) -> Built:
    new = _new(choose)
    return [nn.Linear(channels * 9, new)], new, 0


def _asymmetric(channels: int, choose: random.Random) -> Built:
    new = _new(choose)
    return [nn.Conv2d(channels, new, (1, 3), padding=(0, 1)), nn.Conv2d(new, new, (3, 1), padding=(1, 0))], new, 0


def _shuffled_up(channels: int, choose: random.Random) -> Built:
    new = choose.choice([2, 4, 6])
    return [nn.Conv2d(channels, 4 * new, 1), nn.PixelShuffle(2), nn.AvgPool2d(2)], new, 0


def _unshuffled(channels: int, choose: random.Random) -> Built:
    new = _new(choose)
    return [nn.PixelUnshuffle(2), nn.Conv2d(4 * channels, new, 1), nn.Upsample(scale_factor=2)], new, 0


def _there_and_back(channels: int, _: random.Random) -> Built:
    return [nn.Conv2d(4 * channels, 4 * channels, 1)], channels, 0


def _normed_weight(channels: int, choose: random.Random) -> Built:
    new = _new(choose)
    return [torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(channels, new, 1))], new, 0


# Weights that are shared --------------------------------------------------------------------------------------------


def _tied_pair(channels: int, choose: random.Random) -> Built:
    new = _new(choose)
    return [nn.Conv2d(channels, new, 1, bias=False), nn.BatchNorm2d(new)], channels, 0


def _tied_table(channels: int, choose: random.Random) -> Built:
    return [_table(_new(choose), channels)], channels, 0


def _shared_weight(channels: int, _: random.Random) -> Built:
    first, second = nn.Linear(channels, channels), nn.Linear(channels, channels)
    second.weight = first.weight
    return [first, second], channels, 0


def _symmetric(x: Tensor, layers: Any, _: Any) -> Tensor:
    weight = layers[0].weight
    return image_of(F.linear(tokens_of(x), weight + weight.t()))


# Channels that are moved, summed, sorted ----------------------------------------------------------------------------


def _maxout(channels: int, choose: random.Random) -> Built:
    new, pieces = choose.choice([4, 6]), choose.choice([2, 3])
    return [nn.Conv2d(channels, new * pieces, 1)], new, (new, pieces)


def _halves(channels: int, choose: random.Random) -> Built:
    new = choose.choice([4, 6])
    return [nn.Conv2d(channels, 2 * new, 1)], new, 0


def _pieces(channels: int, choose: random.Random) -> Built:
    groups = _divisors(channels)
    return ([], channels, choose.choice(groups)) if groups else (None, channels, 0)


def _rolled(channels: int, choose: random.Random) -> Built:
    return [], channels, choose.choice([1, -1, 2])


def _looked_up(channels: int, choose: random.Random) -> Built:
    new = choose.choice([channels, max(2, channels // 2), channels + 2])
    picked = [choose.randrange(channels) for _ in range(new)]
    if new == channels and choose.random() < 0.5:
        picked = choose.sample(range(channels), channels)
    return [_Constant(torch.tensor(picked))], new, picked


def _repeated(channels: int, choose: random.Random) -> Built:
    return [], 2 * channels, choose.choice([1, 2])


def _picked(channels: int, choose: random.Random) -> Built:
    start, step = choose.choice([0, 1]), choose.choice([2, 3])
    return [], len(range(start, channels, step)), (start, step)


def _narrowed(channels: int, choose: random.Random) -> Built:
    if channels < 4:
        return None, channels, 0
    length = choose.randrange(2, channels)
    return [], length, (choose.randrange(channels - length + 1), length)


def _experts(channels: int, choose: random.Random) -> Built:
    new, number = _new(choose), choose.choice([2, 3])
    return [*(nn.Conv2d(channels, new, 1) for _ in range(number)), nn.Linear(channels, number)], new, number


def _mixture(x: Tensor, layers: Any, number: int) -> Tensor:
    shares = torch.softmax(layers[number](x.mean((2, 3))), -1)
    outputs = torch.stack([layers[i](x) for i in range(number)], 1)
    return (outputs * shares[:, :, None, None, None]).sum(1)


def _two_features(channels: int, choose: random.Random) -> Built:
    new, inner = _new(choose), choose.choice([3, 4])
    return [nn.Conv2d(channels, inner, 1), nn.Conv2d(channels, inner, 1), nn.Linear(inner * inner, new)], new, 0


def _outer_product(x: Tensor, layers: Any, _: Any) -> Tensor:
    a, b = layers[0](x), layers[1](x)
    pairs = torch.einsum("bchw,bdhw->bhwcd", a, b).flatten(3)
    return layers[2](pairs).permute(0, 3, 1, 2)


def _gram(x: Tensor, layers: Any, _: Any) -> Tensor:
    a, b = layers[0](x), layers[1](x)
    pooled = torch.einsum("bchw,bdhw->bcd", a, b).flatten(1) / 16
    return layers[2](pooled)[:, :, None, None] * torch.ones_like(x[:, :1])


def _bilinear(channels: int, choose: random.Random) -> Built:
    new = _new(choose)
    return [nn.Bilinear(channels, channels, new)], new, 0


def _weighted_einsum(channels: int, choose: random.Random) -> Built:
    new = _new(choose)
    return [_table(new, channels)], new, choose.choice(["bchw,oc->bohw", "b c h w, o c -> b o h w", "nchw,kc->nkhw"])


def _ordered(x: Tensor, layers: Any, _: Any) -> Tensor:
    values, _ = torch.sort(x, 1, descending=True)
    return layers[0](values)


def _highest(x: Tensor, layers: Any, _: Any) -> Tensor:
    values, _ = x.topk(2, dim=1)
    return x * torch.sigmoid(layers[0](values.mean(1, keepdim=True)))


def _fft_of_channels(x: Tensor, layers: Any, _: Any) -> Tensor:
    return (
        layers[0](torch.fft.fft(torch.fft.fft(tokens_of(x), dim=-1), dim=1).real / 8)
        .transpose(1, 2)
        .unflatten(2, (4, 4))
    )


def _global_filter(channels: int, _: random.Random) -> Built:
    return [_table(channels, 4, 3, 2)], channels, 0


def _filtered(x: Tensor, layers: Any, _: Any) -> Tensor:
    spectrum = torch.fft.rfft2(x, norm="ortho")
    return torch.fft.irfft2(spectrum * torch.view_as_complex(layers[0][0]), s=(4, 4), norm="ortho")


# Recurrences and attention ------------------------------------------------------------------------------------------


def _recurrent(channels: int, choose: random.Random) -> Built:
    new, kind = choose.choice([4, 6]), choose.choice([nn.LSTM, nn.GRU, nn.RNN])
    both = choose.random() < 0.5
    layer = kind(channels, new, choose.choice([1, 2]), batch_first=True, bidirectional=both)
    return [layer], new * (1 + both), 0


def _cells(channels: int, choose: random.Random) -> Built:
    return [choose.choice([nn.GRUCell, nn.RNNCell])(channels, channels)], channels, 0


def _by_hand(x: Tensor, layers: Any, _: Any) -> Tensor:
    tokens = tokens_of(x)
    state = torch.zeros_like(tokens[:, 0])
    states = []
    for t in range(3):
        state = layers[0](tokens[:, t], state)
        states.append(state)
    return x + torch.stack(states, 1).mean(1)[:, :, None, None]


def _heads(channels: int, choose: random.Random) -> Built:
    heads = choose.choice([1, 2])
    if channels % heads:
        return None, channels, 0
    size = choose.choice([2, 3])
    return [nn.Linear(channels, 3 * heads * size), nn.Linear(heads * size, channels)], channels, (heads, size)


def _packed_attention(x: Tensor, layers: Any, detail: Any) -> Tensor:
    heads, size = detail
    tokens = tokens_of(x)
    packed = layers[0](tokens).reshape(tokens.shape[0], 16, 3, heads, size).permute(2, 0, 3, 1, 4)
    q, k, v = packed.unbind(0)
    shares = (q @ k.transpose(-2, -1) * size**-0.5).softmax(-1)
    return x + image_of(layers[1]((shares @ v).transpose(1, 2).reshape(tokens.shape[0], 16, heads * size)))


def _chunked_attention(x: Tensor, layers: Any, detail: Any) -> Tensor:
    heads, _ = detail
    tokens = tokens_of(x)
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in layers[0](tokens).chunk(3, -1))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return x + image_of(layers[1](y.transpose(1, 2).flatten(2)))


def _einsum_attention(x: Tensor, layers: Any, detail: Any) -> Tensor:
    heads, size = detail
    q, k, v = layers[0](tokens_of(x)).view(-1, 16, 3, heads, size).unbind(2)
    shares = torch.einsum("bqhd,bkhd->bhqk", q, k).div(math.sqrt(size)).softmax(-1)
    return x + image_of(layers[1](torch.einsum("bhqk,bkhd->bqhd", shares, v).flatten(2)))


def _linear_attention(x: Tensor, layers: Any, detail: Any) -> Tensor:
    heads, size = detail
    q, k, v = layers[0](tokens_of(x)).view(-1, 16, 3, heads, size).permute(2, 0, 3, 1, 4)
    q, k = q.softmax(-1), k.softmax(-2)
    return x + image_of(layers[1]((q @ (k.transpose(-2, -1) @ v)).transpose(1, 2).flatten(2)))


def _masked_attention(x: Tensor, layers: Any, detail: Any) -> Tensor:
    heads, size = detail
    q, k, v = layers[0](tokens_of(x)).view(-1, 16, 3, heads, size).permute(2, 0, 3, 1, 4)
    later = torch.ones(16, 16, dtype=torch.bool, device=x.device).triu(1)
    scores = (q @ k.mT / size**0.5).masked_fill(later, float("-inf"))
    return x + image_of(layers[1]((torch.softmax(scores, -1) @ v).transpose(1, 2).flatten(2)))


def _one_key(channels: int, choose: random.Random) -> Built:
    size, heads = choose.choice([2, 3]), 2
    layers = [nn.Linear(channels, heads * size), nn.Linear(channels, 2 * size), nn.Linear(heads * size, channels)]
    return layers, channels, (heads, size)


def _multi_query(x: Tensor, layers: Any, detail: Any) -> Tensor:
    heads, size = detail
    tokens = tokens_of(x)
    q = layers[0](tokens).unflatten(-1, (heads, size)).transpose(1, 2)
    k, v = layers[1](tokens).unsqueeze(1).chunk(2, -1)
    shares = torch.softmax(q @ k.transpose(-2, -1) / size**0.5, -1)
    return x + image_of(layers[2]((shares @ v).transpose(1, 2).flatten(2)))


def _three(channels: int, _: random.Random) -> Built:
    return [nn.Conv2d(channels, channels, 1) for _ in range(3)], channels, 0


def _channel_attention(x: Tensor, layers: Any, _: Any) -> Tensor:
    """Channels that attend to channels, as in XCiT."""
    q, k, v = (layer(x).flatten(2) for layer in layers)
    shares = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(1, 2)).softmax(-1)
    return x + (shares @ v).view(x.shape)


def _non_local(x: Tensor, layers: Any, _: Any) -> Tensor:
    q, k, v = (layer(x).flatten(2) for layer in layers)
    shares = torch.bmm(q.transpose(1, 2), k).softmax(-1)
    return x + torch.bmm(v, shares.transpose(1, 2)).view_as(x)


def _cross(channels: int, choose: random.Random) -> Built:
    size = choose.choice([3, 4])
    layers = [_table(4, size), nn.Linear(channels, 2 * size), nn.Linear(size, channels)]
    return layers, channels, size


def _learned_queries(x: Tensor, layers: Any, _: Any) -> Tensor:
    k, v = layers[1](tokens_of(x)).chunk(2, -1)
    q = layers[0][0].unsqueeze(0).expand(x.shape[0], -1, -1)
    found = F.scaled_dot_product_attention(q, k, v)
    return x + layers[2](found).mean(1)[:, :, None, None]


def _rotated(x: Tensor, layers: Any, detail: Any) -> Tensor:
    """Rotary positions: halves of every head are turned by an angle that grows with the position."""
    heads, size = detail[0], 4
    q, k, v = layers[0](tokens_of(x)).view(-1, 16, 3, heads, size).permute(2, 0, 3, 1, 4)
    angles = torch.arange(16, dtype=x.dtype)[:, None] * torch.tensor([1.0, 0.1], dtype=x.dtype)
    cos, sin = torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()

    def turn(t: Tensor) -> Tensor:
        a, b = t.chunk(2, -1)
        return t * cos + torch.cat([-b, a], -1) * sin

    y = F.scaled_dot_product_attention(turn(q), turn(k), v)
    return x + image_of(layers[1](y.transpose(1, 2).flatten(2)))


def _rotary(channels: int, choose: random.Random) -> Built:
    heads = choose.choice([1, 2])
    return [nn.Linear(channels, 12 * heads), nn.Linear(4 * heads, channels)], channels, (heads, 4)


def _encoder(channels: int, _: random.Random) -> Built:
    if channels % 2:
        return None, channels, 0
    return [nn.TransformerEncoderLayer(channels, 2, 5, dropout=0.0, batch_first=True)], channels, 0


def _token_mixer(channels: int, _: random.Random) -> Built:
    return [nn.LayerNorm(channels), nn.Linear(16, 5), nn.Linear(5, 16)], channels, 0


def _class_token(channels: int, _: random.Random) -> Built:
    return [_table(1, 1, channels), nn.Linear(channels, channels)], channels, 0


def _with_a_token(x: Tensor, layers: Any, _: Any) -> Tensor:
    tokens = torch.cat([layers[0][0].expand(x.shape[0], -1, -1), tokens_of(x)], 1)
    tokens = layers[1](tokens)
    return image_of(tokens[:, 1:] + tokens[:, :1])


# Norms --------------------------------------------------------------------------------------------------------------

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "instance": lambda c: nn.InstanceNorm2d(c, affine=True),
    "instance with statistics": lambda c: nn.InstanceNorm2d(c, track_running_stats=True),
    "one group": lambda c: nn.GroupNorm(1, c),
    "no affine": lambda c: nn.BatchNorm2d(c, affine=False),
    "no statistics": lambda c: nn.BatchNorm2d(c, track_running_stats=False),
    "whole": lambda c: nn.LayerNorm([c, 4, 4]),
    "local": lambda _: nn.LocalResponseNorm(3),
}
LAST_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "layer": nn.LayerNorm,
    "rms": nn.RMSNorm,
    "no bias": lambda c: nn.LayerNorm(c, bias=False),
    "plain": lambda c: nn.LayerNorm(c, elementwise_affine=False),
}


def _normed(channels: int, choose: random.Random) -> Built:
    return [NORMS[choose.choice(list(NORMS))](channels)], channels, 0


def _normed_last(channels: int, choose: random.Random) -> Built:
    return [LAST_NORMS[choose.choice(list(LAST_NORMS))](channels)], channels, 0


def _norm_by_hand(x: Tensor, layers: Any, _: Any) -> Tensor:
    mean = x.mean(1, keepdim=True)
    variance = (x - mean).pow(2).mean(1, keepdim=True)
    return layers[0]((x - mean) / torch.sqrt(variance + 0.1))


def _response_norm(channels: int, _: random.Random) -> Built:
    return [_table(1, channels, 1, 1), _table(1, channels, 1, 1)], channels, 0


def _global_response(x: Tensor, layers: Any, _: Any) -> Tensor:
    """As ConvNeXt V2."""
    size = torch.norm(x, p=2, dim=(2, 3), keepdim=True)
    return x + layers[0][0] * (x * (size / (size.mean(1, keepdim=True) + 0.1))) + layers[1][0]


def _scaled(channels: int, _: random.Random) -> Built:
    return [_table(channels), nn.Conv2d(channels, channels, 1)], channels, 0


def _conditioned(channels: int, _: random.Random) -> Built:
    return [nn.Linear(channels, 2 * channels), nn.GroupNorm(1, channels, affine=False)], channels, 0


def _film(x: Tensor, layers: Any, _: Any) -> Tensor:
    scale, shift = layers[0](x.mean((2, 3)))[:, :, None, None].chunk(2, 1)
    return layers[1](x) * (1 + scale) + shift


# Squeezes, masks, pools, activations --------------------------------------------------------------------------------


def _squeeze(channels: int, choose: random.Random) -> Built:
    inner = choose.choice([2, 3])
    return [nn.AdaptiveAvgPool2d(1), nn.Linear(channels, inner), nn.Linear(inner, channels)], channels, 0


def _efficient(channels: int, _: random.Random) -> Built:
    return [nn.Conv1d(1, 1, 3, padding=1, bias=False)], channels, 0


def _eca(x: Tensor, layers: Any, _: Any) -> Tensor:
    """A convolution over the channels themselves."""
    y = layers[0](x.mean((2, 3)).unsqueeze(1)).squeeze(1)
    return x * torch.sigmoid(y)[:, :, None, None]


def _spatial(channels: int, _: random.Random) -> Built:
    return [nn.Conv2d(2, 1, 3, padding=1)], channels, 0


def _cbam(x: Tensor, layers: Any, _: Any) -> Tensor:
    pooled = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
    return x * torch.sigmoid(layers[0](pooled))


ACTIVATIONS: dict[str, Callable[[int], nn.Module]] = {
    "prelu": lambda _: nn.PReLU(init=0.2),
    "prelu for each": nn.PReLU,
    "hardswish": lambda _: nn.Hardswish(),
    "celu": lambda _: nn.CELU(),
    "softplus": lambda _: nn.Softplus(),
    "mish": lambda _: nn.Mish(),
    "threshold": lambda _: nn.Threshold(0.1, 0.2),
    "logsigmoid": lambda _: nn.LogSigmoid(),
    "dropout": lambda _: nn.Dropout(0.2),
    "dropout of channels": lambda _: nn.Dropout2d(0.2),
}


def _activated(channels: int, choose: random.Random) -> Built:
    return [ACTIVATIONS[choose.choice(list(ACTIVATIONS))](channels)], channels, 0


def _pooled(channels: int, choose: random.Random) -> Built:
    pool = choose.choice([nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(3, 1, 1), nn.LPPool2d(2, 1), nn.AdaptiveMaxPool2d(4)])
    return [pool], channels, 0


def _pyramid(channels: int, choose: random.Random) -> Built:
    new = choose.choice([2, 3])
    return [nn.Conv2d(channels, new, 1), nn.Conv2d(channels, new, 1)], channels + 2 * new, 0


def _pyramid_pool(x: Tensor, layers: Any, _: Any) -> Tensor:
    pooled = [layer(F.adaptive_avg_pool2d(x, size)) for layer, size in zip(layers, (1, 2), strict=True)]
    return torch.cat([x, *(F.interpolate(p, size=x.shape[2:], mode="bilinear") for p in pooled)], 1)


def _in_place_part(x: Tensor, layers: Any, half: int) -> Tensor:
    y = layers[0](x)
    y[:, :half] = torch.tanh(y[:, :half])
    y[:, half:] += x[:, half:]
    return y


def _half(channels: int, _: random.Random) -> Built:
    return [nn.Conv2d(channels, channels, 1)], channels, max(1, channels // 2)


def _written(x: Tensor, layers: Any, half: int) -> Tensor:
    out = torch.zeros_like(x)
    out[:, :half] = layers[0](x)[:, :half]
    out[:, half:, 1:] = x[:, half:, 1:]
    return out.mul_(0.5).add_(x)


def _token_write(x: Tensor, layers: Any, _: Any) -> Tensor:
    tokens = tokens_of(x).clone()
    tokens[:, ::2] = layers[0](tokens[:, 1::2])
    return image_of(tokens)


def _nearest_code(channels: int, _: random.Random) -> Built:
    return [nn.Embedding(5, channels), nn.Linear(channels, 5)], channels, 0


def _codes(x: Tensor, layers: Any, _: Any) -> Tensor:
    tokens = tokens_of(x)
    return image_of(tokens + layers[0](layers[1](tokens).argmax(-1)))


def _positions(channels: int, _: random.Random) -> Built:
    return [_table(1, 16, channels), nn.Embedding(16, channels)], channels, 0


def _placed(x: Tensor, layers: Any, _: Any) -> Tensor:
    places = torch.arange(16, device=x.device)
    return image_of(tokens_of(x) + layers[0][0] + layers[1](places))


def _sampled(x: Tensor, layers: Any, _: Any) -> Tensor:
    theta = torch.tensor([[0.9, 0.1, 0.0], [-0.1, 0.9, 0.1]], dtype=x.dtype).expand(x.shape[0], 2, 3)
    grid = F.affine_grid(theta, [x.shape[0], 1, 4, 4], align_corners=False)
    return layers[0](F.grid_sample(x, grid, align_corners=False))


def _early_results(x: Tensor, layers: Any, _: Any) -> Tensor:
    """Results in a dict and a named tuple on the way."""
    found = {"a": layers[0](x), "b": x}
    answer = Answer(found["a"] + found["b"], found["b"])
    first, *rest = answer
    return first * torch.sigmoid(rest[0])


def _spread(x: Tensor, layers: Any, _: Any) -> Tensor:
    deviation, mean = torch.std_mean(x, dim=1, keepdim=True)
    return layers[0](x * torch.sigmoid(mean) + deviation)


def _slots(channels: int, choose: random.Random) -> Built:
    new = choose.choice([2, 3])
    return [nn.Conv2d(channels, new * channels, 1)], channels, new


def _weighed_slots(x: Tensor, layers: Any, new: int) -> Tensor:
    parts = layers[0](x).unflatten(1, (new, x.shape[1]))
    return (parts.softmax(1) * parts).sum(1)


def _quantiles(x: Tensor, layers: Any, _: Any) -> Tensor:
    return layers[0](x.clamp(-1.5, 1.5).round(decimals=1) * 0.1 + x)


def _swin(x: Tensor, layers: Any, _: Any) -> Tensor:
    """Windows of 2 x 2, moved by one, each through a linear layer."""
    batch, channels = x.shape[:2]
    moved = torch.roll(x, (-1, -1), (2, 3)).view(batch, channels, 2, 2, 2, 2)
    windows = moved.permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, channels)
    y = layers[0](windows).view(batch, 2, 2, 2, 2, channels).permute(0, 5, 1, 3, 2, 4)
    return torch.roll(y.reshape(batch, channels, 4, 4), shifts=(1, 1), dims=(2, 3))


def _patches(channels: int, choose: random.Random) -> Built:
    new = _new(choose)
    return [nn.LayerNorm(4 * channels), nn.Linear(4 * channels, new, bias=False), nn.Upsample(scale_factor=2)], new, 0


def _merged_patches(x: Tensor, layers: Any, _: Any) -> Tensor:
    x = x.permute(0, 2, 3, 1)
    parts = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
    return layers[2](layers[1](layers[0](torch.cat(parts, -1))).permute(0, 3, 1, 2))


def _gather_constant(x: Tensor, layers: Any, _: Any) -> Tensor:
    index = layers[0].constant.view(1, -1, 1, 1).expand(x.shape[0], -1, 4, 4)
    return torch.gather(x, 1, index)


def _groups_first(x: Tensor, _: Any, groups: int) -> Tensor:
    parts = x.view(x.shape[0], groups, -1, 4, 4)
    return torch.cat([part.squeeze(1) for part in parts.split(1, 1)][::-1], 1)


def _group_means(x: Tensor, _: Any, groups: int) -> Tensor:
    parts = x.unflatten(1, (groups, x.shape[1] // groups))
    return (parts - parts.mean(2, keepdim=True)).flatten(1, 2)


def _distant(channels: int, _: random.Random) -> Built:
    return [_table(5, channels), nn.Linear(5, channels)], channels, 0


def _distances(x: Tensor, layers: Any, _: Any) -> Tensor:
    """Tokens as their distances from learned rows."""
    return x + image_of(layers[1](torch.cdist(tokens_of(x), layers[0][0])))


def _indexed(channels: int, choose: random.Random) -> Built:
    picked = [choose.randrange(channels) for _ in range(channels)]
    return [nn.Linear(channels, channels), _Constant(torch.tensor(picked))], channels, choose.choice([0, 1, 2])


def _last_looked_up(x: Tensor, layers: Any, way: int) -> Tensor:
    """Channels that are the last axis, looked up or turned round."""
    tokens, index = tokens_of(x), layers[1].constant
    moved = (lambda: tokens[..., index], lambda: tokens.index_select(2, index), lambda: tokens.flip(-1))[way]()
    return image_of(layers[0](torch.relu(moved)))


def _some_pixels(x: Tensor, layers: Any, way: int) -> Tensor:
    """Some rows of pixels are written by indices."""
    y, rows = layers[0](x), torch.tensor([2, 0])
    if way == 0:
        return x.index_add(2, rows, y[:, :, :2])
    if way == 1:
        return x.index_copy(3, rows, y[..., 1:3])
    return x.scatter_add(2, rows.view(1, 1, 2, 1).expand(x.shape[0], x.shape[1], 2, 4), y[:, :, 2:])


def _ways(channels: int, choose: random.Random) -> Built:
    return [nn.Conv2d(channels, channels, 1)], channels, choose.choice([0, 1, 2])


def _of_all_channels(x: Tensor, layers: Any, way: int) -> Tensor:
    """Numbers of all channels, which depend on how many there are."""
    found = (
        lambda: x.kthvalue(2, 1, keepdim=True)[0],
        lambda: torch.quantile(x, 0.3, dim=1, keepdim=True),
        lambda: torch.cumsum(x, 1).flip(1),
    )[way]()
    return layers[0](x - found)


def _unpooled(x: Tensor, layers: Any, _: Any) -> Tensor:
    # Where the numbers of a window are equal (resized maps, norms of two channels), rounding would choose between them.
    apart = torch.arange(x.shape[2] * x.shape[3], dtype=x.dtype).view(x.shape[2:])
    pooled, places = F.max_pool2d(x + 0.1 * apart, 2, return_indices=True)
    return x + F.max_unpool2d(layers[0](pooled), places, 2)


def _with_losses(x: Tensor, layers: Any, way: int) -> Tensor:
    """What a forward measures of itself scales what it gives."""
    y = layers[0](x)
    loss = (F.mse_loss, F.smooth_l1_loss, lambda a, b: F.pairwise_distance(a.flatten(1), b.flatten(1)).mean())[way]
    return y / (1 + loss(y, torch.tanh(x)))


_EDGE = 0.01
"""Not 0, which activations give: an edit whose result is rounded otherwise may give a little more or less than that."""

UNUSUAL: dict[str, tuple[Callable[[int, random.Random], Built], Callable[[Tensor, Any, Any], Tensor]]] = {
    # Convolutions, and weights that are computed.
    "grouped transposed": (_grouped_transposed, lambda x, n, _: n[0](x)),
    "depthwise transposed": (_depthwise_transposed, lambda x, n, _: n[1](n[0](x))),
    "dynamic convolution": (_dynamic, _dynamic_conv),
    "standardized weight": (_kernel, _standardized),
    "weight under a function": (_kernel, lambda x, n, _: F.conv2d(x, torch.tanh(n[0][0]), padding=1)),
    "modulated weight": (_modulated, _modulated_conv),
    "generated weight": (_generated, _hyper),
    "low-rank weight": (_low_rank, lambda x, n, _: F.conv2d(x, (n[0][0] @ n[1][0])[:, :, None, None])),
    "computed depthwise": (_computed_depthwise, _involution),
    "normed weight": (_normed_weight, lambda x, n, _: n[0](x)),
    "separable": (_separable, lambda x, n, _: n[2](torch.relu(n[1](n[0](x))))),
    "dilated": (_dilated, lambda x, n, _: n[0](x) + n[1](x)),
    "along one axis": (_along_one_axis, lambda x, n, _: n[1](torch.relu(n[0](x.flatten(2)))).unflatten(2, (4, 4))),
    "in depth": (_in_depth, lambda x, n, _: n[0](torch.stack([x, torch.flip(x, [2])], 2)).amax(2)),
    "channels as depth": (_channels_as_depth, lambda x, n, _: n[0](x.unsqueeze(1)).squeeze(1)),
    "unfolded": (_unfolded, lambda x, n, _: image_of(n[0](F.unfold(x, 3, padding=1).transpose(1, 2)))),
    "folded": (_nothing, lambda x, _n, _: F.fold(F.unfold(x, 3, padding=1), (4, 4), 3, padding=1) / 9),
    "asymmetric": (_asymmetric, lambda x, n, _: n[1](n[0](x))),
    "pixel shuffle": (_shuffled_up, lambda x, n, _: n[2](n[1](n[0](x)))),
    "pixel unshuffle": (_unshuffled, lambda x, n, _: n[2](n[1](n[0](x)))),
    "unshuffle and shuffle": (
        _there_and_back,
        lambda x, n, _: F.pixel_shuffle(torch.relu(n[0](F.pixel_unshuffle(x, 2))), 2),
    ),
    "strided pixels": (
        _there_and_back,
        lambda x, n, _: F.pixel_shuffle(
            n[0](torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)), 2
        ),
    ),
    # Weights that are shared.
    "tied transposed": (
        _tied_pair,
        lambda x, n, _: F.conv_transpose2d(torch.relu(n[1](n[0](x))), n[0].weight),
    ),
    "tied table": (_tied_table, lambda x, n, _: image_of(torch.relu(tokens_of(x) @ n[0][0].t()) @ n[0][0])),
    "shared weight": (_shared_weight, lambda x, n, _: image_of(n[1](torch.relu(n[0](tokens_of(x)))))),
    "symmetric weight": (_shared_weight, _symmetric),
    "twice": (_pointwise, lambda x, n, _: n[0](x) + n[0](torch.tanh(n[0](x)))),
    "siamese": (_pointwise, lambda x, n, _: (n[0](x) - 0.5 * n[0](x.flip(3))).abs()),
    # Channels that are moved, summed, sorted.
    "cumulated channels": (_pointwise, lambda x, n, _: n[0](torch.cumsum(x, 1))),
    "cumulated pixels": (_nothing, lambda x, _n, _: x.cumsum(3) / 4),
    "largest channel": (_gate_of_all, lambda x, n, _: x * torch.sigmoid(n[0](x.amax(1, keepdim=True)))),
    "largest channel and index": (_gate_of_all, lambda x, n, _: x + n[0](torch.max(x, 1, keepdim=True)[0])),
    "maxout": (_maxout, lambda x, n, d: n[0](x).view(x.shape[0], *d, 4, 4).max(2).values),
    "maxout by halves": (_halves, lambda x, n, _: torch.maximum(*n[0](x).chunk(2, 1))),
    "halves multiplied": (_halves, lambda x, n, _: F.glu(n[0](x), 1)),
    "halves by index": (
        _halves,
        lambda x, n, _: (p := torch.split(n[0](x), n[0].out_channels // 2, 1))[1].tanh() * p[0],
    ),
    "even and odd": (_pointwise, lambda x, n, _: torch.cat([(y := n[0](x))[:, ::2], y[:, 1::2]], 1)),
    "every second": (_picked, lambda x, _n, d: x[:, d[0] :: d[1]]),
    "narrow": (_narrowed, lambda x, _n, d: x.narrow(1, *d)),
    "without the first": (_nothing, lambda x, _n, _: torch.cat([x[:, 1:], x[:, :1] * 2], 1)),
    "flipped channels": (_pointwise, lambda x, n, _: n[0](torch.flip(x, [1])) + x),
    "flipped pixels": (_nothing, lambda x, _n, _: x + x.flip(-1)),
    "rolled channels": (_rolled, lambda x, _n, d: x + torch.roll(x, d, 1)),
    "rolled pixels": (_rolled, lambda x, _n, d: torch.roll(x, shifts=(d, 1), dims=(2, 3))),
    "shifted windows": (_linear, _swin),
    "merged patches": (_patches, _merged_patches),
    "looked up": (_looked_up, lambda x, n, _: x[:, n[0].constant]),
    "looked up by a list": (_looked_up, lambda x, _n, picked: x[:, picked]),
    "index select": (_looked_up, lambda x, n, _: x.index_select(1, n[0].constant)),
    "gathered": (_looked_up, _gather_constant),
    "repeated": (_repeated, lambda x, _n, d: x.repeat(1, 2, 1, 1) if d == 1 else x.repeat_interleave(2, dim=1)),
    "with itself": (_repeated, lambda x, _n, _: torch.cat([x, torch.relu(x)], 1)),
    "groups turned": (_pieces, _groups_first),
    "means of groups": (_pieces, _group_means),
    "unbound groups": (_pieces, lambda x, _n, g: sum(x.unflatten(1, (g, -1)).unbind(1)).repeat(1, g, 1, 1)),
    "experts": (_experts, _mixture),
    "slots": (_slots, _weighed_slots),
    "outer product": (_two_features, _outer_product),
    "gram matrix": (_two_features, _gram),
    "bilinear": (_bilinear, lambda x, n, _: image_of(n[0](tokens_of(x), tokens_of(torch.tanh(x))))),
    "einsum": (_weighted_einsum, lambda x, n, equation: torch.einsum(equation, x, n[0][0])),
    "tensordot": (_weighted_einsum, lambda x, n, _: torch.tensordot(x, n[0][0], ([1], [1])).permute(0, 3, 1, 2)),
    "sorted": (_pointwise, _ordered),
    "highest two": (_gate_of_all, _highest),
    "transformed channels": (_linear, _fft_of_channels),
    "global filter": (_global_filter, _filtered),
    "bytes and back": (_nothing, lambda x, _n, _: x.contiguous().view(torch.uint8).view(x.dtype)),
    "integers and back": (_pointwise, lambda x, n, _: n[0](x) * (x > _EDGE).to(x.dtype) + (x > 1).long().type_as(x)),
    # Recurrences and attention.
    "recurrent": (_recurrent, lambda x, n, _: image_of(n[0](tokens_of(x))[0])),
    "recurrent last": (_recurrent, lambda x, n, _: n[0](tokens_of(x))[0][:, -1, :, None, None].expand(-1, -1, 4, 4)),
    "recurrent by hand": (_cells, _by_hand),
    "attention, packed": (_heads, _packed_attention),
    "attention, chunked": (_heads, _chunked_attention),
    "attention by einsum": (_heads, _einsum_attention),
    "linear attention": (_heads, _linear_attention),
    "attention under a mask": (_heads, _masked_attention),
    "multi-query attention": (_one_key, _multi_query),
    "attention of channels": (_three, _channel_attention),
    "non-local": (_three, _non_local),
    "learned queries": (_cross, _learned_queries),
    "rotary attention": (_rotary, _rotated),
    "encoder layer": (_encoder, lambda x, n, _: image_of(n[0](tokens_of(x)))),
    "mixed tokens": (
        _token_mixer,
        lambda x, n, _: x + n[2](F.gelu(n[1](n[0](tokens_of(x)).transpose(1, 2)))).unflatten(2, (4, 4)),
    ),
    "class token": (_class_token, _with_a_token),
    # Norms and scales.
    "norm": (_normed, lambda x, n, _: n[0](x)),
    "norm of the last axis": (_normed_last, lambda x, n, _: n[0](x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)),
    "norm by hand": (_pointwise, _norm_by_hand),
    "normalized": (_nothing, lambda x, _n, _: F.normalize(x, dim=1)),
    "global response norm": (_response_norm, _global_response),
    "layer scale": (_scaled, lambda x, n, _: x + n[0][0].view(-1, 1, 1) * n[1](x)),
    "conditioned": (_conditioned, _film),
    "spread": (_pointwise, _spread),
    # Squeezes, masks, pools, activations, writes.
    "squeeze and excite": (
        _squeeze,
        lambda x, n, _: x * torch.sigmoid(n[2](F.silu(n[1](n[0](x).flatten(1))))).view(x.shape[0], -1, 1, 1),
    ),
    "efficient attention": (_efficient, _eca),
    "spatial attention": (_spatial, _cbam),
    "softmax of channels": (_pointwise, lambda x, n, _: n[0](x.softmax(1)) + x),
    "softmax of pixels": (
        _pointwise,
        lambda x, n, _: x + (x * n[0](x).flatten(2).softmax(2).view_as(x)).sum((2, 3), True),
    ),
    "log-sum of channels": (_gate_of_all, lambda x, n, _: x * torch.tanh(n[0](x.logsumexp(1, keepdim=True)))),
    "activation": (_activated, lambda x, n, _: n[0](x)),
    "mean of pixels": (_nothing, lambda x, _n, _: x.mean((2, 3), keepdim=True).expand(-1, -1, 4, 4)),
    "pool": (_pooled, lambda x, n, _: n[0](x)),
    "pool and enlarge": (_pointwise, lambda x, n, _: x + F.interpolate(n[0](F.max_pool2d(x, 2)), scale_factor=2.0)),
    "pyramid": (_pyramid, _pyramid_pool),
    "where": (_pointwise, lambda x, n, _: torch.where(x > _EDGE, n[0](x), x * 0.1)),
    "masked": (_pointwise, lambda x, n, _: n[0](x).masked_fill(x < -1, 0.5)),
    "written in part": (_half, _in_place_part),
    "written into zeros": (_half, _written),
    "written tokens": (_linear, _token_write),
    "codes": (_nearest_code, _codes),
    "positions": (_positions, _placed),
    "sampled": (_pointwise, _sampled),
    "results by name": (_pointwise, _early_results),
    "clamped": (_pointwise, _quantiles),
    "distances": (_distant, _distances),
    "looked up, channels last": (_indexed, _last_looked_up),
    "written by indices": (_ways, _some_pixels),
    "of all channels": (_ways, _of_all_channels),
    "unpooled": (_pointwise, _unpooled),
    "with losses": (_ways, _with_losses),
    "special functions": (_pointwise, lambda x, n, _: torch.special.i0e(n[0](x)) * x + torch.special.ndtr(x)),
    "normalized as a whole": (_nothing, lambda x, _n, _: F.normalize(x, dim=(1, 2, 3)) * 4),
    "slice written": (_half, lambda x, n, half: torch.slice_scatter(x, n[0](x)[:, :half], 1, 0, half)),
    "diagonal of pixels": (_nothing, lambda x, _n, _: x + x.diagonal(dim1=2, dim2=3)[..., None]),
    "difference of halves": (_even, lambda x, _n, half: torch.cat([x[:, :half] - x[:, half:], x[:, half:]], 1)),
}  # fmt: skip

BUILD: dict[str, Any] = STEPS | SHUFFLES | INDEXED | {name: build for name, (build, _) in UNUSUAL.items()}
FORWARDS: dict[str, Any] = FORWARD | {name: forward for name, (_, forward) in UNUSUAL.items()}
KINDS = list(BUILD)
