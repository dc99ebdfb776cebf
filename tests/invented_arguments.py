"""Arguments for every call of torch: by the names of its parameters, and written out where these do not tell."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Value = Callable[[Tensor], Any]


def _same(value: Any) -> Value:
    return lambda _: value


def like(h: Tensor) -> Tensor:
    return torch.tanh(2 * h + 0.1)


def positive(h: Tensor) -> Tensor:
    return h * h + 0.1


def _ones(*shape: int) -> Value:
    return lambda h: torch.linspace(0.5, 1.5, int(torch.Size(shape).numel()), dtype=h.dtype).view(shape)


def _places(_: Tensor) -> Tensor:
    return torch.tensor([2, 0, 1, 3])


DIM = [_same(1), _same(-1), _same(0)]
ALIKE = [like, _same(2.0), _same(2)]
ARGUMENTS: dict[str, list[Value]] = {
    "dim": DIM, "other": [*ALIKE, lambda h: h > 0], "exponent": [_same(2.0)], "end": [like], "y": [like],
    "q": [_same(0.5)],
    "x2": [like], "input2": [like], "mat2": [like], "tensor1": [like], "tensor2": [positive], "vec2": [like],
    "target": [like, lambda h: h.mean((1, 2, 3)).gt(0).long()], "dims": [_same((1,)), _same((0, 2, 1))],
    "dim0": [_same(1)], "dim1": [_same(-1)], "axis0": [_same(1)], "axis1": [_same(-1)],
    "kernel_size": [_same(2)], "output_size": [_same(4), _same((2, 2)), _same((2, 2, 2))],
    "p": [_same(0.1), _same(2.0)], "train": [_same(False)], "n": [_same(2), like],
    "mask": [lambda h: h > 0], "value": [_same(0.5)], "threshold": [_same(0.1)],
    "chunks": [_same(2)], "split_size_or_sections": [_same(4), _same([3, 5])],
    "split_size": [_same(4)], "split_sizes": [_same([3, 5])],
    "max": [_same(0.5)], "min": [_same(-0.5)], "values": [like],
    "destination": [_same(-1)], "source": [_same(1)],
    "start": [_same(1)], "length": [_same(3)], "k": [_same(3)], "maxnorm": [_same(1.0)],
    "shape": [lambda h: (h.shape[0], -1)],
    "shifts": [_same(1)], "size": [lambda h: (h.shape[0], *h.shape[1:])], "sizes": [_same((2, 4))],
    "dimension": [_same(1)],
    "groups": [_same(2)], "upscale_factor": [_same(2)], "downscale_factor": [_same(2)], "boundaries": [_ones(5)],
    "imag": [like], "ang": [like], "fill_value": [_same(0.3)], "reps": [_same((1, 2))], "step": [_same(2)],
    "norm_type": [_same(2.0)], "indices_or_sections": [_same(2)], "num_groups": [_same(2)], "input": [like],
    "test_elements": [like], "te": [like], "positive": [like],
    "negative": [lambda h: like(h.flip(0))], "prob": [positive],
    "normalized_shape": [lambda h: h.shape[-1:]], "dtype": [_same(torch.float64)], "weight": [_ones(8)],
    "vec": [_ones(8)], "num_samples": [_same(2)], "var": [positive], "pad": [_same((1, 1))],
}  # fmt: skip
"""Values by the name of a parameter, the likely ones first."""


def _spd(h: Tensor) -> Tensor:
    """A positive definite matrix for each example, of a square."""
    return h @ h.mT + torch.eye(h.shape[-1], dtype=h.dtype)


def labels(h: Tensor) -> Tensor:
    return torch.arange(h.shape[0]) % 8


def _two(target: Any, h: Tensor) -> Any:
    return target([h, like(h)])


def _by_index(target: Any, h: Tensor) -> Any:
    return target(h, 1, _places(h), like(h)[:, :4])


def _index(h: Tensor) -> Tensor:
    return (torch.arange(h[0].numel()) % 8).view(1, *h.shape[1:]).expand(h.shape)


def _cell(gates: int, lstm: bool = False) -> Callable[[Any, Tensor], Any]:
    def call(target: Any, h: Tensor) -> Any:
        state = (h[:, :4], h[:, 4:]) if lstm else h[:, :4]
        return target(h, state, _ones(4 * gates, 8)(h), _ones(4 * gates, 4)(h))

    return call


def _recurrent(t: Any, h: Tensor) -> Any:
    gates = {torch.gru: 3, torch.lstm: 4}.get(t, 1)
    weights = [_ones(gates * 8, 8)(h), _ones(gates * 8, 8)(h)]
    state = h.mean(1).unsqueeze(0)
    return t(h, (state, state) if t is torch.lstm else state, weights, False, 1, 0.0, False, False, True)


SPECIAL: dict[str, tuple[str, Callable[[Any, Tensor], Any]]] = {
    "addbmm": ("square", lambda t, h: t(h[0], h, like(h))),
    "addmm": ("vector", lambda t, h: t(h, like(h), _spd(_ones(8, 8)(h)))),
    "addmv": ("vector", lambda t, h: t(h.mean(1), like(h), _ones(8)(h))),
    "addr": ("vector", lambda t, h: t(h, h.mean(1), _ones(8)(h))),
    "affine_grid": ("image", lambda t, h: t(_matrices(h), [h.shape[0], 1, 4, 4], align_corners=False)),
    "affine_grid_generator": ("image", lambda t, h: t(_matrices(h), [h.shape[0], 1, 4, 4], False)),
    "allclose": ("image", lambda t, h: t(h, h)),
    "as_strided": ("image", lambda t, h: t(h.contiguous(), h.shape, h.contiguous().stride())),
    "as_strided_scatter": ("image", lambda t, h: t(h, like(h), h.shape, h.contiguous().stride())),
    "batch_norm": ("image", lambda t, h: _batch_norm(t, h)),
    "bilinear": ("vector", lambda t, h: t(h, like(h), _ones(8, 8, 8)(h))),
    "block_diag": ("vector", lambda t, h: t(h, _ones(8, 8)(h))),
    "cat": ("image", lambda t, h: t([h, like(h)], 1)),
    "concat": ("image", lambda t, h: t([h, like(h)], 1)),
    "concatenate": ("image", lambda t, h: t([h, like(h)], 1)),
    "channel_shuffle": ("image", lambda t, h: t(h, 2)),
    "cholesky": ("square", lambda t, h: t(_spd(h))),
    "cholesky_ex": ("square", lambda t, h: t(_spd(h))),
    "cholesky_inverse": ("square", lambda t, h: t(_spd(h))),
    "cholesky_solve": ("square", lambda t, h: t(h, _spd(h))),
    "clamp": ("image", lambda t, h: t(h, -0.5, 0.5)),
    "clip": ("image", lambda t, h: t(h, -0.5, 0.5)),
    "column_stack": ("image", _two),
    "constant_pad_nd": ("image", lambda t, h: t(h, [1, 1])),
    "conv1d": ("sequence", lambda t, h: t(h, _ones(6, 8, 1)(h))),
    "conv2d": ("image", lambda t, h: t(h, _ones(6, 8, 1, 1)(h))),
    "conv3d": ("volume", lambda t, h: t(h, _ones(6, 8, 1, 1, 1)(h))),
    "conv_transpose1d": ("sequence", lambda t, h: t(h, _ones(8, 6, 1)(h))),
    "conv_transpose2d": ("image", lambda t, h: t(h, _ones(8, 6, 1, 1)(h))),
    "conv_transpose3d": ("volume", lambda t, h: t(h, _ones(8, 6, 1, 1, 1)(h))),
    "conv_tbc": ("square", lambda t, h: t(h, _ones(1, 8, 8)(h), _ones(8)(h))),
    "convolution": (
        "image",
        lambda t, h: t(h, _ones(6, 8, 1, 1)(h), None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1),
    ),
    "copy": ("image", lambda t, h: t(h, like(h))),
    "cosine_embedding_loss": ("vector", lambda t, h: t(h, like(h), signs(h))),
    "cov": ("image", lambda t, h: t(h[0, :, 0])),
    "cross": ("sequence", lambda t, h: t(h[:, :3], like(h)[:, :3], dim=1)),
    "cross_entropy": ("vector", lambda t, h: t(h, labels(h))),
    "diag": ("vector", lambda t, h: t(h)),
    "diagonal_scatter": ("image", lambda t, h: t(h, h[:, :, 0], 0, 2, 3)),
    "diagonal": ("image", lambda t, h: t(h) if t is torch.linalg.diagonal else t(h, 0, 2, 3)),
    "dist": ("image", lambda t, h: t(h, like(h))),
    "dot": ("vector", lambda t, h: t(h[0], like(h)[0])),
    "dsplit": ("image", lambda t, h: t(h, 2)),
    "dstack": ("image", _two),
    "einsum": ("vector", lambda t, h: t("bc,oc->bo", h, _ones(6, 8)(h))),
    "embedding": ("tokens", lambda t, h: _embedded(t, h)),
    "embedding_bag": ("vector", lambda _, h: F.embedding_bag(labels(h).unsqueeze(1) % 3, h)),
    "embedding_renorm": ("vector", lambda t, h: t(_ones(3, 8)(h) + h[:1], torch.tensor([0, 1]), 1.0, 2.0)),
    "expand": ("image", lambda t, h: t(h.unsqueeze(1), -1, 2, -1, -1, -1).flatten(1, 2)),
    "fill": ("image", lambda t, h: t(h, 0.5)),
    "flatten": ("image", lambda t, h: t(h, 1)),
    "fold": ("sequence", lambda t, h: t(h, (4, 4), 2, stride=2)),
    "fractional_max_pool2d": ("image", lambda t, h: t(h, 2, output_size=2)),
    "fractional_max_pool2d_with_indices": ("image", lambda t, h: t(h, 2, output_size=2)),
    "fractional_max_pool3d": ("volume", lambda t, h: t(h, (1, 2, 2), output_size=(1, 2, 2))),
    "fractional_max_pool3d_with_indices": ("volume", lambda t, h: t(h, (1, 2, 2), output_size=(1, 2, 2))),
    "frobenius_norm": ("image", lambda t, h: t(h, [2, 3])),
    "gather": ("image", lambda t, h: t(h, 1, _index(h))),
    "gaussian_nll_loss": ("image", lambda t, h: t(h, like(h), positive(h))),
    "gru_cell": ("vector", _cell(3)),
    "lstm_cell": ("vector", _cell(4, True)),
    "rnn_relu_cell": ("vector", _cell(1)),
    "rnn_tanh_cell": ("vector", _cell(1)),
    **dict.fromkeys(("gru", "lstm", "rnn_relu", "rnn_tanh"), ("square", _recurrent)),
    "vander": ("vector", lambda t, h: t(h.mean(1), 3) if t is torch.vander else t(h, N=3)),
    "inner": ("vector", lambda t, h: t(h, _ones(6, 8)(h))),
    "corrcoef": ("vector", lambda t, h: t(h[:2])),
    "grid_sample": ("image", lambda t, h: t(h, _grid(h), align_corners=False)),
    "grid_sampler": ("image", lambda t, h: t(h, _grid(h), 0, 0, False)),
    "grid_sampler_2d": ("image", lambda t, h: t(h, _grid(h), 0, 0, False)),
    "grid_sampler_3d": ("volume", lambda t, h: t(h, _grid3(h), 0, 0, False)),
    "histogramdd": ("vector", lambda t, h: t(h[:, :2], [2, 2])),
    "householder_product": ("square", lambda t, h: t(h, h.mean(-1))),
    "hstack": ("image", _two),
    "index_add": ("image", _by_index),
    "index_copy": ("image", _by_index),
    "index_reduce": ("image", lambda t, h: t(h, 1, _places(h), like(h)[:, :4], "prod")),
    "index_fill": ("image", lambda t, h: t(h, 1, _places(h), 0.5)),
    "index_put": ("image", lambda t, h: t(h, (torch.tensor([0, 1]), torch.tensor([3, 1])), like(h)[:2].mean(1))),
    "index_select": ("tokens", lambda t, h: t(h, 2, torch.tensor([3, 0, 5, 5, 1, 2, 7, 4]))),
    "instance_norm": ("image", lambda t, h: _instance_norm(t, h)),
    "interpolate": ("image", lambda t, h: t(h, scale_factor=2)),
    "inverse": ("square", lambda t, h: t(_spd(h))),
    "isin": ("image", lambda t, h: t(h.round(), torch.tensor([0.0, 1.0], dtype=h.dtype))),
    "istft": ("square", lambda t, h: t(torch.complex(h[:, :5], h[:, :5]), 8)),
    "kl_div": ("image", lambda t, h: t(h, torch.sigmoid(like(h)))),
    "kron": ("vector", lambda t, h: t(h, _ones(1, 2)(h))),
    "layer_norm": ("image", lambda t, h: t(h, h.shape[1:])),
    "rms_norm": ("image", lambda t, h: t(h, h.shape[1:])),
    "ldl_solve": ("square", lambda t, h: t(*torch.linalg.ldl_factor(_spd(h)), h)),
    "lerp": ("image", lambda t, h: t(h, like(h), 0.3)),
    "linear": ("vector", lambda t, h: t(h, _ones(6, 8)(h))),
    "linear_cross_entropy": ("vector", lambda t, h: t(h, _ones(6, 8)(h), labels(h) % 6)),
    "local_response_norm": ("image", lambda t, h: t(h, 3)),
    "log_softmax": ("image", lambda t, h: t(h, 1)),
    "softmax": ("image", lambda t, h: t(h, 1)),
    "softmin": ("image", lambda t, h: t(h, 1)),
    "lu_solve": ("square", lambda t, h: _lu_solve(t, h)),
    "lu_unpack": ("square", lambda t, h: t(*torch.linalg.lu_factor(_spd(h)))[1]),
    "max_unpool1d": ("sequence", lambda t, h: t(*F.max_pool1d(h, 2, return_indices=True), 2)),
    "max_unpool2d": ("image", lambda t, h: t(*F.max_pool2d(h, 2, return_indices=True), 2)),
    "max_unpool3d": ("volume", lambda t, h: t(*F.max_pool3d(h, 2, return_indices=True), 2)),
    "masked_scatter": ("image", lambda t, h: t(h, h > 0, like(h))),
    "meshgrid": ("vector", lambda t, h: t(h[0], h[1], indexing="ij")),
    "mm": ("vector", lambda t, h: t(h, _ones(8, 6)(h))),
    "multi_dot": ("vector", lambda t, h: t([h, _ones(8, 6)(h)])),
    "chain_matmul": ("vector", lambda t, h: t(h, _ones(8, 6)(h))),
    "multi_margin_loss": ("vector", lambda t, h: t(h, labels(h))),
    "multilabel_margin_loss": ("vector", lambda t, h: t(h, labels(h).unsqueeze(1).expand(h.shape))),
    "multi_head_attention_forward": ("square", lambda t, h: _attention(t, h)),
    "multinomial": ("vector", lambda t, h: t(positive(h), 2)),
    "mvlgamma": ("image", lambda t, h: t(h * h + 2.0, 2)),
    "multigammaln": ("image", lambda t, h: t(h * h + 2.0, 2)),
    "new_empty": ("image", lambda t, h: t(h, h.shape[1:])),
    "new_empty_strided": ("image", lambda t, h: t(h, h.shape[1:], h[0].stride())),
    "new_full": ("image", lambda t, h: h + t(h, h.shape[1:], 0.5)),
    "new_ones": ("image", lambda t, h: h + t(h, h.shape[1:])),
    "new_zeros": ("image", lambda t, h: h + t(h, h.shape[1:])),
    "new_tensor": ("image", lambda t, h: h + t(h, [0.5])),
    "nll_loss": ("vector", lambda t, h: t(h, labels(h))),
    "one_hot": ("image", lambda t, h: t((h > 0).long(), 2).sum(-1)),
    "orgqr": ("square", lambda t, h: t(h, h.mean(-1))),
    "ormqr": ("square", lambda t, h: t(h, h.mean(-1), like(h))),
    "outer": ("vector", lambda t, h: t(h.mean(1), _ones(8)(h))),
    "ger": ("vector", lambda t, h: t(h.mean(1), _ones(8)(h))),
    "pdist": ("vector", lambda t, h: t(h)),
    "permute": ("image", lambda t, h: t(h, (0, 1, 3, 2))),
    "poisson_nll_loss": (
        "image",
        lambda t, h: t(h, positive(h), *((True, False, 1e-8, 1) if t is torch.poisson_nll_loss else ())),
    ),
    "polygamma": ("image", lambda t, h: _ordered_arguments(t, h)),
    "prelu": ("image", lambda t, h: t(h, _ones(8)(h))),
    "put": ("image", lambda t, h: t(h, torch.tensor([0, 5]), torch.tensor([0.5, 0.1], dtype=h.dtype))),
    "randint_like": ("image", lambda t, h: h + t(h, 5)),
    "repeat": ("image", lambda t, h: t(h, 1, 2, 1, 1)),
    "repeat_interleave": ("image", lambda t, h: t(h, 2, 1)),
    "roll": ("image", lambda t, h: t(h, 1, 1)),
    "row_stack": ("image", _two),
    "vstack": ("vector", lambda t, h: t([h, like(h)])[: h.shape[0]]),
    "scaled_dot_product_attention": ("square", lambda t, h: t(h, like(h), h)),
    "scatter": ("image", lambda t, h: t(h, 1, _index(h), like(h))),
    "scatter_add": ("image", lambda t, h: t(h, 1, _index(h), like(h))),
    "scatter_reduce": ("image", lambda t, h: t(h, 1, _index(h), like(h), "sum")),
    "searchsorted": ("image", lambda t, h: t(_ones(5)(h), h)),
    "segment_reduce": ("vector", lambda t, h: t(h, "sum", lengths=torch.tensor([1] * h.shape[0]))),
    "select": ("image", lambda t, h: t(h, 1, 2)),
    "select_scatter": ("image", lambda t, h: t(h, like(h)[:, :, 0], 2, 1)),
    "slice_scatter": ("image", lambda t, h: t(h, like(h)[:, :4], 1, 0, 4)),
    "slice_inverse": ("image", lambda t, h: t(h, h)),
    "soft_margin_loss": ("image", lambda t, h: t(h, torch.sign(like(h)).detach())),
    "solve": ("square", lambda t, h: t(_spd(h), h)),
    "solve_ex": ("square", lambda t, h: t(_spd(h), h)),
    "solve_triangular": ("square", lambda t, h: t(_spd(h), h, upper=True)),
    "split_with_sizes": ("image", lambda t, h: t(h, [3, 5], 1)),
    "unsafe_split_with_sizes": ("image", lambda t, h: t(h, [3, 5], 1)),
    "split": ("image", lambda t, h: t(h, 4, 1)),
    "unsafe_split": ("image", lambda t, h: t(h, 4, 1)),
    "spmm": ("vector", lambda t, h: t(h, _ones(8, 6)(h))),
    "stack": ("image", lambda t, h: t([h, like(h)], 1).flatten(1, 2)),
    "stft": ("vector", lambda t, h: t(h, 4, return_complex=True)),
    "squeeze": ("image", lambda t, h: t(h.unsqueeze(1), 1)),
    "t": ("vector", lambda t, h: t(h).transpose(0, 1)),
    "take": ("image", lambda t, h: t(h, torch.tensor([0, 5]))),
    "take_along_dim": ("image", lambda t, h: t(h, _index(h), 1)),
    "tensor_split": ("image", lambda t, h: t(h, 2, 1)),
    "tensordot": ("vector", lambda t, h: t(h, _ones(6, 8)(h), ([1], [1]))),
    "tensorinv": ("square", lambda t, h: t(_spd(h)[0], ind=1)),
    "tensorsolve": ("square", lambda t, h: t(_spd(h)[0], h[0, 0])),
    "threshold": ("image", lambda t, h: t(h, 0.1, 0.2)),
    "triangular_solve": ("square", lambda t, h: t(h, _spd(h))),
    "unbind": ("image", lambda t, h: t(h, 1)),
    "unflatten": ("image", lambda t, h: t(h, 1, (2, 4)).flatten(1, 2)),
    "unfold": ("image", lambda t, h: t(h, 2) if t is F.unfold else t(h, 3, 2, 1)),
    "unsqueeze": ("image", lambda t, h: t(h, 1).flatten(1, 2)),
    "upsample": ("image", lambda t, h: t(h, scale_factor=2)),
    "upsample_bilinear": ("image", lambda t, h: t(h, scale_factor=2)),
    "upsample_nearest": ("image", lambda t, h: t(h, scale_factor=2)),
    "vdot": ("vector", lambda t, h: t(h[0], like(h)[0])),
    "view": ("image", lambda t, h: t(h.contiguous(), (h.shape[0], -1))),
    "view_as_complex": ("image", lambda t, h: t(torch.stack([h, h], -1))),
    "view_as_real": ("image", lambda t, h: t(torch.complex(h, h)).sum(-1)),
    "vsplit": ("image", lambda t, h: t(h.transpose(0, 1), 2)[0].transpose(0, 1)),
    "where": ("image", lambda t, h: torch.where(h > 0, h, 0.1) if t is torch.where else t(h, h > 0, like(h))),
}  # fmt: skip
"""By name: the form of what a call is given, and how it is called."""


def signs(h: Tensor) -> Tensor:
    return torch.arange(h.shape[0], dtype=h.dtype) % 2 * 2 - 1


def _grid(h: Tensor) -> Tensor:
    return h.mean(1).unsqueeze(-1).expand(-1, -1, -1, 2)


def _grid3(h: Tensor) -> Tensor:
    return h.mean(1).unsqueeze(-1).expand(-1, -1, -1, -1, 3)


def _matrices(h: Tensor) -> Tensor:
    return h.mean((1, 2, 3)).view(-1, 1, 1).expand(-1, 2, 3)


def _batch_norm(t: Any, h: Tensor) -> Tensor:
    vectors = [_ones(8)(h) for _ in range(4)]
    return t(h, *vectors, False, 0.1, 1e-5, False) if t is torch.batch_norm else t(h, *vectors)


def _instance_norm(t: Any, h: Tensor) -> Tensor:
    vectors = [_ones(8)(h) for _ in range(4)]
    return t(h, *vectors, True, 0.1, 1e-5, False) if t is torch.instance_norm else t(h)


def _embedded(t: Any, h: Tensor) -> Tensor:
    places = torch.tensor([0, 2, 1])
    return t(_ones(3, 8)(h) + h[0, :3], places) if t is torch.embedding else t(places, _ones(3, 8)(h) + h[0, :3])


def _lu_solve(t: Any, h: Tensor) -> Tensor:
    lu, pivots = torch.linalg.lu_factor(_spd(h))
    return t(lu, pivots, h) if t is torch.linalg.lu_solve else t(h, lu, pivots)


def _attention(t: Any, h: Tensor) -> Any:
    return t(h, h, h, 8, 2, _ones(24, 8)(h), None, None, None, False, 0.0, _ones(8, 8)(h), None)


def _ordered_arguments(t: Any, h: Tensor) -> Tensor:
    return t(2, h * h + 1) if t in (torch.polygamma, torch.special.polygamma) else t(h * h + 1, 2)
