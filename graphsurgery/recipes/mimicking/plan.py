"""How a student mimics: plain data, which is the command's options too."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from graphsurgery.errors import SurgeryError
from graphsurgery.training.imitation import Imitation
from graphsurgery.training.loop.plan import TrainingPlan


@dataclass(frozen=True)
class MimicPlan:
    """How a student mimics.

    Attributes:
        training: of the student, and of the one that learns labels.
        imitation: the loss.
        standardise: divide the logits of each class by their deviation over the transfer set.
        bottleneck: channels between two factors of the student's largest linear layer while it trains; afterwards they
            are multiplied to one layer again.
        keep_bottleneck: leave the two factors instead of their product.
        copies: shifted and noisy copies of each training example, without labels.
        control: also train the same student on labels, to compare with.
        margin: by how much the teachers must beat that student on validation data for mimicry to make sense.
    """

    training: TrainingPlan
    imitation: Imitation = field(default_factory=Imitation)
    standardise: bool = False
    bottleneck: int | None = None
    keep_bottleneck: bool = False
    copies: int = 0
    control: bool = True
    margin: float = 0.0

    def check_not_of_classes(self, why: str) -> None:
        """Refuse what is said of the logits of classes.

        Args:
            why: there are none.

        Raises:
            SurgeryError: something is.
        """
        asked = {"--loss": self.imitation.loss != Imitation().loss, "--standardise": self.standardise}
        if options := [option for option, wanted in asked.items() if wanted]:
            raise SurgeryError(f"mimic: {options[0]} is of the logits of classes, and {why}; leave it out")

    def what_fixes_the_result(self) -> dict[str, Any]:
        """The fields that a resumed training must share with its beginning."""
        return {**asdict(self), "training": self.training.what_fixes_the_result()}
