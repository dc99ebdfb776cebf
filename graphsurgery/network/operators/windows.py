"""Operators on positions, which leave channels alone: pooling, resizing, padding."""

from __future__ import annotations

from torch import nn

from graphsurgery.network.operators.record import Trait, record

_POOLS = Trait.POSITIONS | Trait.KEEPS_RANGE | Trait.KEEPS_ZERO
_AVERAGES = _POOLS | Trait.AFFINE
_PADS = Trait.POSITIONS | Trait.AFFINE

for _rank in ("1d", "2d", "3d"):
    record(f"max_pool{_rank} max_pool{_rank}_with_indices", getattr(nn, f"MaxPool{_rank}"), traits=_POOLS | Trait.FRESH)
    record(f"avg_pool{_rank}", getattr(nn, f"AvgPool{_rank}"), traits=_AVERAGES | Trait.FRESH)
    record(f"adaptive_avg_pool{_rank}", getattr(nn, f"AdaptiveAvgPool{_rank}"), traits=_AVERAGES)
    record(
        f"adaptive_max_pool{_rank} adaptive_max_pool{_rank}_with_indices",
        getattr(nn, f"AdaptiveMaxPool{_rank}"),
        traits=_POOLS,
    )
    record(f"lp_pool{_rank}", getattr(nn, f"LPPool{_rank}"), traits=Trait.POSITIONS)
    record(f"constant_pad{_rank}", getattr(nn, f"ConstantPad{_rank}"), traits=_PADS)
    record(f"zero_pad{_rank}", getattr(nn, f"ZeroPad{_rank}"), traits=_PADS | Trait.KEEPS_ZERO)
    for _kind in ("Reflection", "Replication", "Circular"):
        record(f"{_kind.lower()}_pad{_rank}", getattr(nn, f"{_kind}Pad{_rank}"), traits=_AVERAGES)
record(
    "interpolate upsample",
    nn.Upsample,
    nn.UpsamplingBilinear2d,
    nn.UpsamplingNearest2d,
    traits=_PADS | Trait.KEEPS_ZERO,
)
record("pad", traits=Trait.AFFINE)

# Regions, whose rules say what they look at ---------------------------------------------------------------------------

record("deform_conv2d", traits=Trait.NONE, foreign_functions=["torchvision.ops.deform_conv.deform_conv2d"])
record("roi_align", traits=Trait.NONE, foreign_functions=["torchvision.ops.roi_align.roi_align"])
record("roi_pool", traits=Trait.NONE, foreign_functions=["torchvision.ops.roi_pool.roi_pool"])
