"""A processor without VNNI, where this one can pretend to be one."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from patience import PATIENCE

SOURCE = Path(__file__).parent / "as_avx2.c"


def without_vnni(folder: Path) -> dict[str, str]:
    """The environment in which a program finds an x86 processor with AVX2 and no more; skips where that cannot be had.

    A processor that can pretend has AVX2 itself, and everything that is hidden: it is Intel's since Ivy Bridge.
    """
    information = Path("/proc/cpuinfo")
    flags = information.read_text().split() if information.exists() else []
    compiler = shutil.which("cc")
    if not {"cpuid_fault", "avx2"} <= set(flags) or compiler is None:
        pytest.skip("needs Linux on an x86 processor that can fault on CPUID, and a C compiler")
    library = folder / "as_avx2.so"
    plain = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    command = [compiler, "-O2", "-shared", "-fPIC", "-o", library, SOURCE]
    subprocess.run(command, check=True, env=plain, timeout=PATIENCE)
    return {**plain, "LD_PRELOAD": str(library)}
