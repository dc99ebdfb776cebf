"""A trace compared with its module: values, gradients and buffers, in both modes, and at other sizes of the inputs.

A trace takes for granted that the model asks nothing that a proxy answers in another way than a tensor. Whether that
was so is measured here, on the weights as they are.
"""

from __future__ import annotations

import contextlib
import copy
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from graphsurgery.errors import TraceError, one_line
from graphsurgery.graph import have_batch
from graphsurgery.network.aliasing import acts_in_place
from graphsurgery.network.copying import Replicas, alias_copy
from graphsurgery.network.outputs.modes import kept_modes
from graphsurgery.network.outputs.naming import run
from graphsurgery.network.values.dtypes import holds_numbers
from graphsurgery.tracing.following.caches import Place, attributes, changed, kept_by
from graphsurgery.tracing.following.gradients import MOST_APART, Slope, unlike, with_gradients

_ROUNDING = {torch.float64: 1e-10, torch.float32: 1e-4}
_COARSE = 5e-2
"""What may differ, as a share of the largest value, in float64, in float32, and in any other precision."""
_NUDGE = {torch.float64: 1e-13, torch.float32: 1e-6}
_NOISE = 20.0
"""Networks that amplify: where a nudge of every number moves an output, it may differ by so many times as much."""
_LITTLE = 1e-6
"""What a gradient may have of the largest and count as none."""
_ROWS = 4


class UnlikeModuleError(TraceError):
    """A trace computes something else than its module."""


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
        self.given = model
        self.model, copies = alias_copy(model)
        self.real = {id(new): old for old, new in ((old, copies[id(old)]) for old in model.parameters())}
        self.traced = traced
        self.names = names
        self.spells = spells
        self.writes = any(acts_in_place(traced, node) for node in traced.graph.nodes)
        self.name = type(model).__name__
        first = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
        self.device, self.dtype = first.device, first.dtype
        self.stays: list[str] = []
        self.kept: dict[Place, Any] = {}
        self.generator = torch.Generator().manual_seed(0)
        self.examples = examples
        given = [example for example in examples if example is not None]
        self.batched = have_batch([example.shape for example in given]) if batched is None else batched
        self.x = tuple(self._realistic(x, batched=has) for x, has in zip(given, self.batched, strict=True))

    def check(self, *, training: bool) -> None:
        """Compare on the examples in evaluation, at other sizes and, if `training`, in training with gradients.

        What differs in float32 and not in float64 is rounding: a norm of two examples can make anything of that.

        Raises:
            UnlikeModuleError: the two differ.
        """
        try:
            self.compared(training=training)
        except UnlikeModuleError:
            if self.dtype != torch.float32 or not self._in_double().compared(training=training):
                raise

    def run_model(self) -> None:
        """Run the module on the inputs in evaluation; what its own code raises goes on."""
        self.model.eval()
        with _quiet(), _Buffers(self.model) as own:
            own.reset()
            _run(self._own, self.x)

    def _in_double(self) -> Likeness:
        """The same in float64, with other memory."""
        self._restore_weights()
        model, copies = alias_copy(self.model)
        names = {id(copies[id(p)]): self.names[id(old)] for p, old in self._parameters() if id(old) in self.names}
        x = self._placed(self.x)
        traced = copy.deepcopy(self.traced).double()
        return Likeness(model.double(), traced, x, names, spells=self.spells, batched=self.batched)

    def _placed(self, x: Sequence[Any]) -> list[Any]:
        """The arguments of the module: these, and None in between."""
        given = iter(x)
        return [None if example is None else next(given) for example in self.examples]

    def _own(self, *x: Tensor) -> Any:
        """What the module gives."""
        return self.model(*self._placed(x))

    def _parameters(self) -> list[tuple[Tensor, Tensor]]:
        """The parameters of the copy of the module, each with that of the module."""
        return [(p, self.real[id(p)]) for p in self.model.parameters()]

    def compared(self, *, training: bool) -> bool:
        """Whether the module takes the examples; then everything is compared.

        Raises:
            UnlikeModuleError: the two differ.
        """
        with _quiet(), kept_modes(self.traced), _Buffers(self.traced) as traced, _Buffers(self.model) as own:
            self.buffers = (traced, own)
            takes = bool(self._compare(self.x))
            if takes:
                self._other_sizes()
            self.kept = kept_by(self.model, self.given)
            if training:
                self._training()
                if takes and self.spells:
                    self._other_sizes(training=True)
        return takes

    # Inputs ---------------------------------------------------------------------------------------------------------

    def _realistic(self, example: Tensor, *, batched: bool) -> Tensor:
        """The first rows of an example; random numbers where it has none, or only one number over and over."""
        rows = example[:_ROWS] if batched else example
        if rows.is_meta or (rows.is_floating_point() and rows.numel() and bool((rows == rows.flatten()[0]).all())):
            shape = (max(2, rows.shape[0]), *rows.shape[1:]) if batched else rows.shape
            return self._drawn(rows, shape)
        if batched and rows.shape[0] == 1:
            rows = torch.cat([rows, self._drawn(rows, rows.shape)])
        return rows.to(self.device, self.dtype if rows.is_floating_point() else rows.dtype)

    def _drawn(self, like: Tensor, shape: Sequence[int]) -> Tensor:
        """Random numbers; indices and flags in the range that the example has."""
        if like.is_floating_point():
            return torch.randn(shape, generator=self.generator).to(self.device, self.dtype)
        if like.is_complex():
            return torch.randn(shape, generator=self.generator, dtype=like.dtype).to(self.device)
        low, high = (0, 0) if like.is_meta or not like.numel() else (int(like.min()), int(like.max()))
        return torch.randint(low, high + 1, tuple(shape), generator=self.generator).to(self.device, like.dtype)

    def _resized(self, changes: Mapping[int, int], *, more: int = 0) -> tuple[Tensor, ...]:
        """Inputs with so many examples more, and with other sizes on the axes behind that have one of these sizes."""
        shapes = zip(self.x, self._shapes(changes, more), self.batched, strict=True)
        return tuple(self._drawn(x, shape) if has else _stretched(x, shape) for x, shape, has in shapes)

    def _shapes(self, changes: Mapping[int, int], more: int) -> list[list[int]]:
        first = [[x.shape[0] + more] if has else [] for x, has in zip(self.x, self.batched, strict=True)]
        return [[*own, *(changes.get(n, n) for n in x.shape[len(own) :])] for x, own in zip(self.x, first, strict=True)]

    # Comparisons ----------------------------------------------------------------------------------------------------

    def _compare(self, x: Sequence[Tensor], where: str = "", *, training: bool = False) -> bool | None:
        """Compare on these inputs, `where` in words; on the example inputs where it is empty.

        Returns:
            Whether the module takes them; None where it does, but its trace says that it does not.
        """
        self.model.train(training)
        _same_modes(self.model, self.traced)
        self._reset()
        remembers = not training and (self.writes or not where)
        with torch.no_grad():
            try:
                expected = _run(self._own, x)
            except Exception:  # whatever the model's own code raises
                return False
            try:
                found = _run(self.traced, x)
                # What it writes into may last from one call to the next.
                between = self._resized({}) if remembers else x
                again = [_run(self.traced, x) for x in (between, x)][-1] if self.writes else found
            except Exception as cause:
                # A check says so itself; whatever else fails may be a table for another size, found by a text.
                if where and (isinstance(cause, ValueError) or not self.spells):
                    return None
                raise UnlikeModuleError(f"{self.name}: its trace does not run: {one_line(cause)}") from cause
            self._judge(found, expected, where or "on the example inputs", lambda: _run(self._own, self._nudged(x)))
            if remembers:
                self._restore_weights()
                second = [_run(self._own, x) for x in (between, x)][-1]
                self._judge_again(again, second, max(map(_apart, found, expected), default=0.0))
        return True

    def _judge_again(self, found: list[Tensor], expected: list[Tensor], first: float) -> None:
        """Refuse a trace that has not kept of the first call what the module has, in a buffer or in an attribute.

        Args:
            found: what the trace gives when it is called again.
            expected: the same of the module.
            first: how far they were apart at the first call.
        """
        apart = max(map(_apart, found, expected), default=0.0)
        allowed = max(_ROUNDING.get(self.dtype, _COARSE), 10 * first)
        if not apart <= allowed:
            raise UnlikeModuleError(
                f"{self.name}: called again its trace differs from the model by {apart:.1e} of the largest value, "
                f"allowed {allowed:.0e}; the model keeps something from one call to the next"
            )

    def _other_sizes(self, *, training: bool = False) -> None:
        """Another batch, and one index more, or a power of two more, on the axes that the module takes so."""
        free = {}
        for n in dict.fromkeys(n for x, has in zip(self.x, self.batched, strict=True) for n in x.shape[has:]):
            for new in (n + 1, n + 32) if n >= 32 else (n + 1, n + 2):
                if self._accepts({n: new}):
                    free[n] = new
                    break
        if self._compare_resized(free, 1, training) or not free:
            return
        self._compare_resized({}, 1, training)
        for n, new in free.items():
            self._compare_resized({n: new}, 0, training)

    def _compare_resized(self, changes: Mapping[int, int], more: int, training: bool) -> bool | None:
        sizes = " and ".join("x".join(map(str, shape)) for shape in self._shapes(changes, more))
        return self._compare(self._resized(changes, more=more), f"at inputs of {sizes}", training=training)

    def _reset(self) -> None:
        """Both have the weights, the statistics and whatever else is in buffers, that the model has."""
        self._restore_weights()
        for buffers in self.buffers:
            buffers.reset()

    def _restore_weights(self) -> None:
        """Take back what `_nudged` has done."""
        for parameter, own in self._parameters():
            parameter.data = own.detach()

    def _accepts(self, changes: Mapping[int, int]) -> bool:
        """Whether the module takes inputs of other sizes."""
        self.model.eval()
        try:
            with torch.no_grad():
                _run(self._own, self._resized(changes))
        except Exception:  # whatever the model's own code raises
            return False
        return True

    def _training(self) -> None:
        """Values, buffers and gradients, in training, with the same random numbers."""
        self.model.train()
        self.stays = [path for path, module in self.model.named_modules() if not module.training]
        _same_modes(self.model, self.traced)
        own = dict(self.traced.named_parameters(remove_duplicate=False))
        pairs = [(p, self.names.get(id(old), "")) for p, old in self._parameters() if p.requires_grad]
        trained = [p for p, _ in pairs]
        # What the trace lacks has no gradient there, which is right only where it has none in the model.
        mine = [own.get(name, torch.zeros((), requires_grad=True)) for _, name in pairs]
        self._reset()
        before = attributes(self.model)
        try:
            expected, slopes, drawn = with_gradients(self._own, self.x, trained)
        except Exception:  # one value for each channel, say
            return
        try:
            found, mine_slopes, drawn_too = with_gradients(self.traced, self.x, mine)
        except Exception as cause:
            raise UnlikeModuleError(f"{self.name}: its trace does not train: {one_line(cause)}") from cause

        def nudged() -> tuple[list[Tensor], list[Slope], Tensor]:
            self._reset()
            return with_gradients(self._own, self._nudged(self.x), trained)

        if not torch.equal(drawn, drawn_too):
            raise UnlikeModuleError(
                f"{self.name}: in training it draws other random numbers than its trace; see what inspect names"
            )
        names = {id(p): n for n, p in self.model.named_parameters()}
        asked = [names[id(p)] for p in trained] + [f"input {i}" for i in range(len(slopes) - len(trained))]
        self._judge(found, expected, "in training", lambda: nudged()[0])
        if any(map(unlike, mine_slopes, slopes)):
            self._judge_gradients(mine_slopes, slopes, nudged()[1], asked)
        if changed(before, attributes(self.model)):
            self._training_again(trained, mine, max(map(_apart, found, expected), default=0.0))

    def _training_again(self, trained: Sequence[Tensor], mine: Sequence[Tensor], first: float) -> None:
        """Values and gradients of a second call in training, of a model that has kept something of the first.

        Args:
            trained: the parameters of the model.
            mine: those of its trace.
            first: how far the values were apart at the first call.
        """
        self._reset()
        outcomes = []
        for module, parameters in ((self.traced, mine), (self._own, trained)):
            try:
                with_gradients(module, self.x, parameters)
                outcomes.append(with_gradients(module, self.x, parameters))
            except Exception as cause:
                raise UnlikeModuleError(
                    f"{self.name}: called again in training it fails ({one_line(cause)}); "
                    "the model keeps something from one call to the next"
                ) from cause
        (found, mine_slopes, _), (expected, slopes, _) = outcomes
        self._judge_again(found, expected, first)
        if any(map(unlike, mine_slopes, slopes)):
            raise UnlikeModuleError(
                f"{self.name}: called again in training its trace has other gradients; "
                "the model keeps something from one call to the next"
            )

    def _judge(
        self, found: list[Tensor], expected: list[Tensor], where: str, nudged: Callable[[], list[Tensor]]
    ) -> None:
        """Refuse outputs that differ by more than rounding."""
        shapes = [[list(t.shape) for t in outputs] for outputs in (found, expected)]
        if shapes[0] != shapes[1]:
            raise UnlikeModuleError(f"{self.name}: {where} its trace gives {shapes[0]}, the model {shapes[1]}")
        allowed = _ROUNDING.get(self.dtype, _COARSE)
        apart = max((_apart(f, e) for f, e in zip(found, expected, strict=True)), default=0.0)
        if apart <= allowed:
            return
        amplified = max((_apart(n, e) for n, e in zip(nudged(), expected, strict=True)), default=0.0)
        if not apart <= _NOISE * amplified:
            raise UnlikeModuleError(
                f"{self.name}: {where} its trace differs from the model by {apart:.1e} of the largest value, allowed "
                f"{max(allowed, _NOISE * amplified):.0e}"
            )

    def _judge_gradients(
        self, found: list[Slope], expected: list[Slope], nudged: list[Slope], names: list[str]
    ) -> None:
        """Refuse gradients that differ by more than they do when every number is moved a little."""
        scale = max((slope.norm for slope in expected), default=0.0)
        for name, own, slope, moved in zip(names, found, expected, nudged, strict=True):
            if (own.norm > 0) != (slope.norm > 0) and max(own.norm, slope.norm) > _LITTLE * scale:
                has, model = ("no", "one") if slope.norm > 0 else ("a", "none")
                raise UnlikeModuleError(
                    f"{self.name}: in training {name} has {has} gradient in its trace, and {model} in the model"
                )
            allowed = max(MOST_APART * max(slope.norm, 1e-3 * scale), _NOISE * moved.apart(slope))
            if math.isfinite(slope.norm) and not own.apart(slope) <= allowed:
                raise UnlikeModuleError(
                    f"{self.name}: in training the gradient of {name} differs in its trace by {own.apart(slope):.2g}, "
                    f"its norm in the model is {slope.norm:.3g}"
                )

    def _nudged(self, x: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Inputs, and the weights of the copy too, moved by a little more than rounding."""
        nudge = _NUDGE.get(self.dtype, 1e-2)

        def moved(t: Tensor) -> Tensor:
            noise = torch.randn(t.shape, generator=self.generator).to(t)
            return t * (1 + nudge * noise)

        for module in self.model.modules():
            for parameter in module._parameters.values():
                if parameter is not None and holds_numbers(parameter):
                    # New memory: the old is that of the model.
                    parameter.data = moved(parameter.detach())
        return tuple(moved(t) if t.is_floating_point() else t for t in x)


def _stretched(x: Tensor, shape: Sequence[int]) -> Tensor:
    """What is no example in another size: its last entries again, as a random mask might hide everything."""
    for axis, size in enumerate(shape):
        x = x.index_select(axis, torch.arange(size, device=x.device).clamp(max=x.shape[axis] - 1))
    return x


def _run(module: Callable[..., Any], x: Sequence[Tensor]) -> list[Tensor]:
    """What a module gives, with the same random numbers each time; it may write into its inputs."""
    return list(run(module, [t.clone() for t in x], 0).values())


def _apart(found: Tensor, expected: Tensor) -> float:
    """`max |found - expected| / max |expected|`; what is not finite in both in the same way does not count."""
    if found.numel() == 0:
        return 0.0
    a, b = found.double().cpu(), expected.double().cpu()
    odd = ~(a.isfinite() & b.isfinite())
    if bool(odd.any()):
        if not torch.equal(a[odd].nan_to_num(1e300), b[odd].nan_to_num(1e300)):
            return math.inf
        a, b = a[~odd], b[~odd]
        if not a.numel():
            return 0.0
    difference, scale = float((a - b).abs().max()), float(b.abs().max())
    return 0.0 if difference == 0 else difference / scale if scale > 0 else math.inf


def _same_modes(model: nn.Module, traced: nn.Module) -> None:
    """Give every module of a trace the mode that the module of the same path has, or the nearest around it."""
    modes = {path: module.training for path, module in model.named_modules(remove_duplicate=False)}
    for path, module in traced.named_modules(remove_duplicate=False):
        around = path
        while around not in modes:
            around = around.rpartition(".")[0]
        module.__dict__["training"] = modes[around]


class _Buffers:
    """Buffers that a module may write into; it gets the old ones back in the end."""

    def __init__(self, module: nn.Module) -> None:
        self.slots = [(part._buffers, dict(part._buffers)) for part in module.modules()]

    def reset(self) -> None:
        """Give the module copies of what it had in the beginning; ties stay ties."""
        copied = Replicas()
        for buffers, before in self.slots:
            buffers.clear()
            buffers.update({name: None if t is None else copied(t) for name, t in before.items()})

    def __enter__(self) -> _Buffers:
        return self

    def __exit__(self, *_: object) -> None:
        for buffers, before in self.slots:
            buffers.clear()
            buffers.update(before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The model has given its warnings when it was traced."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
