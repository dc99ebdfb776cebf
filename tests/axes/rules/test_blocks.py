"""The building blocks of published architectures: their channels follow, in every form that is common."""

import pytest
import torch
import torch.nn.functional as F
from contracts import Network, assert_contracts
from torch import nn

HEADS, SIZE = 4, 2
WIDTH = HEADS * SIZE


def tokens(forward, parameters=(), after=WIDTH, **layers):
    """A block on `[batch, tokens, 8]`, between two linear layers."""
    zeros = {name: torch.zeros(*shape) for name, shape in dict(parameters).items()}
    return Network(
        lambda n, x: n.out(forward(n, torch.tanh(n.stem(x)))),
        zeros, stem=nn.Linear(3, WIDTH), out=nn.Linear(after, 2), **layers,
    )  # fmt: skip


def images(forward, parameters=(), after=WIDTH, **layers):
    """A block on `[batch, 8, height, width]`, between two convolutions."""
    zeros = {name: torch.zeros(*shape) for name, shape in dict(parameters).items()}
    return Network(
        lambda n, x: n.out(forward(n, torch.tanh(n.stem(x)))),
        zeros, stem=nn.Conv2d(3, WIDTH, 1), out=nn.Conv2d(after, 2, 1), **layers,
    )  # fmt: skip


def packed(n, x):
    """Queries, keys and values `[batch, heads, tokens, size]`."""
    batch, count, width = x.shape
    qkv = n.qkv(x).reshape(batch, count, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
    return qkv[0], qkv[1], qkv[2]


def joined(x):
    return x.transpose(1, 2).flatten(2)


def attention(n, x):
    q, k, v = packed(n, x)
    return n.proj(joined((q @ k.transpose(-2, -1) * SIZE**-0.5).softmax(-1) @ v))


def cross_covariance(n, x):
    q, k, v = (part.transpose(-2, -1) for part in packed(n, x))
    weights = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * n.temperature
    return n.proj((weights.softmax(-1) @ v).permute(0, 3, 1, 2).flatten(2))


def talking_heads(n, x):
    q, k, v = packed(n, x)
    scores = n.pre((q @ k.transpose(-2, -1)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2).softmax(-1)
    return n.proj(joined(n.post(scores.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) @ v))


def relative_table(n, x):
    q, k, v = packed(n, x)
    index = torch.arange(16).view(4, 4) % 7
    bias = n.table[index.view(-1)].view(4, 4, -1).permute(2, 0, 1).contiguous()
    return n.proj(joined(F.scaled_dot_product_attention(q, k, v, attn_mask=bias.unsqueeze(0))))


def rotary(n, x):
    q, k, v = packed(n, x)
    angle = torch.arange(4.0, dtype=x.dtype)[:, None] * n.frequency
    sine, cosine = angle.sin().repeat_interleave(2, -1), angle.cos().repeat_interleave(2, -1)

    def turned(y):
        return y * cosine + torch.stack([-y[..., 1::2], y[..., ::2]], -1).reshape(y.shape) * sine

    return n.proj(joined(F.scaled_dot_product_attention(turned(q), turned(k), v)))


def rotary_halves(n, x):
    q, k, v = packed(n, x)
    angle = torch.outer(torch.arange(4.0, dtype=x.dtype), n.frequency)
    sine, cosine = (torch.cat([part, part], -1) for part in (angle.sin(), angle.cos()))

    def turned(y):
        first, second = y.chunk(2, -1)
        return y * cosine + torch.cat([-second, first], -1) * sine

    return n.proj(joined(F.scaled_dot_product_attention(turned(q), turned(k), v)))


def class_attention(n, x):
    whole = torch.cat([n.cls.expand(x.shape[0], -1, -1), x], 1)
    q = n.q(whole[:, 0]).unsqueeze(1).reshape(x.shape[0], 1, HEADS, -1).permute(0, 2, 1, 3)
    k, v = (part(whole).unflatten(-1, (HEADS, SIZE)).transpose(1, 2) for part in (n.k, n.v))
    pooled = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape[0], 1, WIDTH)
    return torch.cat([n.proj(pooled), x], 1)


def multi_query(n, x):
    q = n.q(x).unflatten(-1, (HEADS, SIZE)).transpose(1, 2)
    k, v = n.k(x).unsqueeze(1), n.v(x).unsqueeze(1)
    return n.proj(joined(F.scaled_dot_product_attention(q, k, v)))


def linear_attention(n, x):
    q, k, v = packed(n, x)
    q, k, v = F.relu(q), F.relu(k), F.pad(v, (0, 1), value=1.0)
    summed = q @ (k.transpose(-2, -1) @ v)
    return n.proj(joined(summed[..., :-1] / (summed[..., -1:] + 1)))


def channel_attention(n, x):
    q, k, v = packed(n, x)
    weights = ((q * 4**-0.5).transpose(-1, -2) @ k).softmax(-1)
    return n.proj(joined((weights @ v.transpose(-1, -2)).transpose(-1, -2)))


def pooled_queries(n, x):
    q, k, v = packed(n, x)
    batch = x.shape[0]
    q = n.pool(q.reshape(batch * HEADS, 2, 2, SIZE).permute(0, 3, 1, 2).contiguous())
    q = n.norm(q.reshape(batch, HEADS, SIZE, -1).transpose(2, 3))
    return n.proj(joined(F.scaled_dot_product_attention(q, k, v)))


def gated_tokens(n, x):
    u, v = n.wide(x).chunk(2, -1)
    return n.proj(u * n.tokens(n.norm(v).transpose(-1, -2)).transpose(-1, -2))


def gated_linear(n, x):
    first, second = n.wide(x).chunk(2, -1)
    return n.proj(F.silu(first) * second)


def global_response(n, x):
    h = n.up(x)
    norm = h.norm(p=2, dim=1, keepdim=True)
    return n.down(h + torch.addcmul(n.bias, n.weight, h * (norm / (norm.mean(dim=-1, keepdim=True) + 1e-6))))


def swapped_tokens(n, x):
    return x + n.second(F.gelu(n.first(x.transpose(1, 2)))).transpose(1, 2)


QKV = {"qkv": nn.Linear(WIDTH, 3 * WIDTH), "proj": nn.Linear(WIDTH, WIDTH)}
APART = {name: nn.Linear(WIDTH, WIDTH) for name in ("q", "k", "v", "proj")}
TOKENS = {
    "attention": (attention, {}, QKV),
    "cross-covariance attention": (cross_covariance, {"temperature": (HEADS, 1, 1)}, QKV),
    "talking heads": (talking_heads, {}, QKV | {"pre": nn.Linear(HEADS, HEADS), "post": nn.Linear(HEADS, HEADS)}),
    "a table of relative positions": (relative_table, {"table": (7, HEADS)}, QKV),
    "rotary embedding": (rotary, {"frequency": (SIZE // 2,)}, QKV),
    "rotary embedding of halves": (rotary_halves, {"frequency": (SIZE // 2,)}, QKV),
    "class attention": (class_attention, {"cls": (1, 1, WIDTH)}, APART),
    "multi-query attention": (
        multi_query, {},
        {"q": nn.Linear(WIDTH, WIDTH), "k": nn.Linear(WIDTH, SIZE), "v": nn.Linear(WIDTH, SIZE),
         "proj": nn.Linear(WIDTH, WIDTH)},
    ),
    "linear attention": (linear_attention, {}, QKV),
    "channel attention": (channel_attention, {}, QKV),
    "pooled queries": (
        pooled_queries, {}, QKV | {"pool": nn.Conv2d(SIZE, SIZE, 3, 1, 1, groups=SIZE), "norm": nn.LayerNorm(SIZE)},
    ),
    "gates between tokens": (
        gated_tokens, {},
        {"wide": nn.Linear(WIDTH, 12), "norm": nn.LayerNorm(6), "tokens": nn.Linear(4, 4),
         "proj": nn.Linear(6, WIDTH)},
    ),
    "gated linear units": (gated_linear, {}, {"wide": nn.Linear(WIDTH, 12), "proj": nn.Linear(6, WIDTH)}),
    "global response norm": (
        global_response, {"weight": (1, 1, 12), "bias": (1, 1, 12)},
        {"up": nn.Linear(WIDTH, 12), "down": nn.Linear(12, WIDTH)},
    ),
    "mixing of tokens": (swapped_tokens, {}, {"first": nn.Linear(4, 6), "second": nn.Linear(6, 4)}),
    "layer scale": (lambda n, x: x + n.gamma * n.proj(x), {"gamma": (WIDTH,)}, {"proj": nn.Linear(WIDTH, WIDTH)}),
}  # fmt: skip


@pytest.mark.parametrize("name", TOKENS)
def test_blocks_on_tokens(name):
    forward, parameters, layers = TOKENS[name]
    graph = assert_contracts(tokens(forward, parameters, **layers), (4, 3))
    assert graph.space("stem").size == WIDTH
    heads = [s for s in graph.spaces if s.name == "qkv"]
    assert all((s.size, s.outer) == (HEADS, True) for s in heads)


def squeeze(n, x):
    return x * n.up(F.relu(n.down(x.mean((2, 3), keepdim=True)))).sigmoid()


def selective_kernel(n, x):
    branches = torch.stack([n.small(x), n.large(x)], 1)
    gates = n.up(F.relu(n.down(branches.sum(1).mean((2, 3), keepdim=True))))
    gates = gates.view(x.shape[0], 2, x.shape[1], 1, 1).softmax(1)
    return (branches * gates).sum(1)


def hierarchical(n, x):
    first, second, third, last = torch.split(x, 2, 1)
    second = n.a(second)
    third = n.b(second + third)
    return torch.cat([n.c(third + last), second, third, first], 1)


def dual_path(n, x):
    residual, dense = x[:, :6], x[:, 6:]
    new = n.c(F.relu(n.b(x)))
    return torch.cat([residual + new[:, :6], dense, new[:, 6:]], 1)


def partial(n, x):
    return n.mix(F.relu(n.norm(torch.cat([n.deep(x).relu(), n.side(x)], 1))))


def only_some(n, x):
    first, rest = torch.split(x, [2, 6], 1)
    return x + n.c(F.relu(n.b(torch.cat([n.a(first), rest], 1))))


def ghost(n, x):
    first = F.relu(n.a(x))
    return torch.cat([first, F.relu(n.cheap(first))], 1)[:, :7]


def branches(n, x):
    return F.relu(n.norm(x) + n.one(x) + n.three(x))


def blurred(n, x):
    return F.conv2d(F.pad(x, (1, 1, 1, 1), "reflect"), n.kernel.expand(WIDTH, 1, 3, 3), stride=2, groups=x.shape[1])


def windows(n, x):
    batch, width, height, _ = x.shape
    parts = x.permute(0, 2, 3, 1).reshape(batch, height // 2, 2, height // 2, 2, width)
    parts = parts.permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, width)
    mixed = attention(n, torch.roll(parts, 1, 1))
    mixed = mixed.view(-1, height // 2, height // 2, 2, 2, width).permute(0, 1, 3, 2, 4, 5)
    return mixed.reshape(batch, height, height, width).permute(0, 3, 1, 2)


def halo(n, x):
    batch, _, height, width = x.shape
    q = n.q(x).reshape(-1, SIZE, 2, 2, 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(batch * HEADS, SIZE, -1, 4)
    q = q.transpose(1, 3)
    kv = F.pad(n.kv(x), [1, 1, 1, 1]).unfold(2, 4, 2).unfold(3, 4, 2)
    kv = kv.reshape(batch * HEADS, 2 * SIZE, 4, -1).permute(0, 2, 3, 1)
    k, v = torch.split(kv, [SIZE, SIZE], -1)
    mixed = (q.transpose(1, 2) @ k.transpose(-1, -2)).softmax(-1) @ v
    mixed = mixed.transpose(1, 3).reshape(-1, 2, 2, 2, 2)
    return mixed.permute(0, 3, 1, 4, 2).contiguous().view(batch, WIDTH, height, width)


def lambdas(n, x):
    batch, _, height, width = x.shape
    q, k, v = torch.split(n.qkv(x), [HEADS * 2, 2, SIZE], 1)
    q = n.norm_q(q).reshape(batch, HEADS, 2, -1).transpose(-1, -2)
    v = n.norm_v(v).reshape(batch, SIZE, -1).transpose(-1, -2)
    k = F.softmax(k.reshape(batch, 2, -1), dim=-1)
    content = q @ (k @ v).unsqueeze(1)
    near = n.near(v.reshape(batch, 1, height, width, SIZE))
    near = near.reshape(batch, 1, 2, height * width, SIZE).transpose(2, 3)
    position = (q.unsqueeze(-2) @ near).squeeze(-2)
    return (content + position).transpose(-1, -2).reshape(batch, WIDTH, height, width)


def outlook(n, x):
    batch = x.shape[0]
    y = x.permute(0, 2, 3, 1)
    v = F.unfold(n.v(y).permute(0, 3, 1, 2), 3, padding=1).reshape(batch, HEADS, SIZE, 9, 16).permute(0, 1, 4, 3, 2)
    weights = n.a(y).reshape(batch, 16, HEADS, 9, 9).permute(0, 2, 1, 3, 4).softmax(-1)
    mixed = (weights @ v).permute(0, 1, 4, 3, 2).reshape(batch, WIDTH * 9, 16)
    return F.fold(mixed, (4, 4), 3, padding=1)


def focal(n, x):
    q, context, gates = torch.split(n.f(x), [WIDTH, WIDTH, 2], 1)
    near = F.gelu(n.near(context))
    far = F.gelu(near.mean((2, 3), keepdim=True))
    return n.proj(q * n.h(near * gates[:, 0:1] + far * gates[:, 1:2]))


def depth(n, x):
    batch, width, height, _ = x.shape
    parts = x.view(batch, width, height // 2, 2, height // 2, 2).permute(0, 3, 5, 1, 2, 4).contiguous()
    return n.mix(parts.view(batch, width * 4, height // 2, height // 2))


def merged(n, x):
    y = x.permute(0, 2, 3, 1)
    parts = torch.cat([y[:, 0::2, 0::2], y[:, 1::2, 0::2], y[:, 0::2, 1::2], y[:, 1::2, 1::2]], -1)
    return n.reduce(n.norm(parts)).permute(0, 3, 1, 2)


def neighbours(n, x):
    gates = n.c(x.mean((2, 3)).view(x.shape[0], 1, -1)).view(x.shape[0], -1, 1, 1)
    return x * gates.sigmoid().expand_as(x)


def conv(inputs, outputs, kernel=1, groups=1):
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups)


IMAGES = {
    "squeeze and excitation": (squeeze, {}, {"down": conv(WIDTH, 4), "up": conv(4, WIDTH)}),
    "selective kernels": (
        selective_kernel, {},
        {"small": conv(WIDTH, WIDTH), "large": conv(WIDTH, WIDTH, 3), "down": conv(WIDTH, 4), "up": conv(4, 16)},
    ),
    "hierarchical residuals": (hierarchical, {}, {name: conv(2, 2, 3) for name in "abc"}),
    "dual paths": (dual_path, {}, {"b": conv(WIDTH, 4, 3), "c": conv(4, WIDTH)}),
    "cross-stage partial": (
        partial, {},
        {"deep": conv(WIDTH, 4), "side": conv(WIDTH, 4), "norm": nn.BatchNorm2d(8), "mix": conv(8, WIDTH)},
    ),
    "partial convolution": (only_some, {}, {"a": conv(2, 2, 3), "b": conv(WIDTH, 12), "c": conv(12, WIDTH)}),
    "ghosts": (ghost, {}, {"a": conv(WIDTH, 4), "cheap": conv(4, 4, 3, 4)}),
    "branches": (
        branches, {}, {"norm": nn.BatchNorm2d(WIDTH), "one": conv(WIDTH, WIDTH), "three": conv(WIDTH, WIDTH, 3)},
    ),
    "blur": (blurred, {"kernel": (1, 1, 3, 3)}, {}),
    "windows": (windows, {}, QKV),
    "halo attention": (halo, {}, {"q": conv(WIDTH, WIDTH), "kv": conv(WIDTH, 2 * WIDTH)}),
    "lambda layer": (
        lambdas, {},
        {"qkv": conv(WIDTH, HEADS * 2 + 2 + SIZE), "norm_q": nn.BatchNorm2d(HEADS * 2),
         "norm_v": nn.BatchNorm2d(SIZE), "near": nn.Conv3d(1, 2, (3, 3, 1), padding=(1, 1, 0))},
    ),
    "outlook attention": (outlook, {}, {"v": nn.Linear(WIDTH, WIDTH), "a": nn.Linear(WIDTH, HEADS * 81)}),
    "focal modulation": (
        focal, {},
        {"f": conv(WIDTH, 2 * WIDTH + 2), "near": conv(WIDTH, WIDTH, 3, WIDTH), "h": conv(WIDTH, WIDTH),
         "proj": conv(WIDTH, WIDTH)},
    ),
    "space to depth": (depth, {}, {"mix": conv(4 * WIDTH, WIDTH)}),
    "patch merging": (merged, {}, {"norm": nn.LayerNorm(4 * WIDTH), "reduce": nn.Linear(4 * WIDTH, WIDTH)}),
}  # fmt: skip
AFTER = {"ghosts": 7, "dual paths": 10}


@pytest.mark.parametrize("name", IMAGES)
def test_blocks_on_images(name):
    forward, parameters, layers = IMAGES[name]
    graph = assert_contracts(images(forward, parameters, AFTER.get(name, WIDTH), **layers), (3, 4, 4))
    assert sum(s.size for s in graph.spaces if "stem" in s.writers) >= 6


def test_gates_from_neighbouring_channels_freeze_them():
    graph = assert_contracts(images(neighbours, c=nn.Conv1d(1, 1, 3, padding=1)), (3, 4, 4))
    assert not graph.spaces
    assert graph.frozen == (("c", "an axis that a convolution slides over"),)
