"""How long does it take to type networks of real sizes, and to plan a cut of them? docs/large.md.

    python benchmarks/real_sizes.py
    python benchmarks/real_sizes.py DiT-XL/2        # prints one row, writes nothing

Needs Linux, transformers and diffusers. The networks are built by their libraries from their published configurations,
without values (on the meta device), and nothing is downloaded. Each is measured in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from document import DOCS, measured, table, write_section
from torch import Tensor, nn

LLAMA = {
    "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256, "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "use_cache": False,
    "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
    },
}  # fmt: skip
QWEN = {
    "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "use_cache": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
}  # fmt: skip
UNET = {
    "sample_size": 64, "in_channels": 4, "out_channels": 4, "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "layers_per_block": 2, "cross_attention_dim": 768, "attention_head_dim": 8, "norm_num_groups": 32,
}  # fmt: skip
DIT = {
    "num_attention_heads": 16, "attention_head_dim": 72, "in_channels": 4, "out_channels": 8, "num_layers": 28,
    "sample_size": 32, "patch_size": 2, "num_embeds_ada_norm": 1000,
}  # fmt: skip
_PEAK = re.compile(r"VmHWM:\s+(\d+) kB")
_TOKENS = 128


def _llama() -> tuple[Callable[[], nn.Module], dict[str, Tensor]]:
    from transformers import LlamaConfig, LlamaForCausalLM

    return lambda: LlamaForCausalLM(LlamaConfig(**LLAMA)), _texts()


def _qwen() -> tuple[Callable[[], nn.Module], dict[str, Tensor]]:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return lambda: Qwen3ForCausalLM(Qwen3Config(**QWEN)), _texts()


def _texts() -> dict[str, Tensor]:
    return {name: torch.ones(2, _TOKENS, dtype=torch.int64) for name in ("input_ids", "attention_mask")}


def _unet() -> tuple[Callable[[], nn.Module], dict[str, Tensor]]:
    from diffusers import UNet2DConditionModel

    given = {"sample": torch.zeros(2, 4, 64, 64), "timestep": torch.tensor([3, 7])}
    return lambda: UNet2DConditionModel(**UNET), {**given, "encoder_hidden_states": torch.zeros(2, 77, 768)}


def _dit() -> tuple[Callable[[], nn.Module], dict[str, Tensor]]:
    from diffusers import DiTTransformer2DModel

    given = {"hidden_states": torch.zeros(2, 4, 32, 32), "timestep": torch.tensor([3, 7])}
    return lambda: DiTTransformer2DModel(**DIT), {**given, "class_labels": torch.tensor([1, 2])}


NETWORKS: dict[str, Callable[[], tuple[Callable[[], nn.Module], dict[str, Tensor]]]] = {
    "Llama-3.2-1B": _llama,
    "Qwen3-8B": _qwen,
    "UNet of Stable Diffusion 1.5": _unet,
    "DiT-XL/2": _dit,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NETWORKS)}")
    parser.add_argument("--measure", metavar="NAME", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(found(options.measure)))
        return
    began, rows = time.perf_counter(), []
    for name in options.names or NETWORKS:
        command = [sys.executable, "-W", "ignore", __file__, "--measure", name]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        rows.append(row(name, json.loads(told.splitlines()[-1])))
        print(*rows[-1], flush=True)
    if not options.names:
        heads = ["network", "parameters", "nodes", "spaces", "trace", "types", "a cut planned", "cost", "memory"]
        command = measured("python benchmarks/real_sizes.py", time.perf_counter() - began, "transformers", "diffusers")
        write_section("real sizes", f"{command}\n\n{table(heads, rows)}", DOCS / "large.md")


def found(name: str) -> dict[str, Any]:
    """What is measured of one network; seconds, and bytes above those that its process had with everything imported."""
    import graphsurgery as gs
    from graphsurgery.surgery.installing.configuration import without_weights

    make, inputs = NETWORKS[name]()
    began, before = time.perf_counter(), peak()
    model = without_weights(make, torch.bfloat16).eval()
    seconds: dict[str, float] = {}

    def timed(what: str, do: Callable[[], Any]) -> Any:
        begun = time.perf_counter()
        result = do()
        seconds[what] = time.perf_counter() - begun
        return result

    seconds["build"] = time.perf_counter() - began
    graph = timed("trace", lambda: gs.trace(model, inputs))
    spaces = timed("types", lambda: graph.spaces)
    whole = timed("cost", lambda: gs.cost(graph))
    small = timed("plan", lambda: gs.compress(graph, target="params=0.5x", importance="random"))
    assert not any("unfollowed" in node.meta for node in graph.module.graph.nodes)
    assert gs.cost(small).parameters <= whole.parameters / 2
    nodes, memory = len(graph.module.graph.nodes), peak() - before
    return {"parameters": whole.parameters, "nodes": nodes, "spaces": len(spaces), "memory": memory, **seconds}


def peak() -> int:
    """The bytes that this process has had in memory at most."""
    told = _PEAK.search(Path("/proc/self/status").read_text())
    assert told is not None
    return 1024 * int(told[1])


def row(name: str, told: dict[str, Any]) -> list[str]:
    seconds = [f"{told[what]:.1f} s" for what in ("trace", "types", "plan", "cost")]
    sizes = [f"{told['parameters'] / 1e6:,.0f} M", str(told["nodes"]), str(told["spaces"])]
    return [name, *sizes, *seconds, f"{told['memory'] / 1e6:.0f} MB"]


if __name__ == "__main__":
    main()
