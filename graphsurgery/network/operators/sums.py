"""Operators that sum, and what else gives memory of its own: products, reductions, norms, new tensors."""

from __future__ import annotations

import operator

import torch
from torch import nn

from graphsurgery.network.operators.record import Trait, record

# Products ---------------------------------------------------------------------------------------------------------

_MULTIPLIES = Trait.MULTIPLIES | Trait.FRESH
record("linear", nn.Linear, traits=_MULTIPLIES)
for _rank in ("1d", "2d", "3d"):
    record(f"conv{_rank}", getattr(nn, f"Conv{_rank}"), traits=_MULTIPLIES)
    record(f"conv_transpose{_rank}", getattr(nn, f"ConvTranspose{_rank}"), traits=_MULTIPLIES)
record("matmul __matmul__ bmm mm mv", traits=_MULTIPLIES, also=[operator.matmul, operator.imatmul, torch.linalg.matmul])
record("addmm baddbmm addmv", traits=_MULTIPLIES)
record("outer ger", traits=Trait.FRESH)
record("embedding", nn.Embedding, traits=Trait.FRESH)
record("scaled_dot_product_attention", traits=_MULTIPLIES)

# Norms ------------------------------------------------------------------------------------------------------------

record("batch_norm", nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, traits=Trait.PER_CHANNEL | Trait.FRESH)
record("instance_norm", nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, traits=Trait.PER_CHANNEL)
record("frozen_batch_norm", traits=Trait.NONE, foreign_modules=["torchvision.ops.misc.FrozenBatchNorm2d"])
record("layer_norm", nn.LayerNorm, traits=Trait.FRESH)
record("group_norm", nn.GroupNorm, traits=Trait.FRESH)
record(
    "softmax log_softmax softmin",
    nn.Softmax,
    nn.LogSoftmax,
    nn.Softmin,
    nn.Softmax2d,
    traits=Trait.SHARES | Trait.FRESH,
)

# Reductions -------------------------------------------------------------------------------------------------------

_REDUCES = Trait.REDUCES | Trait.FRESH
record("mean", traits=_REDUCES | Trait.AFFINE, mixes="mean")
record("nanmean", traits=_REDUCES, mixes="mean")
record("sum", traits=_REDUCES | Trait.AFFINE, mixes="sum")
record("nansum", traits=_REDUCES, mixes="sum")
record("count_nonzero", traits=_REDUCES, mixes="count")
record("amax amin aminmax any all", traits=_REDUCES, mixes="maximum")
record("median nanmedian", traits=_REDUCES, mixes="median")
record("var std var_mean std_mean", traits=_REDUCES, mixes="variance")
record("prod", traits=_REDUCES, mixes="product")
record("logsumexp", traits=_REDUCES, mixes="logsumexp")

# New tensors ------------------------------------------------------------------------------------------------------

record("empty_like zeros_like ones_like full_like rand_like randn_like", traits=Trait.FRESH)
record("empty zeros ones full rand randn", traits=Trait.FRESH)
record("new_empty new_zeros new_ones new_full new_tensor", traits=Trait.FRESH)
