"""A trace against the module that was traced: both modes, other batch sizes, another resolution."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from graphsurgery.errors import SurgeryError, one_line
from graphsurgery.graph import InputSpec, ModelGraph
from graphsurgery.network.layers import hold
from graphsurgery.network.outputs.naming import run
from graphsurgery.recipes.contracts.contract import Contract, NothingToCompareError, measure
from graphsurgery.recipes.contracts.subjects import calibrate, draw_inputs, has_values, light_copy, randomize
from graphsurgery.surgery.deviation import UnlikeError, apart
from graphsurgery.tracing.trace import trace

FLOAT32 = 1e-5
BATCHES = (1, 3)


class TraceContracts:
    """A module and its trace, with the same random values, and what was measured of them.

    Attributes:
        contracts: all of them.
        traced: the trace, of the precision in which it was compared; None where there is none.
        dtype: that precision: float64, but float32 for a large module and for one that float64 does not fit.
    """

    def __init__(self, module: nn.Module, specs: Sequence[InputSpec], *, large: bool, seed: int) -> None:
        self.specs, self.seed = specs, seed
        self.traced: ModelGraph | None = None
        self.eager, self.dtype, self.refusal = self._prepared(module, large)
        self.contracts = [
            self._measured("traced = eager, evaluating", self._evaluating),
            self._measured("traced = eager, other batch sizes", self._other_batches),
            self._measured("traced = eager, another resolution", self._another_resolution),
            self._measured("traced = eager, training", self._training),
        ]

    def _prepared(self, module: nn.Module, large: bool) -> tuple[nn.Module, torch.dtype, str]:
        """A copy with random norms, in the first precision in which it takes its own example inputs, else why not."""
        eager, refusal = module, ""
        if not has_values(module):
            return eager, torch.float32, "its parameters hold no values (meta tensors)"
        for dtype in (torch.float32,) if large else (torch.float64, torch.float32):
            eager = light_copy(module).cpu().to(dtype).eval()
            randomize(eager, self.seed)
            x = draw_inputs(self.specs, 2, self.seed, dtype)
            calibrate(eager, self.specs, dtype, self.seed)
            try:
                run(eager, x, self.seed)
            except Exception as cause:  # whatever the module's own code raises
                refusal = refusal or f"the module refuses its example inputs: {one_line(cause)}"
            else:
                return eager, dtype, ""
        return eager, torch.float32, refusal

    def _measured(self, name: str, deviation: Callable[[], float]) -> Contract:
        contract = measure(name, deviation)
        if self.dtype == torch.float64 or contract.allowed is None:
            return contract
        note = "; ".join(filter(None, ("in float32", contract.note)))
        return replace(contract, allowed=max(contract.allowed, FLOAT32), note=note)

    def _trace(self) -> ModelGraph:
        if self.refusal:
            raise NothingToCompareError(self.refusal)
        if self.traced is None:
            # Measured here, contract by contract.
            found = trace(self.eager, draw_inputs(self.specs, 2, self.seed, self.dtype), check=False)
            # An example does not tell a batch from a state of that size.
            pairs = zip(found.inputs, self.specs, strict=True)
            inputs = tuple(replace(spec, batched=known.batched) for spec, known in pairs)
            self.traced = replace(found, inputs=inputs)
        return self.traced

    def _evaluating(self) -> float:
        return self._apart(draw_inputs(self.specs, 2, self.seed, self.dtype), training=False)

    def _other_batches(self) -> float:
        found = []
        for batch in BATCHES:
            try:
                found.append(self._apart(draw_inputs(self.specs, batch, self.seed, self.dtype), training=False))
            except UnlikeError as cause:
                raise UnlikeError(f"batch {batch}: {cause}") from cause
        return max(found)

    def _another_resolution(self) -> float:
        refusal = "no input has height and width"
        for specs in other_resolutions(self.specs):
            sizes = " and ".join("x".join(map(str, spec.shape[2:])) for spec in specs)
            x = draw_inputs(specs, 2, self.seed, self.dtype)
            try:
                self._run(self.eager, x, training=False)
            except NothingToCompareError as cause:
                refusal = f"{sizes}: {cause}"
                continue
            try:
                return self._apart(x, training=False)
            except UnlikeError as cause:
                raise UnlikeError(f"{sizes}: {cause}") from cause
        raise NothingToCompareError(refusal)

    def _training(self) -> float:
        """The outputs, and the buffers that both have after it, such as the statistics of norms.

        A trace may have its channels in another order (a shuffle is taken out of it), so values count in any order.
        """
        if computed := self._trace().lineage[0].get("weights that were computed"):
            raise NothingToCompareError(f"{computed[0]} is computed there from other weights, and is a weight here")
        traced, eager = (dict(module.named_buffers()) for module in (self._trace().module, self.eager))
        before = {name: buffer.clone() for name, buffer in traced.items()}
        outputs = self._apart(draw_inputs(self.specs, 2, self.seed, self.dtype), training=True)
        pairs = {n: (_in_order(traced[n]), _in_order(eager[n])) for n in traced if n in eager}
        # Equal ones may hold infinities, such as the bounds of a clamp that does nothing.
        unlike = {n: pair for n, pair in pairs.items() if not torch.equal(*pair)}
        buffers = apart({n: pair[0] for n, pair in unlike.items()}, {n: pair[1] for n, pair in unlike.items()})
        for name, buffer in traced.items():
            buffer.copy_(before[name])
        return max(outputs, buffers)

    def _apart(self, x: Sequence[Tensor], *, training: bool) -> float:
        expected = self._run(self.eager, x, training=training)
        module = self._trace().module.train(training)
        try:
            found = run(module, x, self.seed)
        except Exception as cause:  # the original takes these inputs, so its trace has to
            if _on_purpose(cause):
                raise SurgeryError(one_line(cause)) from cause
            raise UnlikeError(f"the trace does not run: {type(cause).__name__}: {one_line(cause)}") from cause
        return apart(found, expected)

    def _run(self, module: nn.Module, x: Sequence[Tensor], *, training: bool) -> dict[str, Tensor]:
        if self.refusal:
            raise NothingToCompareError(self.refusal)
        try:
            return run(module.train(training), x, self.seed)
        except Exception as cause:  # whatever the module's own code raises
            raise NothingToCompareError(f"the module refuses it too: {one_line(cause)}") from cause


def _in_order(tensor: Tensor) -> Tensor:
    return tensor.flatten().sort().values


def other_resolutions(specs: Sequence[InputSpec]) -> Iterator[list[InputSpec]]:
    """The inputs with other heights and widths, the least regular first; none where no input is an image."""
    if not any(len(spec.shape) >= 4 for spec in specs):
        return
    for taller, wider, factor in ((32, 64, 1), (32, 32, 1), (0, 0, 2)):
        yield [
            replace(s, shape=(*s.shape[:-2], factor * s.shape[-2] + taller, factor * s.shape[-1] + wider))
            if len(s.shape) >= 4
            else s
            for s in specs
        ]


def _on_purpose(cause: Exception) -> bool:
    """Whether a trace refused its inputs, rather than broke on them."""
    frame = cause.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return isinstance(cause, SurgeryError) or (
        frame is not None and frame.tb_frame.f_code is inspect.unwrap(hold).__code__
    )
