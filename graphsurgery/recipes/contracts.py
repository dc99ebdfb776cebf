"""The contracts of the passes, measured on one network.

Contracts are measured in float64, with random norms, on a copy. Networks above `LARGE` parameters are compared with
their trace in float32, and their passes are measured on a narrower cut of them, so that memory stays in bounds.
"""

from __future__ import annotations

import copy
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from graphsurgery.checkpoint import load, save
from graphsurgery.cost import cost
from graphsurgery.errors import SurgeryError, one_line
from graphsurgery.graph import ModelGraph
from graphsurgery.passes.compress import compress
from graphsurgery.passes.concatenate import concatenate
from graphsurgery.passes.gate import fold, gate, gates, why_nothing
from graphsurgery.tracing import trace
from graphsurgery.verify import deviation, double, tensors_of

LARGE = 30_000_000
OPEN = 100.0

TOLERANCES: Mapping[str, float | None] = {
    "traced = eager, evaluating": 1e-12,
    "traced = eager, training": 1e-12,
    "concatenated = mean of two": 1e-12,
    "gates open = no gates": 1e-12,
    "gates 0 or 1 = compressed": 1e-10,
    "gates 0 or 1 = compressed, mixed spaces": None,
    "gates folded = gated": 1e-10,
    "saved and loaded = original": 0.0,
    "compressed keeps its spaces": 0.0,
    "ONNX Runtime = PyTorch, compressed": 1e-4,
}
_FLOAT32 = 1e-5


@dataclass(frozen=True)
class Contract:
    """One contract of one network.

    Attributes:
        name: what should be equal to what; a key of `TOLERANCES`.
        measured: the relative deviation (of "keeps its spaces": how many were lost or won); None if not measured.
        allowed: the largest that holds; None where no equality is promised and the deviation is only stated.
        seconds: how long it took.
        refused: why it could not be measured, else empty.
        note: what a reader should know.
    """

    name: str
    measured: float | None
    allowed: float | None
    seconds: float
    refused: str = ""
    note: str = ""

    @property
    def status(self) -> str:
        """One of `refused`, `stated`, `holds`, `fails`."""
        if self.refused:
            return "refused"
        if self.allowed is None:
            return "stated"
        return "holds" if self.measured is not None and self.measured <= self.allowed else "fails"


class Patient:
    """A network under examination; one contract at a time, nothing kept between them but the network itself."""

    def __init__(self, graph: ModelGraph, reference: nn.Module | None, parameters: int, seed: int) -> None:
        self.original, self.reference, self.seed = graph, reference, seed
        self.large = parameters > LARGE
        self.narrowing = math.sqrt(LARGE / 2 / parameters) if self.large else 1.0
        self.subject = graph
        self.note = ""
        self.cut: ModelGraph | None = None
        self.kept: float | None = None

    def compare_trace(self) -> list[Contract]:
        """The trace against the module, in both modes, both in the same precision."""
        if self.reference is None:
            return []
        dtype = torch.float32 if self.large else torch.float64
        eager = copy.deepcopy(self.reference).to(dtype)
        randomize(eager, self.seed)
        x = [x.to(dtype) if x.is_floating_point() else x for x in self.original.example_inputs(seed=self.seed)]
        traced = trace(eager, x)
        found = []
        for name, training in (("traced = eager, evaluating", False), ("traced = eager, training", True)):

            def measure(training: bool = training) -> float:
                eager.train(training)
                traced.module.train(training)
                found, expected = _run(traced.module, x, self.seed), _run(eager, x, self.seed)
                if len(found) < len(expected):
                    raise SurgeryError(
                        f"the module gives {len(expected)} outputs, its trace {len(found)}: what it adds in training, "
                        "such as auxiliary heads, is not traced"
                    )
                return deviation(found, expected)

            contract = _measured(name, measure)
            found.append(replace(contract, allowed=_FLOAT32, note="in float32") if self.large else contract)
        if not self.large:
            randomize(traced.module, self.seed)
            self.subject = traced
        return found

    def settle(self) -> None:
        """Bring the network that the passes are measured on into float64, narrower if it is large."""
        if self.large:
            try:
                self.subject = compress(self.original, self.narrowing)
                self.note = f"on a cut to {self.narrowing:.0%} of every space"
            except SurgeryError:
                self.note = "in full width: nothing can be cut"
        self.subject = double(self.subject)
        randomize(self.subject.module, self.seed)
        self.x = self.subject.example_inputs(seed=self.seed)

    def concatenation(self) -> Contract:
        """The mean of this network and another of its topology."""

        def measure() -> float:
            other = double(self.subject)
            randomize(other.module, self.seed + 1, perturb=0.1)
            both = concatenate([self.subject, other])
            outputs = zip(self._outputs(self.subject), self._outputs(other), strict=True)
            expected = [(a + b) / 2 for a, b in outputs]
            del other
            return deviation(self._outputs(both), expected)

        return self._contract("concatenated = mean of two", measure)

    def open_gates(self) -> Contract:
        """Gates that are all open change nothing."""
        return self._contract(
            "gates open = no gates",
            lambda: deviation(self._outputs(gate(self.subject, loc=OPEN)), self._outputs(self.subject)),
        )

    def hard_gates(self) -> list[Contract]:
        """Closed gates are removed channels: exact for spaces that no operator mixes, stated for the others."""
        gated = [s for s in self.subject.spaces if s.outer and s.scalable and s.readers]
        exact = [s.name for s in gated if not s.mixed]
        mixed = [s.name for s in gated if s.mixed]
        name = "gates 0 or 1 = compressed"
        found = []
        if exact or not mixed:
            found.append(self._contract(name, lambda: self._hard(exact)))
        if mixed:
            contract = self._contract(f"{name}, mixed spaces", lambda: self._hard(mixed))
            operators = sorted({m.partition(" at ")[0] for s in gated for m in s.mixed})
            note = f"not exact: {len(mixed)} spaces are mixed by {', '.join(operators)}"
            found.append(replace(contract, note="; ".join(filter(None, (note, contract.note)))))
        return found

    def folded(self) -> Contract:
        """Half-open gates, folded into the weights."""

        def measure() -> float:
            gated = gate(self.subject, seed=self.seed)
            generator = torch.Generator().manual_seed(self.seed)
            for module in gates(gated).values():
                module.loc.data.copy_(3 * torch.randn(module.channels, generator=generator) + 1)
            return deviation(self._outputs(fold(gated)), self._outputs(gated))

        return self._contract("gates folded = gated", measure)

    def stored(self) -> Contract:
        """Written and read again, bit by bit."""

        def measure() -> float:
            with tempfile.TemporaryDirectory() as folder:
                save(self.subject, Path(folder) / "m.pt")
                return deviation(self._outputs(load(Path(folder) / "m.pt")), self._outputs(self.subject))

        return self._contract("saved and loaded = original", measure)

    def compressed(self) -> Contract:
        """Half of every space, typed anew."""

        def measure() -> float:
            self.cut = compress(self.subject, 0.5, seed=self.seed)
            self._outputs(self.cut)
            self.kept = cost(self.cut).parameters / cost(self.subject).parameters
            won = len(self.cut.spaces) - len(self.subject.spaces)
            # A space of one channel is as good as fixed, and its dim may vanish from the types.
            single = sum(new == 1 for _, new in self.cut.lineage[-1]["sizes"].values())
            return float(won if won > 0 else max(0, -won - single))

        contract = self._contract("compressed keeps its spaces", measure)
        if self.kept is None:
            return contract
        note = f"{self.kept:.1%} of the parameters at keep 0.5"
        return replace(contract, note="; ".join(filter(None, (note, contract.note))))

    def exported(self) -> Contract:
        """The compressed network in ONNX Runtime, in float32."""
        from graphsurgery.onnx.checking import check_onnx
        from graphsurgery.onnx.exporting import export_onnx

        network = self.cut or self.subject

        def measure() -> float:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "m.onnx"
                export_onnx(network, path)
                return check_onnx(network, path, batches=(1, 3), raise_on_failure=False).deviation

        contract = self._contract("ONNX Runtime = PyTorch, compressed", measure)
        return contract if self.cut else replace(contract, note="not compressed: nothing can be removed")

    def _hard(self, names: Sequence[str]) -> float:
        if not names:
            raise SurgeryError(f"gate: no space can be gated; {why_nothing(self.subject)}")
        gated = gate(self.subject, names, seed=self.seed)
        generator = torch.Generator().manual_seed(self.seed)
        kept: dict[str, Tensor] = {}
        for name, module in gates(gated).items():
            kept[name] = torch.randperm(module.channels, generator=generator)[: math.ceil(module.channels / 2)]
            module.loc.data.fill_(-OPEN)
            module.loc.data[kept[name]] = OPEN
        expected = self._outputs(gated)
        return deviation(self._outputs(compress(gated, kept)), expected)

    def _outputs(self, graph: ModelGraph) -> list[Tensor]:
        return _run(graph.module.eval(), self.x, self.seed)

    def _contract(self, name: str, measure: Callable[[], float]) -> Contract:
        contract = _measured(name, measure)
        return replace(contract, note=self.note) if self.note else contract


def randomize(module: nn.Module, seed: int, *, perturb: float = 0.0) -> None:
    """Draw the statistics and affine values of all norms, in place, and whatever is too small to be seen in an output.

    Fresh networks have norms that do nothing, biases of 0 and layer scales of 1e-6: they would hide every mistake.

    Args:
        module: changed in place.
        seed: of the drawing.
        perturb: every other parameter changes by this share of itself.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor)

    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            leaf = name.rpartition(".")[2]
            if not tensor.is_floating_point() or tensor.numel() == 0:
                continue
            if leaf == "running_mean":
                tensor.copy_(0.3 * normal(tensor))
            elif leaf == "running_var" or (leaf == "weight" and tensor.dim() == 1):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            elif isinstance(tensor, nn.Parameter):
                if float(tensor.abs().max()) < 1e-3:
                    fan_in = max(1, tensor[0].numel()) if tensor.dim() > 1 else 10
                    tensor.copy_(normal(tensor) / math.sqrt(fan_in))
                elif perturb:
                    tensor.mul_(1 + perturb * normal(tensor))


def _run(module: nn.Module, inputs: Sequence[Tensor], seed: int) -> list[Tensor]:
    """The outputs, with the same random numbers in every call."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        return tensors_of(module(*inputs))


def _measured(name: str, measure: Callable[[], float]) -> Contract:
    began = time.perf_counter()
    measured: float | None = None
    refused = note = ""
    try:
        measured = measure()
    except SurgeryError as cause:
        refused = one_line(cause, 400)
    except Exception as cause:  # an error in a pass is a finding too, and the other passes are still to be tried
        measured, note = math.inf, f"{type(cause).__name__}: {one_line(cause)}"
    contract = Contract(name, measured, TOLERANCES[name], time.perf_counter() - began, refused, note)
    return contract
