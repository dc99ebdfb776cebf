"""How much memory does it take to cut a checkpoint that is larger than the memory? docs/large.md.

    python benchmarks/shards.py            # 2.5 GB
    python benchmarks/shards.py --large    # 16 GB too; takes some 40 GB of disk
    python benchmarks/shards.py --folder /big/disk --large

Needs Linux and transformers (pip install 'graphsurgery[hf]'). Llamas of random numbers in bfloat16 are written in
shards, and each is cut by `graphsurgery compress hf:FOLDER --keep 0.5 -o OUT` in a process of its own: its peak memory,
its seconds of processor, and whether the library reads what was written. A second run is killed on its way and begun
again.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from document import DOCS, measured, table, write_section

ALLOWED = 4.0
"""GB that a process may have in memory, with all that is imported."""
SIZES = {
    "2.5 GB": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True,
    },
    "16 GB": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False,
    },
}  # fmt: skip
"""The sizes of Llama-3.2-1B and of Llama-3.1-8B."""
_PEAK = re.compile(r"VmHWM:\s+(\d+) kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    began, rows = time.perf_counter(), []
    for name, sizes in SIZES.items():
        if options.large or name != "16 GB":
            with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                rows.append(row(sizes, Path(folder)))
                print(*rows[-1], flush=True)
    heads = ["checkpoint", "cut", "files", "peak memory", "processor", "killed after", "gone on"]
    if options.large:
        command = measured("python benchmarks/shards.py --large", time.perf_counter() - began)
        write_section("shards", f"{command}\n\n{table(heads, rows)}", DOCS / "large.md")
    if any(float(line[3].split()[0]) > ALLOWED for line in rows):
        raise SystemExit(f"more than {ALLOWED:g} GB were in memory")


def row(sizes: dict[str, Any], folder: Path) -> list[str]:
    """One checkpoint: written, cut, cut again with a kill on the way."""
    size = write(sizes, folder / "big")
    told, peak, seconds = cut(folder, "small")
    check(folder / "small", told)
    written = sum(told["shards"].values())
    shutil.rmtree(folder / "small")
    killed = killed_in(folder, len(told["shards"]) // 2)
    again, _, rest = cut(folder, "small")
    assert again["resumed"] >= killed
    return [
        f"{size / 1e9:.1f} GB", f"{written / 1e9:.1f} GB", f"{len(told['shards'])}", f"{peak / 1e9:.2f} GB",
        f"{seconds:.0f} s", f"{killed} files", f"{rest:.0f} s",
    ]  # fmt: skip


def write(sizes: dict[str, Any], folder: Path) -> int:
    """A checkpoint of random numbers; the bytes of its weights."""
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    from graphsurgery.models.libraries.streaming import in_batches
    from graphsurgery.surgery.installing.configuration import without_weights

    folder.mkdir()
    config = LlamaConfig(**sizes, dtype="bfloat16", architectures=["LlamaForCausalLM"])
    model = without_weights(lambda: LlamaForCausalLM(config), torch.bfloat16)
    config.save_pretrained(folder)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    bytes_of = {name: 2 * torch.Size(shape).numel() for name, shape in shapes.items()}
    generator = torch.Generator().manual_seed(0)
    numbers = torch.empty(2**22 + 1, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)
    places = {}
    for number, names in enumerate(in_batches(list(shapes), list(bytes_of.values()))):
        file = f"model-{number:05d}.safetensors"
        tensors = {name: drawn(shapes[name], numbers, generator) for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": sum(bytes_of.values())}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return sum(bytes_of.values())


def drawn(shape: tuple[int, ...], numbers: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Normal numbers, the same again and again, in rows that count differently."""
    count = torch.Size(shape).numel()
    found = numbers.repeat(-(-count // len(numbers)))[:count].reshape(shape)
    return found.mul_(0.5 + torch.rand(shape[0], *[1] * (len(shape) - 1), generator=generator).bfloat16())


def command_line(folder: Path, out: str) -> list[str]:
    options = ["--keep", "0.5", "-o", str(folder / out), "--json", "--quiet"]
    return [sys.executable, "-m", "graphsurgery", "compress", f"hf:{folder / 'big'}", *options]


def cut(folder: Path, out: str) -> tuple[dict[str, Any], int, float]:
    """What the command tells, the bytes that its process had in memory at most, and its seconds of processor."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command_line(folder, out), stdout=output)
        peak = 0
        while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            # Not `ru_maxrss`, which begins with what this process had when it forked.
            found = _PEAK.search(Path(f"/proc/{process.pid}/status").read_text())
            peak = peak if found is None else 1024 * int(found[1])
            time.sleep(0.05)
        _, status, used = os.wait4(process.pid, 0)
        assert status == 0
        output.seek(0)
        return json.loads(output.read()), peak, used.ru_utime + used.ru_stime


def killed_in(folder: Path, files: int) -> int:
    """Begin, and kill when so many files are written; how many there are."""
    process = subprocess.Popen(command_line(folder, "small"), stdout=subprocess.DEVNULL)
    result = folder / "small.part" / "result"
    while len(list(result.glob("*.safetensors"))) < files:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return len(list(result.glob("*.safetensors")))


def check(folder: Path, told: dict[str, Any]) -> None:
    """Read the result by the library, and compare one tensor with what the cut kept of it."""
    from transformers import AutoConfig, LlamaForCausalLM

    from graphsurgery.models.libraries.tensor_files import stored_tensors

    config = AutoConfig.from_pretrained(folder)
    assert all(getattr(config, name) == value for name, value in told["config"].items())
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    found = {name: tensor.shape for name, tensor in stored_tensors(folder).items()}
    assert shapes == found or {**found, "lm_head.weight": shapes.get("lm_head.weight")} == shapes


if __name__ == "__main__":
    main()
