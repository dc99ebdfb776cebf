"""Every node test of the ONNX standard through the importer: right, or refused with a reason, and never wrong.

    .venv/bin/python benchmarks/onnx_nodes.py [--afresh] [OPERATOR ...]

Each test has a process of its own, with a limit of memory and time. What was found stands in `runs/onnx_nodes.jsonl`,
and a run that ended goes on where it was; `--afresh` begins anew.

The tests are those of the installed onnx package: a model of one operator, inputs, and the outputs that the standard
asks for. Each is tried as it stands, and once more with all inputs but the first as weights of the file, which takes
the way of layers. What is read is run in PyTorch, not compared with its file before.
"""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import re
import resource
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import onnx
import torch
from document import DOCS
from onnx import numpy_helper

from graphsurgery.errors import SurgeryError, one_line
from graphsurgery.network.outputs.naming import tensors_of
from graphsurgery.onnx.importing import import_onnx
from graphsurgery.onnx.runtime.kept_operators import OnnxOperator
from graphsurgery.onnx.runtime.sessions import open_session

VERDICTS = ("right", "runtime", "refused", "wrong", "crashed")
_PAGE = DOCS / "onnx_operators.md"
_FOUND = DOCS.parent / "runs" / "onnx_nodes.jsonl"
_MOST_BYTES = 2 * 2**30
"""Of memory that a test may take; torch, ONNX Runtime and all tests alone take 0.7 GB."""
_MOST_SECONDS = 60
_INTRODUCTION = """# Operators of `.onnx` files

What the importer makes of the node tests of the ONNX standard, {total} models: each test as it stands, and with all
inputs but the first as weights of the file. *Right* is what PyTorch gives on the test's inputs within its tolerance.
*Runtime* is what is kept whole and run by ONNX Runtime, which gives something else than the test asks for. What is
refused says why. Nothing may be wrong, and nothing may crash: take more than {gigabytes} GB of memory or {seconds}
seconds, or end its process.

Many tests are refused because their first axis is no batch: the sum of `[3, 4, 5]` and `[5]` as two inputs has none.
`python benchmarks/onnx_nodes.py` writes this page; onnx {version}.
"""


class Found(NamedTuple):
    """What became of one test.

    Attributes:
        name: of the test, `(weights)` behind it where its inputs became weights.
        operator: what is tested.
        verdict: one of `VERDICTS`.
        reason: why it is not right.
    """

    name: str
    operator: str
    verdict: str
    reason: str = ""


def cases(operators: Sequence[str] = ()) -> list[Any]:
    """The node tests of the installed onnx package, by default all.

    Each file of them computes its outputs when it is imported, those of poolings in Python and for seconds.
    """
    from onnx.backend.test.case import node

    files = [f"{node.__name__}.{operator.lower()}" for operator in operators]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        if files and all(importlib.util.find_spec(file) for file in files):
            for file in files:
                importlib.import_module(file)
            found = node._NodeTestCases
        else:
            found = node.collect_testcases(None)
    return [case for case in found if not operators or operator_of(case.model) in operators]


def operator_of(model: onnx.ModelProto) -> str:
    """The operator that a test is of: its last node."""
    node = model.graph.node[-1]
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"


def examine(case: Any, folder: Path) -> Iterator[Found]:
    """Try one test in both ways."""
    inputs, outputs = ([_array(value) for value in values] for values in case.data_sets[0])
    operator = operator_of(case.model)
    yield _tried(case.name, operator, case, case.model, inputs, outputs, folder)
    if len(inputs) > 1 and all(isinstance(x, np.ndarray) for x in inputs):
        model = with_weights(case.model, inputs)
        yield _tried(f"{case.name} (weights)", operator, case, model, inputs[:1], outputs, folder)


def _array(value: Any) -> Any:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def with_weights(model: onnx.ModelProto, inputs: Sequence[np.ndarray[Any, Any]]) -> onnx.ModelProto:
    """The model with all inputs but the first as weights."""
    new = onnx.ModelProto()
    new.CopyFrom(model)
    values = list(new.graph.input)
    del new.graph.input[:]
    new.graph.input.append(values[0])
    for value, array in zip(values[1:], inputs[1:], strict=True):
        new.graph.initializer.append(numpy_helper.from_array(np.asarray(array), value.name))
    return new


def _tried(
    name: str, operator: str, case: Any, model: onnx.ModelProto, inputs: Sequence[Any], outputs: Any, folder: Path
) -> Found:
    path = folder / "test.onnx"
    path.write_bytes(model.SerializeToString())
    try:
        graph = import_onnx(path, check=False).graph
    except SurgeryError as cause:
        return Found(name, operator, "refused", one_line(cause).replace(f"{path}: ", ""))
    except Exception as cause:
        return Found(name, operator, "crashed", f"{type(cause).__name__}: {one_line(cause)}")
    try:
        with torch.no_grad():
            found = tensors_of(graph.module(*map(_tensor, inputs)))
    except ValueError as cause:  # a decision that was right for another batch: the network refuses this input
        return Found(name, operator, "refused", one_line(cause))
    except Exception as cause:
        return Found(name, operator, "crashed", f"in the run: {type(cause).__name__}: {one_line(cause)}")
    reason = _difference(found, outputs, max(case.rtol, 1e-3), max(case.atol, 1e-5))
    if reason and any(isinstance(part, OnnxOperator) for part in graph.module.modules()):
        session = open_session(path, threads=1)
        names = [value.name for value in session.get_inputs()]
        runtime = session.run(None, dict(zip(names, inputs, strict=True)))
        if not _difference(found, runtime, 1e-3, 1e-5):
            return Found(name, operator, "runtime", reason)
    return Found(name, operator, "wrong" if reason else "right", reason)


def _tensor(x: Any) -> torch.Tensor:
    """An input of a network, which is in float32 whatever its file is in."""
    array = np.array(x)
    floating = array.dtype.kind == "f" or array.dtype == ml_dtypes.bfloat16
    return torch.from_numpy(array.astype(np.float32) if floating else array)


def _difference(found: Sequence[torch.Tensor], expected: Sequence[Any], rtol: float, atol: float) -> str:
    """What is not as the test asks, in words; empty where all is."""
    if len(found) != len(expected):
        return f"gives {len(found)} outputs, not {len(expected)}"
    for tensor, array in zip(found, expected, strict=True):
        if tuple(tensor.shape) != array.shape:
            return f"gives {list(tensor.shape)}, not {list(array.shape)}"
        wanted = array.astype(np.float64)
        finite = wanted[np.isfinite(wanted)]
        floating = array.dtype.kind not in "iub"
        # Sums of large numbers that cancel are as exact as those numbers.
        least = max(atol, 1e-5 * float(np.abs(finite).max(initial=0))) if floating else 0.0
        rounding = max(rtol, 4 * float(ml_dtypes.finfo(array.dtype).eps)) if floating else 0.0
        close = np.isclose(tensor.double().numpy(), wanted, rounding, least, equal_nan=True)
        if not close.all():
            return f"{(~close).mean():.0%} of the numbers differ"
    return ""


def table(found: Sequence[Found]) -> list[str]:
    """Rows of operator, counts by verdict and reasons."""
    lines = ["| operator | right | runtime | refused | wrong | why refused |", "| --- | --: | --: | --: | --: | --- |"]
    for operator in sorted({each.operator for each in found}):
        own = [each for each in found if each.operator == operator]
        counts = Counter(each.verdict for each in own)
        reasons = Counter(_general(each.reason) for each in own if each.verdict == "refused")
        words = "; ".join(f"{reason} ({count})" for reason, count in reasons.most_common(4))
        wrong = counts["wrong"] + counts["crashed"]
        lines.append(
            f"| {operator} | {counts['right']} | {counts['runtime']} | {counts['refused']} | {wrong} | {words} |"
        )
    return lines


def _general(reason: str) -> str:
    """A reason without what is only this test's."""
    reason = re.sub(r"^\S+ \(\S+\): ", "", reason)
    reason = re.sub(r"\[ONNXRuntimeError\] : \d+ : ", "", reason)
    return re.sub(r"\s+", " ", reason).replace("|", "/")[:110]


def _load() -> None:
    """Load what torch loads late, once instead of in every process."""
    import_onnx(
        onnx.parser.parse_model(
            '<ir_version: 8, opset_import: ["": 18]> m (float[2, 3] x) => (float[2, 3] y) { y = Relu (x) }'
        )
    )


def examine_apart(case: Any) -> list[Found]:
    """Try one test in a process of its own; where it ends, takes too long or too much memory, it crashed."""
    context = multiprocessing.get_context("fork")  # which has torch and the tests already
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_examined, args=(case, sending))
    process.start()
    sending.close()
    try:
        if not receiving.poll(_MOST_SECONDS):
            process.kill()
            return [Found(case.name, operator_of(case.model), "crashed", f"took more than {_MOST_SECONDS} seconds")]
        return [Found(*fields) for fields in receiving.recv()]
    except EOFError:
        process.join()
        return [Found(case.name, operator_of(case.model), "crashed", f"ended with {process.exitcode}")]
    finally:
        process.join()


def _examined(case: Any, sending: Connection) -> None:
    # Beyond four times the limit it gets none, so that the machine is safe; what it copes with without is found below.
    resource.setrlimit(resource.RLIMIT_DATA, (4 * _MOST_BYTES, 4 * _MOST_BYTES))
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = list(examine(case, Path(folder)))
    taken = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if taken > _MOST_BYTES:
        found = [each._replace(verdict="crashed", reason=f"took {taken / 2**30:.1f} GB") for each in found]
    sending.send([tuple(each) for each in found])


def _known() -> dict[str, list[Found]]:
    """What an earlier run found, by the name of the test."""
    if not _FOUND.exists():
        return {}
    rows = [json.loads(line) for line in _FOUND.read_text().splitlines()]
    return {row["name"]: [Found(*fields) for fields in row["found"]] for row in rows}


def _all_found() -> list[Found]:
    """What becomes of all tests; each is kept as soon as it is known."""
    known, found = _known(), []
    _FOUND.parent.mkdir(exist_ok=True)
    with _FOUND.open("a") as file:
        for case in cases():
            if case.name not in known:
                known[case.name] = examine_apart(case)
                file.write(json.dumps({"name": case.name, "found": known[case.name]}) + "\n")
                file.flush()
            found += known[case.name]
    return found


def main(arguments: Sequence[str]) -> int:
    operators = [argument for argument in arguments if argument != "--afresh"]
    if "--afresh" in arguments:
        _FOUND.unlink(missing_ok=True)
    _load()
    found = [each for case in cases(operators) for each in examine_apart(case)] if operators else _all_found()
    for each in found:
        if each.verdict in ("wrong", "crashed") or operators:
            print(f"{each.verdict:8} {each.operator:24} {each.name}: {each.reason}")
    counts: Mapping[str, int] = Counter(each.verdict for each in found)
    summary = ", ".join(f"{counts.get(verdict, 0)} {verdict}" for verdict in VERDICTS)
    print(summary)
    if not operators:
        text = _INTRODUCTION.format(
            total=len(found), version=onnx.__version__, gigabytes=_MOST_BYTES // 2**30, seconds=_MOST_SECONDS
        )
        _PAGE.write_text("\n".join([text, f"Together: {summary}.", "", *table(found), ""]))
    return int(bool(counts.get("wrong", 0) or counts.get("crashed", 0)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
