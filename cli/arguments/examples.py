"""Two command lines for each command, which its help shows; each is one that the command takes."""

from __future__ import annotations

from collections.abc import Mapping

EXAMPLES: Mapping[str, tuple[str, str]] = {
    "train": (
        "graphsurgery train paper/cnn --data digits -o a.pt",
        "graphsurgery train nets.py:small --data 'imagefolder:photos?size=64' -o b.pt",
    ),
    "inspect": (
        "graphsurgery inspect model.onnx",
        "graphsurgery inspect weights.safetensors --arch torchvision/resnet18",
    ),
    "merge": (
        "graphsurgery merge a.pt b.pt --data digits -o merged.pt",
        "graphsurgery merge a.onnx b.onnx --data data.py:make --by soup -o soup.pt",
    ),
    "compress": (
        "graphsurgery compress a.pt --target macs=0.5x --data digits --epochs 5 -o s.pt",
        "graphsurgery compress a.onnx --target latency=0.5x --calib photos -o s.onnx",
    ),
    "widen": (
        "graphsurgery widen a.pt --by 1.5x -o wide.pt",
        "graphsurgery widen model.onnx --to conv1=96 -o wide.onnx",
    ),
    "deepen": (
        "graphsurgery deepen a.pt --after auto --dry-run -o deep.pt",
        "graphsurgery deepen model.onnx --after layer2 --count 2 -o deep.onnx",
    ),
    "grow": (
        "graphsurgery grow a.pt --by 1.5x --data digits -o grown.pt",
        "graphsurgery grow w.safetensors --arch paper/cnn --by 2x --data digits -o g.pt",
    ),
    "factorize": (
        "graphsurgery factorize a.pt --target params=0.5x -o low.pt",
        "graphsurgery factorize model.onnx --energy 0.9 -o low.onnx",
    ),
    "mimic": (
        "graphsurgery mimic --teacher a.pt b.pt --student paper/mlp --data sine -o m.pt",
        "graphsurgery mimic --teacher t.onnx --student nets.py:s --data d.py:f -o s.pt",
    ),
    "slim": (
        "graphsurgery slim paper/cnn --data digits -o us.pt",
        "graphsurgery slim w.safetensors --arch paper/cnn --data digits -o us.pt",
    ),
    "widths": (
        "graphsurgery widths us.pt --data digits --latency --plot widths.svg",
        "graphsurgery widths us.pt --data digits --search macs=0.3x",
    ),
    "lottery": (
        "graphsurgery lottery paper/lenet_300_100 --data fashion-mnist -o tickets",
        "graphsurgery lottery paper/mlp --data digits --rounds 3 --control reinit -o t",
    ),
    "supermask": (
        "graphsurgery supermask paper/lenet_300_100 --data fashion-mnist -o mask.pt",
        "graphsurgery supermask paper/mlp --data digits --method top-k -o mask.pt",
    ),
    "masks": (
        "graphsurgery masks ticket.pt mask.pt --join union -o any.json",
        "graphsurgery masks any.json --apply model.onnx -o masked.onnx",
    ),
    "install": (
        "graphsurgery install small.pt --into hf:bert -o smaller",
        "graphsurgery install s.pt --into ultralytics:yolo11n.pt --trust-pickle -o y.pt",
    ),
    "export": (
        "graphsurgery export a.pt -o a.onnx",
        "graphsurgery export w.safetensors --arch paper/cnn --data digits -o w.onnx",
    ),
    "diff": (
        "graphsurgery diff before.onnx after.onnx",
        "graphsurgery diff before.onnx after.onnx --all --no-latency",
    ),
    "view": (
        "graphsurgery view model.onnx --html model.html",
        "graphsurgery view w.safetensors --arch torchvision/resnet18",
    ),
    "doctor": (
        "graphsurgery doctor torchvision/resnet18",
        "graphsurgery doctor model.onnx --no-onnx",
    ),
    "data": (
        "graphsurgery data",
        "graphsurgery data --json",
    ),
    "models": (
        "graphsurgery models",
        "graphsurgery models resnet18",
    ),
    "demo": (
        "graphsurgery demo",
        "graphsurgery demo --folder there --seed 1",
    ),
}


def epilogue(command: str, everywhere: str) -> str:
    """What stands below the options of a command: its examples, and what holds for all commands."""
    lines = "\n".join(f"    {line}" for line in EXAMPLES[command])
    return f"Examples:\n\n{lines}\n\n{everywhere}"
