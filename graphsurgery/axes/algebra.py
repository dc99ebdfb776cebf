"""The algebra of axis types: dims, terms, sums, and their unification.

A **dim** is an ordered set of `size` indices, *fixed* (surgery never touches it) or *free*. A **term** is a product
of dims, outermost first, row-major. An **axis** is a sum of terms, in order. `c·49` is a flattened `[C, 7, 7]`;
`a + b` is a concat; `g·k` are the channels of a grouped convolution.

Unification makes two axes the same type. Terms are matched from the left; a dim that is too long is *refined* into a
sum (`c := a + b`) or a product (`c := g·k`). A refinement is a link from the dim, so that everything typed earlier
sees it. What cannot meet raises `Clash`; whoever called freezes both sides, so inference is never silently wrong.

Pure Python: no torch, no fx.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from math import prod


class Clash(Exception):
    """Two axes cannot be the same type."""


class Dim:
    """An ordered set of indices; compared by identity."""

    __slots__ = ("fixed", "link", "size")

    def __init__(self, size: int, *, fixed: bool = False) -> None:
        self.size = size
        self.fixed = fixed
        self.link: Axis | None = None

    def __repr__(self) -> str:
        return f"{'=' if self.fixed else '~'}{self.size}"


Term = tuple[Dim, ...]
Axis = tuple[Term, ...]

UNIT: Axis = ((),)
_LONGEST_SUM = 1024


@lru_cache(maxsize=4096)
def fixed(size: int) -> Axis:
    """The axis of one fixed dim; fixed dims have no identity beyond their size."""
    return UNIT if size == 1 else ((Dim(size, fixed=True),),)


def free(size: int) -> Axis:
    """An axis of one new free dim; a single free index differs from the unit, which is fixed and stretches.

    Of no index there is nothing to choose: such an axis is fixed.
    """
    return ((Dim(size, fixed=size == 0),),)


def term_size(term: Term) -> int:
    return term[0].size if len(term) == 1 else prod([dim.size for dim in term])


def size_of(axis: Axis) -> int:
    """Number of indices of the axis."""
    return term_size(axis[0]) if len(axis) == 1 else sum([term_size(term) for term in axis])


def dims_of(axis: Axis) -> Iterator[Dim]:
    """Every dim of the axis after refinement, in order, repeats included."""
    for term in resolve(axis):
        yield from term


def is_fixed(axis: Axis) -> bool:
    """Whether surgery may not touch any index of this axis."""
    return all(dim.fixed for dim in dims_of(axis))


def resolve(axis: Axis) -> Axis:
    """The axis with every refinement followed, units dropped and neighbouring fixed parts merged."""
    if len(axis) == 1 and len(axis[0]) == 1:
        dim = axis[0][0]
        if dim.link is None:
            return UNIT if dim.size == 1 and dim.fixed else axis
        dim.link = resolve(dim.link)
        return dim.link
    if _is_settled(axis):
        return axis
    terms: list[Term] = []
    for term in axis:
        terms.extend(_expand(term))
    return _merge_fixed(terms)


def _is_settled(axis: Axis) -> bool:
    """Whether there is nothing to follow, to drop or to merge, as all dims are free and none is refined."""
    for term in axis:
        for dim in term:
            if dim.fixed or dim.link is not None:
                return False
    return True


def _expand(term: Term) -> list[Term]:
    """Follow the links of one term and distribute its products over the sums that appear."""
    for dim in term:
        if dim.link is not None or (dim.size == 1 and dim.fixed):
            break
    else:
        return [term]
    terms: list[Term] = [()]
    for dim in term:
        if dim.size == 1 and dim.fixed:
            continue
        if dim.link is None:
            terms = [(*t, dim) for t in terms]
            continue
        dim.link = resolve(dim.link)
        terms = _distribute(terms, dim.link)
    return terms


def _distribute(outer: Sequence[Term], inner: Axis) -> list[Term]:
    """`outer · inner`; a product over an inner sum exists only where the outer factor is fixed, so it is frozen."""
    single = inner[0] if len(inner) == 1 else _as_term(inner) if any(not d.fixed for t in outer for d in t) else None
    if single is not None:
        return [term + single for term in outer]
    if sum(term_size(term) for term in outer) * len(inner) > _LONGEST_SUM:
        freeze(inner)
        return [(*term, Dim(size_of(inner), fixed=True)) for term in outer]
    result: list[Term] = []
    for term in outer:
        for dim in term:
            dim.fixed = True
        result.extend(inner * term_size(term))
    return result


def _as_term(axis: Axis) -> Term | None:
    """A sum of n times the same term is the term `n · term`; None for other sums."""
    if len(axis) == 1:
        return axis[0]
    return (*fixed(len(axis))[0], *axis[0]) if axis and all(term == axis[0] for term in axis) else None


def _merge_fixed(terms: Iterable[Term]) -> Axis:
    merged: list[Term] = []
    for term in terms:
        if len(term) > 1 and any(a.fixed and b.fixed for a, b in itertools.pairwise(term)):
            term = _merge_factors(term)
        only_fixed = not term or (len(term) == 1 and term[0].fixed)
        if only_fixed and merged and (not merged[-1] or (len(merged[-1]) == 1 and merged[-1][0].fixed)):
            merged[-1] = fixed(term_size(merged[-1]) + term_size(term))[0]
        else:
            merged.append(term)
    return tuple(merged)


def _merge_factors(term: Term) -> Term:
    result: list[Dim] = []
    for dim in term:
        if dim.fixed and dim.size == 1:
            continue
        if result and dim.fixed and result[-1].fixed:
            result[-1] = fixed(result[-1].size * dim.size)[0][0]
        else:
            result.append(dim)
    return tuple(result)


def freeze(*axes: Axis) -> int:
    """Make every dim of these axes fixed; returns how many were free."""
    count = 0
    for axis in axes:
        for dim in dims_of(axis):
            count += not dim.fixed
            dim.fixed = True
    return count


def concat(axes: Iterable[Axis]) -> Axis:
    """The direct sum, in order."""
    return resolve(tuple(term for axis in axes for term in axis))


def product(axes: Iterable[Axis]) -> Axis:
    """The product, outermost first: the type of these axes flattened into one."""
    result: list[Term] = [()]
    for axis in axes:
        result = _distribute(result, resolve(axis))
    return resolve(tuple(result))


def factor(axis: Axis, sizes: Sequence[int]) -> list[Axis]:
    """Split one axis into a product of axes of these sizes, refining it where needed.

    Raises:
        Clash: the sizes do not divide the axis along its structure.
    """
    if len(sizes) == 1:
        return [axis]
    parts = [free(size) if size != 1 else UNIT for size in sizes]
    unify(axis, (tuple(dim for part in parts for dim in part[0]),))
    return [resolve(part) for part in parts]


def take(axis: Axis, start: int, stop: int) -> Axis:
    """The sub-axis of the indices `start <= i < stop`, refining what straddles a border.

    Raises:
        Clash: a border falls inside an element of a product.
    """
    remaining = list(reversed(resolve(axis)))
    taken: list[Term] = []
    position = 0
    while remaining and position < stop:
        term = remaining.pop()
        expanded = _expand(term)
        if len(expanded) > 1:
            remaining.extend(reversed(expanded))
            continue
        term = expanded[0]
        end = position + term_size(term)
        border = start if position < start < end else stop if end > stop else end
        if border != end:
            head, tail = _split(term, border - position)
            remaining.extend((tail, head))
            continue
        if position >= start:
            taken.append(term)
        position = end
    return resolve(tuple(taken)) if taken else ()


def _split(term: Term, count: int) -> tuple[Term, Term]:
    """Split a term after `count` indices."""
    if all(dim.fixed for dim in term):
        return fixed(count)[0], fixed(term_size(term) - count)[0]
    outer, inner = term[0], term[1:]
    size = term_size(inner)
    if count % size:
        raise Clash(f"a border at {count} falls inside a block of {size}")
    head, tail = count // size, outer.size - count // size
    if outer.fixed:
        return (*fixed(head)[0], *inner), (*fixed(tail)[0], *inner)
    # A single factor of a product is the unit.
    first, second = (Dim(n, fixed=n == 1 and size > 1) for n in (head, tail))
    outer.link = ((first,), (second,))
    return (first, *inner), (second, *inner)


def unify(a: Axis, b: Axis) -> None:
    """Make two axes the same type, refining dims on both sides.

    Terms are matched from the left. Of two terms of unequal size the longer is split where the shorter ends (`_split`);
    two of equal size are matched factor by factor (`_unify_terms`), of which the larger is divided by the smaller.

    A stream of 12 channels meets a concat of 4 and 8. It becomes their sum, wherever it was typed before:

    >>> stream, first, second = free(12), free(4), free(8)
    >>> unify(stream, concat([first, second]))
    >>> resolve(stream) == first + second
    True

    What is behind the concat is a convolution of 4 groups, `g·k`. The first 4 indices are the 1st group and a third of
    the 2nd: a border falls inside a product, and there is no such type. Whoever asked freezes both.

    >>> groups, inside = free(2), free(6)
    >>> unify(stream, product([groups, inside]))
    Traceback (most recent call last):
    graphsurgery.axes.algebra.Clash: a border at 4 falls inside a block of 6

    Heads of size 16 and heads of size 32, both of 64 channels: the first has 4 heads `h`, the second 2. The larger
    factor, `h`, is divided by the smaller: `h := g·r`. What is left over on the other side, 32, is `r` times 16.

    >>> h, d, g, e = free(4), free(16), free(2), free(32)
    >>> unify(product([h, d]), product([g, e]))
    >>> [term_size(term) for axis in (h, e) for term in resolve(axis)], [len(resolve(axis)[0]) for axis in (h, e)]
    ([4, 32], [2, 2])
    >>> resolve(h)[0][1] is resolve(e)[0][0]
    True

    Raises:
        Clash: their sizes differ, or a border of one falls inside an element of the other.
    """
    if a is b:
        return
    a, b = resolve(a), resolve(b)
    if a == b:
        return
    if size_of(a) != size_of(b):
        raise Clash(f"{size_of(a)} and {size_of(b)} indices")
    if _becomes(a, b) or _becomes(b, a):
        return
    if _repeats(a, b) or _repeats(b, a):
        return
    left, right = list(reversed(a)), list(reversed(b))
    while left:
        s, t = _pop(left), _pop(right)
        if s is t:
            continue
        m, n = term_size(s), term_size(t)
        if m > n:
            s, rest = _split(s, n)
            left.append(rest)
        elif n > m:
            t, rest = _split(t, m)
            right.append(rest)
        _unify_terms(s, t)


def _becomes(axis: Axis, other: Axis) -> bool:
    """Refine an axis of one free dim to another of its size; matching them term by term would come to the same.

    A product with a single free index is left to the matching, which fixes that index.
    """
    if len(axis) != 1 or len(axis[0]) != 1 or axis[0][0].fixed:
        return False
    if any(len(term) > 1 and any(dim.size == 1 for dim in term) for term in other):
        return False
    axis[0][0].link = other
    return True


def _repeats(axis: Axis, other: Axis) -> bool:
    """Make a product of n the n equal parts of a sum, whose borders lie inside of what matching would split off."""
    if len(axis) != 1 or len(axis[0]) < 2 or len(other) < 2 or len(other) % axis[0][0].size:
        return False
    count = axis[0][0].size
    part = other[: len(other) // count]
    if count == 1 or other != part * count:
        return False
    axis[0][0].fixed = True
    unify((axis[0][1:],), part)
    return True


def _pop(stack: list[Term]) -> Term:
    """The next term, with the refinements that happened since it was put on the stack."""
    terms = _expand(stack.pop())
    stack.extend(reversed(terms[1:]))
    return terms[0]


def _unify_terms(s: Term, t: Term) -> None:
    """Make two products of equal size the same, matching factors from the left."""
    if s == t:
        return
    if all(dim.fixed for dim in s) or all(dim.fixed for dim in t):
        freeze((s,), (t,))
        return
    left, right = list(reversed(s)), list(reversed(t))
    while left and right:
        x, y = _pop_factor(left), _pop_factor(right)
        if x is None or y is None:
            left.extend([x] if x else [])
            right.extend([y] if y else [])
            continue
        if x.size != y.size and 1 in (x.size, y.size):
            # A single factor has nothing to stand against: it is the unit, which is fixed.
            single, longer, stack = (x, y, right) if x.size == 1 else (y, x, left)
            single.fixed = True
            stack.append(longer)
        elif x.size > y.size:
            left.append(_divide(x, y))
        elif y.size > x.size:
            right.append(_divide(y, x))
        else:
            _unify_dims(x, y)
    freeze((tuple(left),), (tuple(right),))


def _pop_factor(stack: list[Dim]) -> Dim | None:
    dim = stack.pop()
    if dim.size == 1 and dim.fixed:
        return None
    if dim.link is not None:
        terms = resolve(dim.link)
        term = _as_term(terms)
        if term is None:
            raise Clash(f"a sum of {len(terms)} parts inside a product")
        stack.extend(reversed(term))
        return None
    return dim


def _divide(large: Dim, small: Dim) -> Dim:
    """Refine `large := small · rest` and return the rest."""
    if large.size % small.size:
        raise Clash(f"{large.size} is not a multiple of {small.size}")
    rest = Dim(large.size // small.size, fixed=large.fixed)
    if large.fixed:
        small.fixed = True
    else:
        large.link = ((small, rest),)
    return rest


def _unify_dims(x: Dim, y: Dim) -> None:
    if x is y:
        return
    if x.fixed or y.fixed:
        x.fixed = y.fixed = True
    else:
        x.link = ((y,),)
