"""A share of `benchmarks/campaigns/every_call.py`: calls of torch between two layers, drawn by a number."""

import pytest
import torch
from calls_left_out import LEFT_OUT, why_left_out
from invented_calls import (
    CANNOT_STAND,
    FAULT,
    FROZEN,
    REFUSED,
    RULE,
    Spelled,
    became,
    every_call,
    reason_of,
)

from graphsurgery.axes.inference import RULES, rule
from graphsurgery.axes.rules.without import FROZEN as ON_PURPOSE

EVERY = every_call()
SHARE = [spelled for number, spelled in enumerate(EVERY) if number % 43 == 7]


@pytest.mark.parametrize("first", range(4))
def test_a_share_of_all_calls(first):
    for spelled in SHARE[first::4]:
        found = became(spelled, check=False)
        assert found.outcome != FAULT, f"{spelled}: {found.words}"
        assert (found.outcome == RULE) == (not found.words)


NAMED = {
    "torch.cumsum": (RULE, ""),
    "torch.nn.LocalResponseNorm": (RULE, ""),
    "torch.nn.functional.mse_loss": (RULE, ""),
    "torch.cdist": (RULE, ""),
    "torch.Tensor.index_add_": (FROZEN, "an axis that is written by indices"),
    "torch.linalg.inv": (FROZEN, "is of a matrix as a whole, and of one with rows of zeros there is none"),
    "torch.histogram": (REFUSED, "attempted to run this operator with Meta tensors"),
    "torch.arange": (CANNOT_STAND, "makes a tensor of no other one"),
}


@pytest.mark.parametrize("name", NAMED)
def test_what_becomes_of_a_call(name):
    home, _, called = name.rpartition(".")
    spelled = Spelled(home, called)
    found = became(spelled, check=False)
    assert found.outcome == NAMED[name][0]
    assert reason_of(spelled, found.words).startswith(NAMED[name][1])


def test_an_unknown_name_is_a_fault(monkeypatch):
    monkeypatch.setattr(torch, "brand_new", lambda *operands: operands[7], raising=False)
    assert Spelled("torch", "brand_new") in every_call()
    assert became(Spelled("torch", "brand_new")).outcome == FAULT


def test_a_call_that_freezes_without_a_reason_is_a_fault(monkeypatch):
    monkeypatch.delitem(RULES, torch.cumsum)
    found = became(Spelled("torch", "cumsum"), check=False)
    assert (found.outcome, found.words) == (FAULT, "no rule for cumsum")


def test_a_rule_that_is_wrong_is_a_fault(monkeypatch):
    monkeypatch.delitem(RULES, torch.cumsum)
    monkeypatch.setitem(RULES, torch.cumsum, RULES[torch.sin])
    found = became(Spelled("torch", "cumsum"), check=False)
    assert found.outcome == FAULT
    assert found.words.startswith("permuted: off by")


def test_the_lists_name_what_is_there_and_nothing_twice():
    reasons = [name for names in ON_PURPOSE.values() for name in names.split()]
    assert len(reasons) == len(set(reasons))
    for name in reasons:
        assert any(spelled.name.rstrip("_") == name.rstrip("_") for spelled in EVERY), name
    left = {name for names in LEFT_OUT.values() for name in names.split()}
    assert why_left_out("torch", "arange") == "makes a tensor of no other one"
    assert why_left_out("torch", "sin") is None
    assert {"arange", "nonzero", "Lazy*"} < left


def test_a_second_rule_for_a_call_is_an_error():
    with pytest.raises(ValueError, match="has a rule already"):
        rule(torch.cumsum)(lambda *_: None)
