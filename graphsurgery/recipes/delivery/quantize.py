"""Deliver in 8 bits: export, compare, calibrate on data, quantise, and measure what that costs and gains.

What is measured here is what a file does on this processor. What it does on others is computed (`onnx.integers`), for
all schemes, from sums that are exact and from sums that saturate.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from graphsurgery.checkpoint.atomic import atomic_write
from graphsurgery.errors import SpecError
from graphsurgery.graph import ModelGraph
from graphsurgery.onnx.arithmetic.integers import IntegerNetwork
from graphsurgery.onnx.exporting.quantizing import SCHEMES, Scheme, check_scheme, quantize_onnx
from graphsurgery.onnx.runtime.latency import Latency, measure_latency
from graphsurgery.onnx.runtime.sessions import open_session, run_session
from graphsurgery.progress import phase
from graphsurgery.recipes.delivery.deliver import Delivery, deliver
from graphsurgery.surgery.channels.cost import cost
from graphsurgery.surgery.deviation import deviation
from graphsurgery.training.data.batches import Examples, in_order
from graphsurgery.training.data.dataset import UNLABELLED, Data, size_of

_BATCH = 32
_REAL = 64
_COMPUTED = 10**10
"""Multiply-accumulates that are computed in integers for each scheme, if one test example does not take more."""
_AT_ONCE = 4
"""Examples that are computed in integers together; each is unfolded to its multiply-accumulates' operands."""


@dataclass(frozen=True)
class Version:
    """One of the two networks.

    Attributes:
        bytes: size of its file.
        latency: of one example on one thread.
        metrics: on the test data: `accuracy`, or `mse` of regression; empty where they have no labels, or others than
            the network's.
    """

    bytes: int
    latency: Latency
    metrics: dict[str, float]


@dataclass(frozen=True)
class Sums:
    """What a file computes with one kind of sums; it does not depend on the processor.

    Attributes:
        deviation: `max |int8 - float32| / max |float32|` of the outputs.
        agreement: share of the examples with the class of the float32 network; None where the output is not
            `[batch, classes]`.
        metrics: as of a `Version`.
    """

    deviation: float
    agreement: float | None
    metrics: dict[str, float]


@dataclass(frozen=True)
class SchemeReport:
    """What a scheme makes of the network, on the first test examples.

    Attributes:
        bytes: size of the file.
        overflowing: how many pairs of weights saturate for some inputs on x86 processors without VNNI. Where there are
            none, the sums are exact on every processor.
        exact: with sums in 32 bits.
        saturating: with sums as on x86 processors without VNNI.
    """

    bytes: int
    overflowing: int
    exact: Sums
    saturating: Sums


@dataclass(frozen=True)
class Int8Report:
    """What quantising made of a network.

    Attributes:
        scheme: which was taken.
        schemes: what each makes of the network, by name.
        compared: how many test examples that was computed on.
        delivery: the export in float32 that was quantised, and its comparison with PyTorch.
        float32: the network before.
        int8: the network after; this is what was written.
        deviation: `max |int8 - float32| / max |float32|` of the outputs on the test data, on this processor.
        agreement: share of the test examples with the same class; None where the output is not `[batch, classes]`.
        tested: how many test examples.
        calibrated: how many training examples gave the ranges.
        quantised: tensors in 8 bits.
    """

    scheme: Scheme
    schemes: dict[Scheme, SchemeReport]
    compared: int
    delivery: Delivery
    float32: Version
    int8: Version
    deviation: float
    agreement: float | None
    tested: int
    calibrated: int
    quantised: int

    def as_dict(self) -> dict[str, Any]:
        """JSON-like form."""
        return asdict(self)


@phase("writing 8 bits")
def deliver_int8(
    graph: ModelGraph,
    path: Path | str,
    data: Data,
    *,
    examples: int = 256,
    scheme: Scheme = "u8s7",
    opset: int | None = None,
    seed: int = 0,
    rtol: float = 1e-4,
) -> Int8Report:
    """Write a network as an ONNX file in 8 bits; see `quantize_onnx`.

    The float32 file is compared with PyTorch first, on the data too. The activations' ranges come from training
    examples, the measurements from test examples, all of them. All schemes are compared, with exact and with saturating
    sums, on as many of the first test examples as the size of the network allows.

    Args:
        graph: the network; it is not modified.
        path: the `.onnx` file.
        data: what the network was trained on, labelled or not.
        examples: training examples that give the ranges, at most all there are.
        scheme: `u8s7` or `u8u8`, whose sums are exact on every processor, or `u8s8`, whose sums may saturate.
        opset: version of the operators; by default the exporter's choice.
        seed: draws the examples.
        rtol: largest deviation allowed in float32, relative to what each output varies by.

    Raises:
        SpecError: a split has no examples, or their shape is not what the network takes.
        SurgeryError: there is no such scheme, the network cannot be exported or quantised, or the file not written.
        CheckFailedError: in float32 already, ONNX Runtime computes something else.
    """
    check_scheme(str(path), scheme)
    _check_examples(data, examples)
    real = real_inputs(graph, data)
    training = Examples(data.train, torch.device("cpu"))
    order = torch.randperm(len(training), generator=torch.Generator().manual_seed(seed))[:examples]
    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder) / "float32.onnx"
        delivery = deliver(graph, before, opset=opset, inputs=real, rtol=rtol)
        files = {name: Path(folder) / f"{name}.onnx" for name in SCHEMES}
        quantised = {
            name: quantize_onnx(before, file, _calibration(training, order), scheme=name)
            for name, file in files.items()
        }
        after = files[scheme]
        latency = measure_latency({"float32": before, "int8": after})
        exact, found = _outputs(before, data), _outputs(after, data)
        compared = [output[: _comparable(graph, exact)] for output in exact]
        schemes = {name: _computed(file, data, compared) for name, file in files.items()}
        with atomic_write(path) as temporary:
            temporary.write_bytes(after.read_bytes())
        sizes = [file.stat().st_size for file in (before, after)]
    return Int8Report(
        scheme=scheme,
        schemes=schemes,
        compared=len(compared[0]),
        delivery=delivery,
        float32=Version(sizes[0], latency["float32"], _metrics(exact, data)),
        int8=Version(sizes[1], latency["int8"], _metrics(found, data)),
        deviation=deviation(found, exact),
        agreement=_agreement(found, exact),
        tested=len(exact[0]),
        calibrated=len(order),
        quantised=quantised[scheme],
    )


def _check_examples(data: Data, examples: int) -> None:
    """Refuse data that have no examples to calibrate and to measure on."""
    for split, dataset in (("training", data.train), ("test", data.test)):
        if size_of(dataset) == 0:
            raise SpecError(f"{data.name}: has no {split} examples; quantising needs both training and test examples")
    if examples < 1:
        raise SpecError(f"{data.name}: {examples} examples to calibrate on, expected at least 1")


def real_inputs(graph: ModelGraph, data: Data, count: int = _REAL) -> tuple[Tensor, ...]:
    """The first validation examples, as the inputs `[batch, ...]` of a network.

    Raises:
        SpecError: there are none, or the network takes other inputs; its file is for one size.
    """
    taken = [list(spec.shape[1:]) for spec in graph.inputs]
    if taken != [list(data.input_shape)]:
        words = " and ".join(map(str, taken))
        raise SpecError(
            f"{data.name}: its examples are {list(data.input_shape)}, the network is exported for inputs {words}; "
            "give data of this shape, or the network at that of the data"
        )
    if len(data.validation) == 0:  # type: ignore[arg-type]
        raise SpecError(f"{data.name}: has no validation examples; the export is compared on some")
    return first_inputs(data.validation, count)


def first_inputs(examples: Dataset[Any], count: int = _REAL) -> tuple[Tensor, ...]:
    """The inputs `[count, ...]` of the first examples `(input, label)`, or of all where there are fewer."""
    read = Examples(examples, torch.device("cpu"))
    return (next(read.batches([torch.arange(min(count, len(read)))]))[0],)


def _single(x: Tensor) -> Tensor:
    """Numbers in float32, as the file takes them; indices as they are."""
    return x.float() if x.is_floating_point() else x


def _calibration(training: Examples, order: Tensor) -> Iterator[tuple[Tensor]]:
    """The training examples of these numbers, as the network takes them."""
    return ((_single(batch[0]),) for batch in training.batches(list(order.split(_BATCH))))


def _outputs(path: Path, data: Data) -> list[Tensor]:
    """What a file gives for all test examples on this processor."""
    session = open_session(path, threads=torch.get_num_threads())
    name = session.get_inputs()[0].name
    batches = [run_session(session, {name: _single(x)}, path.name) for x, _ in _test(data)]
    return [torch.cat(parts) for parts in zip(*batches, strict=True)]


def _comparable(graph: ModelGraph, exact: list[Tensor]) -> int:
    """How many test examples the sums of the schemes are computed on: fewer, the larger the network."""
    return min(len(exact[0]), max(1, _COMPUTED // max(1, cost(graph).macs)))


def _computed(path: Path, data: Data, expected: list[Tensor]) -> SchemeReport:
    """What a file gives with either kind of sums, next to the float32 outputs for the first test examples."""
    network = IntegerNetwork(path)
    kinds = {saturates: _sums(network, data, expected, saturates=saturates) for saturates in network.kinds}
    return SchemeReport(path.stat().st_size, network.overflowing, kinds[False], kinds.get(True, kinds[False]))


def _sums(network: IntegerNetwork, data: Data, expected: list[Tensor], *, saturates: bool) -> Sums:
    parts = Examples(data.test, torch.device("cpu")).batches(in_order(len(expected[0]), _AT_ONCE))
    batches = [network.run([_single(batch[0])], saturates=saturates) for batch in parts]
    found = [torch.cat(outputs) for outputs in zip(*batches, strict=True)]
    return Sums(deviation(found, expected), _agreement(found, expected), _metrics(found, data))


def _agreement(found: list[Tensor], expected: list[Tensor]) -> float | None:
    """The share of examples with the same class, where there is one output, `[batch, classes]`."""
    if len(expected) != 1 or expected[0].dim() != 2:
        return None
    return float((found[0].argmax(1) == expected[0].argmax(1)).double().mean())


def _metrics(outputs: list[Tensor], data: Data) -> dict[str, float]:
    """What the labels of the first examples say, where there is one output, of their kind, and any example has one."""
    if len(outputs) != 1:
        return {}
    output = outputs[0]
    target = torch.cat([target for _, target in _test(data)])[: len(output)]
    if data.classes is None:
        if output.shape != target.shape or not bool((known := ~target.isnan()).any()):
            return {}
        return {"mse": float((output - target)[known].square().mean())}
    known = target != UNLABELLED
    if list(output.shape[1:]) != [data.classes] or not bool(known.any()):
        return {}
    return {"accuracy": float((output.argmax(1) == target)[known].double().mean())}


def _test(data: Data) -> Iterator[tuple[Tensor, Tensor]]:
    examples = Examples(data.test, torch.device("cpu"))
    for batch in examples.batches(in_order(len(examples), _BATCH)):
        yield batch[0], batch[1]
