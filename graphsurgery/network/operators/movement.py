"""Operators that compute nothing: every number that they give is one that they were given."""

from __future__ import annotations

import operator

from torch import nn

from graphsurgery.network.operators.record import Trait, record

_MOVES = Trait.MOVES | Trait.AFFINE | Trait.KEEPS_RANGE | Trait.KEEPS_ZERO
_LAYS_OUT = _MOVES | Trait.LAYS_OUT
_REORDERS = _MOVES | Trait.REORDERS

record("reshape view", traits=_LAYS_OUT)
record("reshape_as view_as", traits=_MOVES)
record("flatten", nn.Flatten, traits=_LAYS_OUT)
record("ravel", traits=_MOVES)
record("unflatten", nn.Unflatten, traits=_LAYS_OUT)
record("squeeze", traits=_LAYS_OUT)
record("unsqueeze", traits=_LAYS_OUT)
record("split split_with_sizes chunk tensor_split unsafe_split unsafe_chunk unsafe_split_with_sizes", traits=_LAYS_OUT)
record("hsplit vsplit dsplit", traits=_MOVES)
record("unbind", traits=_LAYS_OUT)
record("narrow", traits=_LAYS_OUT)
record("select", traits=_MOVES)
record("index_select", traits=_MOVES)
record("gather", traits=_MOVES)
record("take_along_dim", traits=_MOVES)
record("getitem", traits=_MOVES, also=[operator.getitem])
record("getattr", traits=_MOVES, also=[getattr])
record("cat concat concatenate", traits=_LAYS_OUT | Trait.FRESH)
record("stack", traits=_REORDERS | Trait.FRESH)
record("permute", traits=_REORDERS)
record("transpose swapaxes swapdims", traits=_REORDERS)
record("movedim moveaxis", traits=_REORDERS)
record("t adjoint", traits=_MOVES)
record("channel_shuffle native_channel_shuffle", nn.ChannelShuffle, traits=_REORDERS)
record("pixel_shuffle", nn.PixelShuffle, traits=_MOVES)
record("pixel_unshuffle", nn.PixelUnshuffle, traits=_MOVES)
record("expand broadcast_to", traits=_MOVES)
record("expand_as", traits=_MOVES)
record("repeat tile", traits=_MOVES)
record("roll", traits=_MOVES)
record("flip", traits=_MOVES)
record("fliplr", traits=_MOVES)
record("flipud", traits=_MOVES)
record("rot90", traits=_MOVES)
