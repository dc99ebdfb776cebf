"""What a student is compared with its teacher by: plain data."""

from __future__ import annotations

from dataclasses import dataclass

from graphsurgery.errors import SurgeryError

LOSSES = ("logits", "probabilities", "kl", "dkd", "dist")


@dataclass(frozen=True)
class Imitation:
    """What a student is compared with its teacher by.

    Attributes:
        loss: `logits`, half the mean squared distance of logits, each example's centred, since softmax ignores what
            they have in common (Ba & Caruana, arXiv:1312.6184, section 2.2); `probabilities`, the same after a softmax;
            `kl`, the divergence at a temperature, times its square (Hinton, Vinyals, Dean, arXiv:1503.02531); `dkd`,
            its two parts for the teacher's class and for the others, weighted (Zhao et al., CVPR 2022); `dist`,
            correlations within examples and within classes (Huang et al., NeurIPS 2022).
        temperature: of `kl`, `dkd` and `dist`.
        alpha, beta: weights of the two parts of `dkd`; of `dist` the weights of examples and of classes.
        labels: weight of the cross entropy with the labels, between 0 and 1; the imitation has the rest.
        mixed: compare on mixtures of two examples of a batch instead, in all shares: a teacher answers what lies
            between the examples, and a label counts by its share (Zhang et al., arXiv:1710.09412; Beyer et al.,
            arXiv:2106.05237). Nothing of regression is mixed, and no whole numbers such as tokens.
    """

    loss: str = "logits"
    temperature: float = 4.0
    alpha: float = 1.0
    beta: float = 1.0
    labels: float = 0.0
    mixed: bool = False

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise SurgeryError(f"imitation: unknown loss {self.loss!r}; choose from {', '.join(LOSSES)}")
        if not self.temperature > 0:
            raise SurgeryError(f"imitation: temperature is {self.temperature:g}, expected more than 0")
        if not 0 <= self.labels <= 1:
            raise SurgeryError(f"imitation: labels is {self.labels:g}, expected a weight from 0 to 1")
