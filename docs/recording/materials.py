"""What the three users have before their first hour: images, a trained ResNet, an `.onnx` file.

Everything is drawn and trained here, from seeds, so that nothing is downloaded. The trainings are plain PyTorch, as
somebody would have written them who has never heard of this project.
"""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

SIDE = 32
CORNERS = {"square": 4, "triangle": 3}
CLASSES = ("disc", "ring", *CORNERS)
PARTS = {"train": 100, "val": 30, "test": 50}
"""Images of each class."""


def drawn(kind: str, generator: random.Random) -> Image.Image:
    """One shape of any colour, place, size and turn, on a noisy ground."""
    noise = np.random.default_rng(generator.randrange(2**32)).integers(30, 100, (SIDE, SIDE), dtype=np.uint8)
    ground = Image.fromarray(noise).convert("RGB")
    pen = ImageDraw.Draw(ground)
    radius = generator.uniform(7, 12)
    x, y = (generator.uniform(radius, SIDE - radius) for _ in "xy")
    colour = tuple(generator.randrange(110, 256) for _ in "rgb")
    if kind in CORNERS:
        pen.regular_polygon((x, y, radius), CORNERS[kind], rotation=generator.randrange(360), fill=colour)
    else:
        width = {"disc": 0, "ring": 4}[kind]
        box = (x - radius, y - radius, x + radius, y + radius)
        pen.ellipse(box, outline=colour, width=width, fill=None if width else colour)
    return ground


def photos(folder: Path) -> None:
    """`photos/train/disc/000.png` and so on: four classes in three parts."""
    for part, count in PARTS.items():
        generator = random.Random(part)
        for kind in CLASSES:
            place = folder / "photos" / part / kind
            place.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                drawn(kind, generator).save(place / f"{number:03}.png")


def images(folder: Path) -> None:
    """`images/000.png` and so on, which nobody has labelled."""
    generator = random.Random("images")
    (folder / "images").mkdir()
    for number in range(600):
        drawn(generator.choice(CLASSES), generator).save(folder / "images" / f"{number:03}.png")


def resnet(folder: Path) -> None:
    """`resnet.pt`: the weights of a ResNet-18 of torchvision, trained on the photos."""
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=len(CLASSES))
    fit(network, *loaded(folder), epochs=6)
    torch.save(network.state_dict(), folder / "resnet.pt")


def model(folder: Path) -> None:
    """`model.onnx`: a small network as a colleague has exported it, with names that came with it."""
    torch.manual_seed(0)
    convolutions = [layer for i, o in ((3, 24), (24, 48), (48, 64)) for layer in block(i, o)]
    network = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, len(CLASSES)))
    photos(folder)
    fit(network, *loaded(folder), epochs=24)
    names = {"input_names": ["pixels"], "output_names": ["scores"], "dynamic_shapes": ({0: "batch"},)}
    example = torch.zeros(2, 3, SIDE, SIDE)
    torch.onnx.export(network.eval(), (example,), folder / "model.onnx", external_data=False, verbose=False, **names)


def block(before: int, after: int) -> list[nn.Module]:
    """A convolution that halves the picture."""
    return [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]


def loaded(folder: Path) -> tuple[Tensor, Tensor]:
    """The photos to train on `[image, 3, 32, 32]` from -1 to 1, and their classes."""
    steps = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)]
    pairs = list(ImageFolder(str(folder / "photos" / "train"), v2.Compose(steps)))
    return torch.stack([image for image, _ in pairs]), torch.tensor([label for _, label in pairs])


def fit(network: nn.Module, x: Tensor, y: Tensor, *, epochs: int) -> None:
    """Train for so many epochs."""
    rate, batches = 2e-3, math.ceil(len(x) / 32)
    optimizer = torch.optim.Adam(network.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * batches)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x[batch]), y[batch]).backward()
            optimizer.step()
            schedule.step()


MATERIALS = {make.__name__: make for make in (photos, images, resnet, model)}
"""By the names that pages call them."""
