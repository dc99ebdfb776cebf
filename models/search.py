"""Which models there are by a word, and what is known of one."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from graphsurgery.errors import SpecError, one_line
from graphsurgery.models.paper.table import PAPER_NETWORKS
from graphsurgery.models.sources.listing import Listing
from graphsurgery.models.sources.names import available, near_specs, options_of
from graphsurgery.models.spec_text import parse_spec
from graphsurgery.models.specs import input_shape


@dataclass(frozen=True)
class About:
    """What is known of a model spec.

    Attributes:
        spec: its name.
        options: what may stand behind the `?`.
        weights: the names of trained weights that `weights=` takes, of torchvision.
        shape: of one input, without the batch; None where it is not known.
    """

    spec: str
    options: tuple[str, ...]
    weights: tuple[str, ...]
    shape: tuple[int, ...] | None


def matching(word: str) -> list[str]:
    """The model specs in which a word occurs, in whatever case.

    Raises:
        SpecError: there are none; it names near ones.
    """
    found = [spec for spec in available() if word.lower() in spec.lower()]
    if not found:
        raise SpecError(f"models: no name has {word!r} in it; {near_specs(word)}")
    return found


def about(spec: str) -> About:
    """What is known of a model spec of the paper, torchvision or timm."""
    name = parse_spec(spec).name
    source, _, model = name.partition("/")
    weights: tuple[str, ...] = ()
    if source == "torchvision":
        from torchvision.models import get_model_weights

        weights = ("DEFAULT", *get_model_weights(model).__members__)
    try:
        shape = input_shape(spec)
    except SpecError:
        shape = None
    return About(spec, tuple(options_of(name)), tuple(dict.fromkeys(weights)), shape)


def paper_listing() -> Listing:
    """The papers' networks, what they are, and their options with the values that hold without them."""
    rows = []
    for name, builder in PAPER_NETWORKS.items():
        first = one_line(Exception(inspect.getdoc(builder) or "")).partition(";")[0].partition(". ")[0]
        rows.append((f"`paper/{name}`", first, ", ".join(f"`{key}={_shown(v)}`" for key, v in _defaults(builder))))
    return Listing(("network", "what it is", "options"), rows)


def _defaults(builder: Any) -> list[tuple[str, Any]]:
    return [(name, parameter.default) for name, parameter in inspect.signature(builder).parameters.items()]


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
