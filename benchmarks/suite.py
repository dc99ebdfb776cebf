"""How much memory and time does each file of the tests take, and which tests are slow? docs/tests.md.

    python benchmarks/suite.py                       # the whole suite with two workers
    python benchmarks/suite.py tests/network/test_assembly.py # some of it; prints and writes no page

Linux only. Time is that of the processor, child processes included, next to the clock's: other work on the machine
makes the clock's longer. Memory is the highest resident memory of a worker while a test of the file ran.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from document import DOCS, measured, table, write_section

WORKERS = 2
SLOWEST = 30
ALLOWED = 1536
"""Megabytes that a worker may have resident at any time."""
_FOLDER = "SUITE_MEASURES"
_STATUS = re.compile(r"(VmHWM|VmRSS):\s+(\d+) kB")


@dataclass(frozen=True)
class Measure:
    """One test: its fixtures, itself and what it leaves.

    Attributes:
        test: its name for pytest.
        worker: which process ran it.
        seconds: of the clock.
        busy: seconds of the processor, child processes that have ended included.
        peak: highest resident memory while it ran, in MB.
        resident: resident memory behind it, in MB.
    """

    test: str
    worker: str
    seconds: float
    busy: float
    peak: float
    resident: float

    @property
    def file(self) -> str:
        return self.test.partition("::")[0]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Measure a test, where this module is loaded as a plugin of pytest."""
    Path("/proc/self/clear_refs").write_text("5")  # the highest memory counts from here
    began, busy = time.perf_counter(), _busy()
    result = yield
    status = {name: int(kilobytes) / 1024 for name, kilobytes in _STATUS.findall(Path("/proc/self/status").read_text())}
    worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
    seconds = time.perf_counter() - began, _busy() - busy
    measure = Measure(item.nodeid, worker, *seconds, status["VmHWM"], status["VmRSS"])
    with (Path(os.environ[_FOLDER]) / worker).open("a", encoding="utf-8") as file:
        file.write(f"{json.dumps(asdict(measure))}\n")
    return result


def _busy() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tests", nargs="*", help="arguments of pytest")
    options = parser.parse_args()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        code = run(Path(folder), options.tests)
        lines = [line for path in Path(folder).iterdir() for line in path.read_text(encoding="utf-8").splitlines()]
    measures = [Measure(**json.loads(line)) for line in lines]
    seconds = time.perf_counter() - began
    text = "\n\n".join(
        [total(measures, seconds, _busy()), "### By file", files(measures), "### The slowest", slowest(measures)]
    )
    print(text)
    if not options.tests and code == 0:
        write_section("suite", f"{measured('python benchmarks/suite.py', seconds)}\n\n{text}", DOCS / "tests.md")
    if code:
        raise SystemExit(code)
    highest = max(measures, key=lambda measure: measure.peak)
    if highest.peak > ALLOWED:
        raise SystemExit(f"{highest.test}: its worker had {highest.peak:,.0f} MB resident, allowed are {ALLOWED}")


def run(folder: Path, tests: list[str]) -> int:
    """Run the tests with this module as a plugin; the exit code."""
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", _FOLDER: str(folder)}
    words = [sys.executable, "-m", "pytest", "-p", "suite", "-n", str(WORKERS), "--dist", "worksteal", *tests]
    return subprocess.run(words, env=environment, check=False, cwd=Path(__file__).parents[1]).returncode


def last(measures: list[Measure]) -> dict[str, float]:
    """The resident memory of every worker after its last test."""
    return {measure.worker: measure.resident for measure in measures}


def total(measures: list[Measure], seconds: float, busy: float) -> str:
    """One paragraph on the whole; `busy` are the seconds of the processor, imports and collection included."""
    own, peak = sum(measure.busy for measure in measures), max(measure.peak for measure in measures)
    ends = " and ".join(f"{megabytes:,.0f}" for _, megabytes in sorted(last(measures).items()))
    return (
        f"{len(measures):,} tests took {seconds:.0f} seconds of the clock and {busy:.0f} of the processor, {own:.0f} "
        f"of them in tests. The workers end with {ends} MB resident; the highest on the way were {peak:,.0f} MB."
    )


def files(measures: list[Measure]) -> str:
    """A row for every file: its tests, its time, and the highest memory of a worker meanwhile."""
    found: dict[str, list[Measure]] = defaultdict(list)
    for measure in measures:
        found[measure.file].append(measure)
    rows = [
        [f"`{name}`", str(len(own)), _seconds(own), f"{max(one.peak for one in own):,.0f} MB"]
        for name, own in sorted(found.items(), key=lambda entry: -max(one.peak for one in entry[1]))
    ]
    return table(["file", "tests", "processor", "peak"], rows)


def slowest(measures: list[Measure]) -> str:
    """The tests that keep the processor busy longest."""
    ranked = sorted(measures, key=lambda measure: -measure.busy)[:SLOWEST]
    rows = [[f"`{one.test.removeprefix('tests/')}`", _seconds([one]), f"{one.seconds:.1f} s"] for one in ranked]
    return table(["test", "processor", "clock"], rows)


def _seconds(measures: list[Measure]) -> str:
    return f"{sum(measure.busy for measure in measures):.1f} s"


if __name__ == "__main__":
    main()
