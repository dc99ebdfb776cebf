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
slim.slim                 the outputs are the same, and important channels come first
"""

from graphsurgery.passes import compress, concatenate, deepen, factorize, gate, slim, widen

PASSES = {
    "compress": compress,
    "concatenate": concatenate,
    "deepen": deepen,
    "factorize": factorize,
    "gate": gate,
    "slim": slim,
    "widen": widen,
}

__all__ = ["PASSES", "compress", "concatenate", "deepen", "factorize", "gate", "slim", "widen"]
