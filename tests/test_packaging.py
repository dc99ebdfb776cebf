"""What is built for others: the source archive is whole, and the wheel works in a new venv without the sources."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
from pathlib import Path

import pytest

from graphsurgery import __version__

ROOT = Path(__file__).parents[1]
BUILT = ["MANIFEST.in", "README.md", "LICENSE", "pyproject.toml", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"]
BUILT += ["CITATION.cff", "Makefile", "constraints.txt", ".pre-commit-config.yaml", "mkdocs.yml"]
FOLDERS = ["graphsurgery", "cli", "passes", "models", "tests", "benchmarks", "docs", "examples", ".ci"]
BUILD = "from setuptools import build_meta as b; b.build_sdist({0!r}); b.build_wheel({0!r})"
SMOKE = """
import gc; gc.disable()
import torch, graphsurgery as gs
from graphsurgery.models import build
graph = gs.compress(gs.trace(build("paper/cnn"), torch.randn(2, 1, 8, 8)), 0.5)
gs.save(graph, "small.pt")
from graphsurgery.reports.html import write_report
from graphsurgery.cli import main
print(gs.__file__)
main(["view", "small.pt", "--html", "view.html"])
"""


def _files(folder: str) -> set[str]:
    """The files of a folder that belong to the project, by path from the root; what Python and tools leave does not."""
    paths = (path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(ROOT)) for path in paths if not any(part.is_symlink() for part in path.parents)}


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """A copy of the sources, as git would give it, and what is built of it."""
    copy, built = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("built")
    for name in BUILT:
        (copy / name).write_bytes((ROOT / name).read_bytes())
    for name in (name for folder in FOLDERS for name in _files(folder)):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((ROOT / name).read_bytes())
    words = [sys.executable, "-W", "ignore", "-c", BUILD.format(str(built))]
    subprocess.run(words, cwd=copy, check=True, capture_output=True)
    return next(built.glob("*.tar.gz")), next(built.glob("*.whl"))


def test_the_source_archive_holds_what_its_tests_need(archives):
    with tarfile.open(archives[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {name for folder in FOLDERS for name in _files(folder)} | set(BUILT)
    assert sorted(wanted - names) == []


@pytest.fixture(scope="module")
def installed(archives, tmp_path_factory):
    """A new venv into which pip has installed the wheel; its dependencies are those of the venv of the tests."""
    place = tmp_path_factory.mktemp("venv")
    venv.create(place, with_pip=False)
    pip = [sys.executable, "-m", "pip", "--python", str(place / "bin" / "python"), "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", str(archives[1])], check=True, capture_output=True)
    packages = next(place.glob("lib/python*/site-packages"))
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return place


def test_the_wheel_works_without_the_sources(installed, tmp_path):
    packages = next(installed.glob("lib/python*/site-packages/graphsurgery"))
    assert (packages / "py.typed").exists()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    options = {"cwd": tmp_path, "env": environment, "check": False, "capture_output": True, "text": True}
    found = subprocess.run([installed / "bin" / "python", "-c", SMOKE], **options)
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines()[0] == str(packages / "__init__.py")
    assert "<svg" in (tmp_path / "view.html").read_text(encoding="utf-8")
    version = subprocess.run([installed / "bin" / "graphsurgery", "--version"], **options)
    assert version.stdout.strip() == __version__
