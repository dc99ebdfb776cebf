"""Operators that freeze what they touch on purpose, with the reason: the one list of them.

An operator that is neither here nor has a rule freezes what it touches as well, and says that it has none.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from graphsurgery.axes.inference import RULES, Inference, rule

FROZEN = {
    "reads numbers in the order in which they lie in memory": """
        as_strided as_strided_scatter take put masked_scatter segment_reduce slice_inverse
    """,
    "is of a matrix as a whole, and of one with rows of zeros there is none": """
        det logdet slogdet inverse inv inv_ex pinv pinverse matrix_power matrix_exp matrix_rank matrix_sqrth solve
        solve_ex solve_triangular triangular_solve lu lu_factor lu_factor_ex lu_solve lu_unpack ldl_factor
        ldl_factor_ex ldl_solve cholesky cholesky_ex cholesky_inverse cholesky_solve qr svd
        svdvals eig eigh eigvals eigvalsh polar lstsq
        householder_product orgqr ormqr geqrf tensorinv tensorsolve lobpcg pca_lowrank svd_lowrank cov corrcoef
    """,
    "takes or fills a diagonal, along which the indices of two axes are paired": """
        diag diagflat trace fill_diagonal block_diag
    """,
    "counts numbers, wherever they stand": "histc histogram histogramdd hash_tensor",
    "multiplies along the batch, or a list of matrices; write it as matrix products": """
        addbmm addr chain_matmul multi_dot
    """,
    "is a recurrent layer as a function of a list of weights; use the layer of torch.nn": """
        gru lstm rnn_tanh rnn_relu gru_cell lstm_cell rnn_tanh_cell rnn_relu_cell
    """,
    "is a whole layer as one function; use the layer of torch.nn": """
        multi_head_attention_forward linear_cross_entropy LinearCrossEntropyLoss conv_tbc convolution embedding_renorm
        norm_except_dim
    """,
    "draws the windows that it pools over": """
        fractional_max_pool2d fractional_max_pool3d fractional_max_pool2d_with_indices
        fractional_max_pool3d_with_indices FractionalMaxPool2d FractionalMaxPool3d
    """,
    "makes numbers of pairs of rows, or powers of them": "pdist vander meshgrid",
    "is an older form of a norm of neighbours; use nn.LocalResponseNorm": "CrossMapLRN2d",
    "changes the axes of a tensor in place, which others hold": """
        transpose_ swapaxes_ swapdims_ unsqueeze_ squeeze_ t_
    """,
    "adds up what it had stretched": "sum_to_size",
}
"""Why, and the names: functions of torch, its namespaces and layers, and methods of a tensor, those in place too."""

_HOMES = (torch, F, torch.special, torch.linalg, torch.fft, nn)


def _spelled(name: str) -> Iterator[Any]:
    """Everything in torch that has a name, and no rule."""
    for spelling in dict.fromkeys((name, f"{name.rstrip('_')}_")):
        for home in _HOMES:
            if callable(part := getattr(home, spelling, None)):
                yield part
        if callable(getattr(torch.Tensor, spelling, None)):
            yield spelling


def _freezes(reason: str, infer: Inference, *operands: Any, **options: Any) -> Any:
    """Everything that the operator reads is frozen."""
    own = [infer.parameter(name) for name, _ in infer.submodule.named_parameters()] if _is_layer(infer) else []
    infer.freeze(f"{infer.operator()} {reason}", operands, options, own)
    return infer.untyped()


def _is_layer(infer: Inference) -> bool:
    return infer.node.op == "call_module"


for _reason, _names in FROZEN.items():
    _keys = [key for name in _names.split() for key in _spelled(name)]
    rule(*(key for key in dict.fromkeys(_keys) if key not in RULES))(functools.partial(_freezes, _reason))
