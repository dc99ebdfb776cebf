"""Integers that know what they were computed from, and what they have to be for formulas of them to come out right."""

from __future__ import annotations

import contextlib
import operator
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from graphsurgery.errors import SurgeryError
from graphsurgery.tracing.following.questions import may_stand_in


class IntegerPlace(NamedTuple):
    """Where an integer stands.

    Attributes:
        path: of the module; empty for the network itself.
        keys: the name of its attribute, then indices, keys and names within what that holds.
    """

    path: str
    keys: tuple[Any, ...]

    def __str__(self) -> str:
        inner = "".join(f".{key}" if isinstance(key, str) else f"[{key}]" for key in self.keys)
        return f"{self.path}{inner}".lstrip(".")


class Followed(int):
    """An integer, and the formula by which it follows integers at places.

    What Python computes of it with other integers follows them too.
    """

    sources: frozenset[IntegerPlace]
    formula: Callable[[Mapping[IntegerPlace, int]], int]

    @classmethod
    def at(cls, place: IntegerPlace, value: int) -> Followed:
        """The integer that stands at a place."""
        return cls.computed(value, frozenset({place}), lambda values: values[place])

    @classmethod
    def computed(
        cls, value: int, sources: frozenset[IntegerPlace], formula: Callable[[Mapping[IntegerPlace, int]], int]
    ) -> Followed:
        """The integer that a formula gives now."""
        new = cls(value)
        new.sources, new.formula = sources, formula
        return new

    def __copy__(self) -> Followed:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Followed:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return int, (int(self),)

    def __neg__(self) -> Any:
        return 0 - self

    def __truediv__(self, other: Any) -> Any:
        return Ratio.of(self, other)

    def __rtruediv__(self, other: Any) -> Any:
        return Ratio.of(other, self)


class Ratio(float):
    """A quotient of such integers, of which `int` makes one again where it is followed (`FollowingInt`)."""

    sources: frozenset[IntegerPlace]
    formula: Callable[[Mapping[IntegerPlace, int]], float]

    @classmethod
    def of(cls, a: Any, b: Any) -> Any:
        """The quotient of two numbers; a plain one where one of them is no integer."""
        if type(a) not in (int, Followed) or type(b) not in (int, Followed):
            return float(a) / b if isinstance(a, Followed) else a / float(b)
        new = cls(int(a) / int(b))
        new.sources = _sources(a) | _sources(b)
        new.formula = lambda values: _value(a, values) / _value(b, values)
        return new


class _Following(type):
    """The class of what stands for `int`: that type to `isinstance`, while what it makes of a ratio follows it."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        number = args[0] if len(args) == 1 and not kwargs else None
        if isinstance(number, Ratio):
            formula = number.formula
            return Followed.computed(int(number), number.sources, lambda values: int(formula(values)))
        return number if isinstance(number, Followed) else int(*args, **kwargs)

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, int)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, int)


class FollowingInt(metaclass=_Following):
    """Stands for `int` in a file, so that `int(width / heads)` follows both."""


@contextlib.contextmanager
def following_int(modules: Iterable[str]) -> Iterator[None]:
    """Let `int` follow in these modules of Python, where nothing but calls and `isinstance` use it."""
    homes = [vars(sys.modules[name]) for name in sorted(set(modules)) if may_stand_in(name, "int")]
    for home in homes:
        home["int"] = FollowingInt
    try:
        yield
    finally:
        for home in homes:
            del home["int"]


def _follow(name: str, *, reflected: bool) -> Callable[[Followed, Any], Any]:
    compute = getattr(operator, name)
    plain = getattr(int, f"__{'r' if reflected else ''}{name}__")

    def method(self: Followed, other: Any) -> Any:
        value = plain(self, other)
        if type(value) is not int or type(other) not in (int, Followed):
            return value
        a, b = (other, self) if reflected else (self, other)
        sources = _sources(a) | _sources(b)
        return Followed.computed(value, sources, lambda values: compute(_value(a, values), _value(b, values)))

    return method


def _sources(number: int) -> frozenset[IntegerPlace]:
    return number.sources if isinstance(number, Followed) else frozenset()


def _value(number: int, values: Mapping[IntegerPlace, int]) -> int:
    return number.formula(values) if isinstance(number, Followed) else number


for _name in ("add", "sub", "mul", "floordiv", "mod", "pow"):
    setattr(Followed, f"__{_name}__", _follow(_name, reflected=False))
    setattr(Followed, f"__r{_name}__", _follow(_name, reflected=True))


class Relation(NamedTuple):
    """What a number has to be.

    Attributes:
        number: as it was.
        wanted: as it has to be.
        where: who wants that, in words.
    """

    number: Followed
    wanted: int
    where: str


_MOST_TRIED = 1 << 16


def solved(relations: Iterable[Relation], old: Mapping[IntegerPlace, int], action: str) -> dict[IntegerPlace, int]:
    """The integers that relations ask for, so that every relation holds; as they were where they do already.

    One that no relation asks for is left out.

    Args:
        relations: what is known.
        old: every integer as it is.
        action: who asks, for the message.

    Raises:
        SurgeryError: none do, and the message names two relations that exclude each other, or the one that fails.
    """
    known = list(relations)
    new: dict[IntegerPlace, int] = {}
    because: dict[IntegerPlace, str] = {}
    for relation in sorted(known, key=lambda r: len(r.number.sources)):
        values = {place: new.get(place, old[place]) for place in relation.number.sources}
        if _holds(relation, values):
            for place in relation.number.sources if len(values) == 1 else ():
                new.setdefault(place, values[place])
                because.setdefault(place, relation.where)
            continue
        open_places = sorted((place for place in relation.number.sources if place not in new), key=str)
        found = next(filter(None, (_found(relation, values, place) for place in open_places)), None)
        if found is None:
            raise SurgeryError(_conflict(relation, values, because, action))
        new[found[0]], because[found[0]] = found[1], relation.where
    for relation in known:
        values = {place: new.get(place, old[place]) for place in relation.number.sources}
        if not _holds(relation, values):
            raise SurgeryError(_conflict(relation, values, because, action))
    return new


def _holds(relation: Relation, values: Mapping[IntegerPlace, int]) -> bool:
    try:
        return relation.number.formula(values) == relation.wanted
    except ArithmeticError:
        return False


def _found(
    relation: Relation, values: Mapping[IntegerPlace, int], place: IntegerPlace
) -> tuple[IntegerPlace, int] | None:
    """The number at one place with which a relation holds, while the others stay; the nearest one of several."""
    most = min(_MOST_TRIED, 4 * max(abs(relation.wanted), values[place], 1) + 1)
    for trial in (relation.wanted, *range(values[place], 0, -1), *range(values[place] + 1, most)):
        if _holds(relation, {**values, place: trial}):
            return place, trial
    return None


def _conflict(
    relation: Relation, values: Mapping[IntegerPlace, int], because: Mapping[IntegerPlace, str], action: str
) -> str:
    names = ", ".join(sorted(map(str, values)))
    taken = [f"{because[p]} needs {p} to be {values[p]}" for p in sorted(values, key=str) if p in because]
    if not taken:
        return f"{action}: no value of {names} gives the {relation.wanted} that {relation.where} needs"
    return (
        f"{action}: {names} cannot be right everywhere: {relation.where} needs {relation.wanted}, and {taken[0]}; cut "
        "all that it stands for alike"
    )
