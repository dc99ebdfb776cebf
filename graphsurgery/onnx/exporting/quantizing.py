"""An `.onnx` file in 8 bits, by static quantisation."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import onnx
from torch import Tensor

from graphsurgery.checkpoint.atomic import atomic_write
from graphsurgery.errors import SurgeryError, one_line
from graphsurgery.onnx.exporting.exporter import quiet
from graphsurgery.onnx.exporting.grouped_norms import norm_operators

QUANTIZED = ("QuantizeLinear", "DequantizeLinear")

Scheme = Literal["u8s7", "u8u8", "u8s8"]
"""The numbers of activations, then of weights: unsigned or signed, and how many bits of 8 they use."""

SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
SAFE: tuple[Scheme, ...] = ("u8s7", "u8u8")
"""Those whose sums are exact on every x86 and Arm processor."""


def quantize_onnx(
    source: Path | str, path: Path | str, batches: Iterable[Sequence[Tensor]], *, scheme: Scheme = "u8s7"
) -> int:
    """Write a float32 file with weights and activations in 8 bits, as pairs of QuantizeLinear and DequantizeLinear.

    The file is prepared as ONNX Runtime recommends (shapes inferred, nodes fused), the range of every activation is
    that of the batches (smallest to largest value), and weights have a scale for each output channel. Metadata stay,
    and so do norms of groups of channels (`grouped_norms`), as those of ONNX itself compute in floating point.

    Activations are unsigned. What the weights are, the scheme says:

    - `u8s7`: signed, from -64 to 64. All sums are exact on every x86 and Arm processor, and as fast as with `u8s8`.
    - `u8u8`: unsigned, from 0 to 255. All sums are exact, too, and weights one bit finer, but ONNX Runtime's kernels
      for x86 are slower.
    - `u8s8`: signed, from -127 to 127. On x86 processors without VNNI sums saturate, so that the file computes
      something else there; `graphsurgery.onnx.arithmetic.sums` says how, and `IntegerNetwork` what.

    Args:
        source: a float32 `.onnx` file.
        path: what is written, in one step; it may be the source.
        batches: the inputs of the network, each `[batch, ...]`, in the file's order; at least one batch.
        scheme: `u8s7`, `u8u8` or `u8s8`.

    Returns:
        How many tensors are quantised.

    Raises:
        SurgeryError: there is no such scheme, there are no batches, the network does not take them, nothing in it can
            be quantised, or ONNX Runtime refuses it. Nothing is written then.
    """
    check_scheme(str(source), scheme)
    original = onnx.load(source, load_external_data=False)
    with tempfile.TemporaryDirectory() as folder:
        feed = _Batches([value.name for value in original.graph.input], batches)
        try:
            model = _quantized(source, Path(folder), feed, scheme)
        except SurgeryError:
            raise
        except Exception as cause:  # ONNX Runtime's errors have no public base class
            if not feed.count:
                raise SurgeryError(f"{source}: cannot be quantised without examples; give at least one") from cause
            raise SurgeryError(f"{source}: ONNX Runtime cannot quantise it: {one_line(cause)}") from cause
    count = sum(node.op_type == QUANTIZED[0] for node in model.graph.node)
    if not count:
        raise SurgeryError(f"{source}: has no operator that can be quantised; export it without --int8")
    del model.metadata_props[:]
    model.metadata_props.extend(original.metadata_props)
    with atomic_write(path) as temporary:
        temporary.write_bytes(model.SerializeToString())
    return count


def _quantized(source: Path | str, folder: Path, feed: _Batches, scheme: Scheme) -> onnx.ModelProto:
    """What ONNX Runtime makes of a file; it works in the folder."""
    # Importing it takes a second, and only this function needs it.
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared, quantized = folder / "prepared.onnx", folder / "quantized.onnx"
    with quiet():
        quant_pre_process(str(source), str(prepared))
        quantize_static(
            str(prepared),
            str(quantized),
            feed,
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QUInt8 if scheme == "u8u8" else QuantType.QInt8,
            per_channel=True,
            nodes_to_exclude=norm_operators(onnx.load(prepared)),
            reduce_range=scheme == "u8s7",
            # One zero for all channels, without which ONNX Runtime does not run a convolution in integers.
            extra_options={"WeightSymmetric": True},
        )
    return onnx.load(quantized)


def check_scheme(where: str, scheme: str) -> None:
    """Refuse what is no scheme.

    Args:
        where: what the error names first.
        scheme: the name of a scheme.

    Raises:
        SurgeryError: there is none of this name.
    """
    if scheme not in SCHEMES:
        raise SurgeryError(f"{where}: found scheme {scheme!r}, expected one of {', '.join(SCHEMES)}")


class _Batches:
    """What ONNX Runtime's calibration reads, one batch at a time; `count` is how many it has taken."""

    def __init__(self, names: Sequence[str], batches: Iterable[Sequence[Tensor]]) -> None:
        self.names = names
        self.batches: Iterator[Sequence[Tensor]] = iter(batches)
        self.count = 0

    def get_next(self) -> Mapping[str, Any] | None:
        batch = next(self.batches, None)
        if batch is None:
            return None
        if len(batch) != len(self.names):
            raise SurgeryError(f"calibration: has {len(batch)} inputs, the network takes {len(self.names)}")
        self.count += 1
        return {name: tensor.numpy() for name, tensor in zip(self.names, batch, strict=True)}
