"""A trace compared with its module: values, gradients and buffers, in both modes, and at other sizes of the inputs.

A trace takes for granted that the model asks nothing that a proxy answers in another way than a tensor. Whether that
was so is measured here, on the weights as they are.
"""

from __future__ import annotations

import contextlib
import copy
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from graphsurgery.errors import TraceError, one_line
from graphsurgery.network.aliasing import acts_in_place
from graphsurgery.network.copying import alias_copy
from graphsurgery.network.outputs.modes import kept_modes
from graphsurgery.tracing.following.caches import Place, attributes, changed, kept_by
from graphsurgery.tracing.following.gradients import Slope, unlike, with_gradients
from graphsurgery.tracing.likeness.inputs import Inputs
from graphsurgery.tracing.likeness.sides import Sides, outputs_of
from graphsurgery.tracing.likeness.verdicts import UnlikeModuleError, Verdicts, farthest


class Likeness:
    """A module and its trace, to be compared on inputs.

    Attributes:
        kept: the plain attributes of the module that its own calls change, with the values that they have.
        stays: the paths of what the module's own `train()` leaves in evaluation, which that of the trace does not.

    Args:
        model: the module as it was traced; it is not modified.
        traced: its trace.
        examples: the inputs that it was traced with; None where an argument stays None.
        names: the name that the trace has for each parameter of the module, by the id of that.
        spells: whether the model writes sizes into texts, so that other sizes may matter in training, too.
        batched: which of the tensors among the inputs have the batch; by default as their shapes say.

    Source: the randomised differential testing of McKeeman, "Differential testing for software", 1998.
    """

    def __init__(
        self,
        model: nn.Module,
        traced: fx.GraphModule,
        examples: Sequence[Tensor | None],
        names: Mapping[int, str],
        *,
        spells: bool = False,
        batched: Sequence[bool] | None = None,
    ) -> None:
        first = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
        self.dtype = first.dtype
        generator = torch.Generator().manual_seed(0)
        self.given, self.traced, self.names, self.spells = model, traced, names, spells
        self.name = type(model).__name__
        self.sides = Sides(model, traced, self.dtype, generator)
        self.model = self.sides.model
        self.inputs = Inputs(examples, first.device, self.dtype, generator, batched)
        self.verdicts = Verdicts(self.name, self.dtype)
        self.writes = any(acts_in_place(traced, node) for node in traced.graph.nodes)
        self.stays: list[str] = []
        self.kept: dict[Place, Any] = {}

    def check(self, *, training: bool) -> None:
        """Compare on the examples in evaluation, at other sizes and, if `training`, in training with gradients.

        What differs in float32 and not in float64 is rounding: a norm of two examples can make anything of that.

        Raises:
            UnlikeModuleError: the two differ.
            TraceError: the module fails on the examples, so that there is nothing to compare.
        """
        try:
            if not self.compared(training=training):
                _refuse(self)
        except UnlikeModuleError:
            if self.dtype != torch.float32 or not _in_double(self).compared(training=training):
                raise

    def run_model(self) -> None:
        """Run the module on the inputs in evaluation, or on all rows of them; what its own code raises goes on."""
        with _quiet(), kept_modes(self.traced), self.sides:
            self.sides.set_mode(training=False)
            self.sides.reset()
            if self._raised(self.inputs.x) is not None:
                self.inputs.take_all_rows()
                if (cause := self._raised(self.inputs.x)) is not None:
                    raise cause

    def _own(self, *x: Tensor) -> Any:
        """What the module gives."""
        return self.model(*self.inputs.placed(x))

    def compared(self, *, training: bool) -> bool:
        """Whether the module takes the examples; then everything is compared.

        Raises:
            UnlikeModuleError: the two differ.
        """
        with _quiet(), kept_modes(self.traced), self.sides:
            takes = bool(self._compare(self.inputs.x))
            if not takes:
                self.inputs.take_all_rows()
                takes = bool(self._compare(self.inputs.x))
            if takes:
                self._other_sizes()
            self.kept = kept_by(self.model, self.given)
            if training:
                self._training()
                if takes and self.spells:
                    self._other_sizes(training=True)
        return takes

    def _compare(self, x: Sequence[Tensor], where: str = "", *, training: bool = False) -> bool | None:
        """Compare on these inputs, `where` in words; on the example inputs where it is empty.

        Returns:
            Whether the module takes them; None where it does, but its trace says that it does not.
        """
        self.sides.set_mode(training=training)
        self.sides.reset()
        remembers = not training and (self.writes or not where)
        with torch.no_grad():
            try:
                expected = outputs_of(self._own, x)
            except Exception:  # whatever the model's own code raises
                return False
            try:
                found = outputs_of(self.traced, x)
                # What it writes into may last from one call to the next.
                between = self.inputs.resized({}) if remembers else x
                again = [outputs_of(self.traced, x) for x in (between, x)][-1] if self.writes else found
            except Exception as cause:
                # A check says so itself; whatever else fails may be a table for another size, found by a text.
                if where and (isinstance(cause, ValueError) or not self.spells):
                    return None
                raise UnlikeModuleError(f"{self.name}: its trace does not run: {one_line(cause)}") from cause
            words = where or "on the example inputs"
            self.verdicts.outputs(found, expected, words, lambda: outputs_of(self._own, self.sides.nudged(x)))
            if remembers:
                self.sides.restore_weights()
                second = [outputs_of(self._own, x) for x in (between, x)][-1]
                self.verdicts.second_call(again, second, farthest(found, expected))
        return True

    def _other_sizes(self, *, training: bool = False) -> None:
        """Another batch, and one index more, or a power of two more, on the axes that the module takes so."""
        free = {}
        for n in self.inputs.lengths():
            for new in (n + 1, n + 32) if n >= 32 else (n + 1, n + 2):
                if self._raised(self.inputs.resized({n: new})) is None:
                    free[n] = new
                    break
        if self._compare_resized(free, 1, training) or not free:
            return
        self._compare_resized({}, 1, training)
        for n, new in free.items():
            self._compare_resized({n: new}, 0, training)

    def _compare_resized(self, changes: Mapping[int, int], more: int, training: bool) -> bool | None:
        sizes = " and ".join("x".join(map(str, shape)) for shape in self.inputs.shapes(changes, more))
        return self._compare(self.inputs.resized(changes, more=more), f"at inputs of {sizes}", training=training)

    def _raised(self, x: Sequence[Tensor]) -> Exception | None:
        """What the module's own code raises on inputs, in evaluation."""
        self.model.eval()
        try:
            with torch.no_grad():
                outputs_of(self._own, x)
        except Exception as cause:
            return cause
        return None

    def _training(self) -> None:
        """Values, buffers and gradients, in training, with the same random numbers."""
        self.sides.set_mode(training=True)
        self.stays = [path for path, module in self.model.named_modules() if not module.training]
        own = dict(self.traced.named_parameters(remove_duplicate=False))
        pairs = [(p, self.names.get(id(old), "")) for p, old in self.sides.parameters() if p.requires_grad]
        trained = [p for p, _ in pairs]
        # What the trace lacks has no gradient there, which is right only where it has none in the model.
        mine = [own.get(name, torch.zeros((), requires_grad=True)) for _, name in pairs]
        self.sides.reset()
        before, x = attributes(self.model), self.inputs.x
        try:
            expected, slopes, drawn = with_gradients(self._own, x, trained)
        except Exception:  # one value for each channel, say
            return
        try:
            found, mine_slopes, drawn_too = with_gradients(self.traced, x, mine)
        except Exception as cause:
            raise UnlikeModuleError(f"{self.name}: its trace does not train: {one_line(cause)}") from cause

        def nudged() -> tuple[list[Tensor], list[Slope], Tensor]:
            self.sides.reset()
            return with_gradients(self._own, self.sides.nudged(x), trained)

        if not torch.equal(drawn, drawn_too):
            raise UnlikeModuleError(
                f"{self.name}: in training it draws other random numbers than its trace; see what inspect names"
            )
        names = {id(p): n for n, p in self.model.named_parameters()}
        asked = [names[id(p)] for p in trained] + [f"input {i}" for i in range(len(slopes) - len(trained))]
        self.verdicts.outputs(found, expected, "in training", lambda: nudged()[0])
        if any(map(unlike, mine_slopes, slopes)):
            self.verdicts.gradients(mine_slopes, slopes, nudged()[1], asked)
        if changed(before, attributes(self.model)):
            self._training_again(trained, mine, farthest(found, expected))

    def _training_again(self, trained: Sequence[Tensor], mine: Sequence[Tensor], first: float) -> None:
        """Values and gradients of a second call in training, of a model that has kept something of the first.

        Args:
            trained: the parameters of the model.
            mine: those of its trace.
            first: how far the values were apart at the first call.
        """
        self.sides.reset()
        outcomes = []
        for module, parameters in ((self.traced, mine), (self._own, trained)):
            try:
                with_gradients(module, self.inputs.x, parameters)
                outcomes.append(with_gradients(module, self.inputs.x, parameters))
            except Exception as cause:
                raise UnlikeModuleError(
                    f"{self.name}: called again in training it fails ({one_line(cause)}); "
                    "the model keeps something from one call to the next"
                ) from cause
        (found, mine_slopes, _), (expected, slopes, _) = outcomes
        self.verdicts.second_call(found, expected, first)
        if any(map(unlike, mine_slopes, slopes)):
            raise UnlikeModuleError(
                f"{self.name}: called again in training its trace has other gradients; "
                "the model keeps something from one call to the next"
            )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The model has given its warnings when it was traced; what it compiles runs as Python, as it did then."""
    compiles = "torch._dynamo.eval_frame" in sys.modules
    as_python = torch.compiler.set_stance("force_eager") if compiles else contextlib.nullcontext()
    with warnings.catch_warnings(), as_python:
        warnings.simplefilter("ignore")
        yield


def _refuse(likeness: Likeness) -> None:
    """Say what a module raises on the example inputs, which leaves nothing to compare."""
    try:
        likeness.run_model()
    except Exception as cause:  # whatever the model's own code raises
        raise TraceError(
            f"{likeness.name} itself fails on the example inputs, so that its trace cannot be compared with it: "
            f"{one_line(cause)}; give inputs that it takes"
        ) from cause


def _in_double(likeness: Likeness) -> Likeness:
    """The same in float64, with other memory."""
    likeness.sides.restore_weights()
    model, copies = alias_copy(likeness.model)
    pairs = likeness.sides.parameters()
    names = {id(copies[id(p)]): likeness.names[id(old)] for p, old in pairs if id(old) in likeness.names}
    x = likeness.inputs.placed(likeness.inputs.x)
    traced = copy.deepcopy(likeness.traced).double()
    return Likeness(model.double(), traced, x, names, spells=likeness.spells, batched=likeness.inputs.batched)
