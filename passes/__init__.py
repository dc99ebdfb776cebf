"""Passes: each takes typed graphs and returns a new one, and never changes what it was given.

pass                      what holds afterwards
concatenate.concatenate   the outputs are the mean of the teachers' outputs
gate.gate                 with all gates open, the outputs are the same
gate.fold                 in evaluation the outputs are the same, and the gates are gone
compress.compress         the outputs are those of the network with the removed reads masked
widen.widen               the outputs are the same, with unequal or equal shares
deepen.deepen             the outputs are the same
factorize.factorize       at full rank the outputs are the same
factorize.unfactorize     the outputs are the same
align.align               the outputs are the same, and the channels are in the order of another network
slim.slim                 the outputs are the same, and important channels come first
mask.mask                 the outputs are those of the network with its dead weights 0
prune_dead.prune_dead     in evaluation the outputs are the same, and channels of zeros are gone
relabel.relabel           the logits of known classes are the same, at the numbers of their classes
"""

from graphsurgery.passes import (
    align,
    compress,
    concatenate,
    deepen,
    factorize,
    gate,
    mask,
    prune_dead,
    relabel,
    slim,
    widen,
)

PASSES = {
    "align": align,
    "compress": compress,
    "concatenate": concatenate,
    "deepen": deepen,
    "factorize": factorize,
    "gate": gate,
    "mask": mask,
    "prune_dead": prune_dead,
    "relabel": relabel,
    "slim": slim,
    "widen": widen,
}

__all__ = [
    "PASSES",
    "align",
    "compress",
    "concatenate",
    "deepen",
    "factorize",
    "gate",
    "mask",
    "prune_dead",
    "relabel",
    "slim",
    "widen",
]
