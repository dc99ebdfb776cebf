"""Many measurements, each in a process of its own with limits, kept on disk so that a killed run goes on.

Knows nothing of networks: a measurement is a name and a command that writes one JSON document to a file.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_PAUSE = 0.1


@dataclass(frozen=True)
class Limits:
    """What one process may take: wall-clock seconds, and bytes of resident memory (on Linux; elsewhere unlimited)."""

    seconds: float
    memory: float


@dataclass
class Process:
    """A measurement that is running."""

    name: str
    child: subprocess.Popen[bytes]
    output: Path
    errors: Path
    began: float
    peak: float = 0.0

    def seconds(self) -> float:
        """Since its start."""
        return time.monotonic() - self.began

    def memory(self) -> float:
        """Resident bytes now; 0 where the system does not say."""
        try:
            resident = int(Path(f"/proc/{self.child.pid}/statm").read_text(encoding="ascii").split()[1]) * PAGE
        except (OSError, IndexError):
            resident = 0
        self.peak = max(self.peak, resident)
        return resident

    def stop(self) -> None:
        """Kill it with everything that it started."""
        if self.child.poll() is None:
            os.killpg(self.child.pid, signal.SIGKILL)
        self.child.wait()

    def said_last(self) -> str:
        """The last line of its standard error."""
        lines = self.errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1][:400] if lines else "it said nothing"


def survey(
    names: Sequence[str],
    command: Callable[[str, Path], Sequence[str]],
    cache: Callable[[str], Path],
    limits: Limits,
    jobs: int = 1,
    stamp: Mapping[str, Any] = MappingProxyType({}),
) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Measure everything, in parallel; what is in the cache is not measured again.

    Args:
        names: of the measurements, each once.
        command: from a name and the file that it shall write a JSON document to.
        cache: where the document of a name is kept.
        limits: of one process; what exceeds them is killed, and its document says so under `failure`.
        jobs: how many run at a time.
        stamp: added to every document that is measured now.

    Yields:
        The name, its document, and whether it came from the cache; in the order in which they are done.
    """
    waiting = list(reversed(names))
    running: list[Process] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    name = waiting.pop()
                    path = cache(name)
                    if path.is_file():
                        yield name, json.loads(path.read_text(encoding="utf-8")), True
                        continue
                    output = Path(folder) / f"{len(waiting)}.json"
                    running.append(_start(name, command(name, output), output))
                for process in [p for p in running if _ended(p, limits)]:
                    running.remove(process)
                    document = {**_document(process, limits), **stamp}
                    _keep(cache(process.name), document)
                    yield process.name, document, False
                time.sleep(_PAUSE if running else 0)
        finally:
            for process in running:
                process.stop()


def _start(name: str, command: Sequence[str], output: Path) -> Process:
    errors = output.with_suffix(".errors")
    with errors.open("wb") as stream:
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stream, start_new_session=True)
    return Process(name, child, output, errors, time.monotonic())


def _ended(process: Process, limits: Limits) -> bool:
    over = process.memory() > limits.memory or process.seconds() > limits.seconds
    return over or process.child.poll() is not None


def _document(process: Process, limits: Limits) -> dict[str, Any]:
    """What the process wrote, or why it wrote nothing; with its seconds and its memory."""
    finished = process.child.poll() is not None
    process.stop()
    code = process.child.returncode
    document: dict[str, Any] = {}
    if finished and code == 0 and process.output.is_file():
        document = json.loads(process.output.read_text(encoding="utf-8"))
    elif finished:
        ending = f"signal {-code}" if code < 0 else f"exit code {code}"
        document["failure"] = f"the process ended with {ending}: {process.said_last()}"
    elif process.seconds() > limits.seconds:
        document["failure"] = f"took longer than {limits.seconds:.0f} s"
    else:
        document["failure"] = f"took more than {limits.memory / 1e9:.1f} GB of memory"
    return {**document, "wall_seconds": process.seconds(), "peak_bytes": process.peak}


def _keep(path: Path, document: dict[str, Any]) -> None:
    """Write in one step, so that a kill leaves no half of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(document), encoding="utf-8")
    part.replace(path)
