"""Delivery in 8 bits: which file is written, and what every scheme computes on every processor."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import graphsurgery as gs
from graphsurgery.errors import SurgeryError
from graphsurgery.onnx.arithmetic.integers import IntegerNetwork
from graphsurgery.onnx.exporting.quantizing import SAFE, SCHEMES
from graphsurgery.recipes.delivery import quantize
from graphsurgery.recipes.delivery.quantize import deliver_int8
from graphsurgery.training.data import load_data


@pytest.fixture(scope="module")
def data():
    return load_data("digits?train=100")


@pytest.fixture(scope="module")
def graph():
    """A network whose weights have one sign, so that their pairs saturate under u8s8."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    with torch.no_grad():
        model[3].weight.abs_()
    return gs.trace(model.eval(), torch.zeros(2, 1, 8, 8))


@pytest.mark.parametrize("scheme", ["u8u8", "u8s8"])
def test_the_file_of_the_scheme_is_written(graph, data, tmp_path, monkeypatch, scheme):
    monkeypatch.setattr(quantize, "_COMPUTED", 0)
    report = deliver_int8(graph, tmp_path / "q.onnx", data, examples=20, scheme=scheme)
    assert report.scheme == scheme
    assert (report.compared, report.calibrated) == (1, 20)
    written = IntegerNetwork(tmp_path / "q.onnx")
    assert written.overflowing == report.schemes[scheme].overflowing
    assert (written.overflowing == 0) == (scheme in SAFE)
    assert report.int8.bytes == report.schemes[scheme].bytes == (tmp_path / "q.onnx").stat().st_size
    numbers = {product.numbers.dtype.name for product in written.products.values()}
    assert numbers == {"uint8" if scheme == "u8u8" else "int8"}


def test_every_scheme_is_computed_with_both_sums(graph, data, tmp_path):
    report = deliver_int8(graph, tmp_path / "q.onnx", data, examples=20)
    assert list(report.schemes) == list(SCHEMES)
    assert report.scheme == "u8s7"
    assert IntegerNetwork(tmp_path / "q.onnx").overflowing == 0
    assert report.compared == report.tested == len(data.test)
    for name, scheme in report.schemes.items():
        assert set(scheme.exact.metrics) == {"accuracy"}
        assert (scheme.exact == scheme.saturating) == (name in SAFE)
    unsafe = report.schemes["u8s8"]
    assert unsafe.saturating.deviation > 2 * unsafe.exact.deviation
    # Exact sums are what ONNX Runtime computes on every processor, but for values between two steps of the 8 bits.
    assert report.deviation == pytest.approx(report.schemes["u8s7"].exact.deviation, rel=0.2)
    assert report.as_dict()["schemes"]["u8u8"]["overflowing"] == 0


def test_an_unknown_scheme_is_refused_before_the_export(graph, data, tmp_path):
    with pytest.raises(SurgeryError, match=r"q\.onnx: found scheme 'u4u4', expected one of u8s7, u8u8, u8s8"):
        deliver_int8(graph, tmp_path / "q.onnx", data, scheme="u4u4")
    assert list(tmp_path.iterdir()) == []
