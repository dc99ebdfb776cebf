"""How a cut network is brought back with the examples that there are: on labels, or on what it said before the cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from graphsurgery.graph import ModelGraph
from graphsurgery.recipes.compression.label_free import label_free_plan, recover_without_labels
from graphsurgery.recipes.compression.shrink import Cut, fine_tuning, shrink
from graphsurgery.recipes.delivery.quantize import first_inputs
from graphsurgery.recipes.outcome import Outcome, Result
from graphsurgery.training.data.calibration import Calibration
from graphsurgery.training.data.dataset import Data, size_of
from graphsurgery.training.loop.plan import TrainingPlan
from graphsurgery.training.loop.progress import Reporter
from graphsurgery.training.loop.run import Run


@dataclass(frozen=True)
class Recovery:
    """What there is to bring a network back with.

    Attributes:
        data: labelled examples, to learn from or, beside a calibration, to measure on.
        calibration: examples without labels, which prevail.
        learns: `labels` or `mimic`, from data; None stands for labels.
    """

    data: Data | None = None
    calibration: Calibration | None = None
    learns: str | None = None

    @property
    def possible(self) -> bool:
        """Whether there are examples at all."""
        return self.data is not None or self.calibration is not None

    @property
    def teaching(self) -> str | None:
        """The spec of the data that it learns from, where these have labels."""
        return None if self.data is None or self.calibration is not None else self.data.name

    def plan(self, graph: ModelGraph, **settings: Any) -> TrainingPlan:
        """How the network is trained, with these settings instead of the usual ones."""
        if self.calibration is not None:
            return label_free_plan(self.calibration, **settings)
        return fine_tuning(graph, **settings)

    def config(self, cut: Cut, training: TrainingPlan) -> dict[str, Any]:
        """What fixes the result, so that an interrupted run can go on."""
        learnt = {} if self.learns in (None, "labels") else {"recover": self.learns}
        taught = {} if self.teaching is None else {"data": self.teaching}
        return {"cut": asdict(cut), "plan": training.what_fixes_the_result(), **taught, **learnt}

    def run(
        self,
        graph: ModelGraph,
        small: ModelGraph,
        cut: Cut,
        training: TrainingPlan,
        *,
        run: Run | None = None,
        reporter: Reporter | None = None,
    ) -> Result[Outcome]:
        """Recalibrate and fine-tune a cut network, in place; every step is measured.

        Args:
            graph: the network before.
            small: what was cut from it.
            cut: how.
            training: 0 epochs leave the fine-tuning out.
            run: folder for metrics and states.
            reporter: told about progress.

        Raises:
            SurgeryError: as for `shrink` and `recover_without_labels`.
        """
        if self.calibration is not None:
            options: dict[str, Any] = {"data": self.data, "run": run, "reporter": reporter}
            return recover_without_labels(graph, small, self.calibration, training, **options)
        assert self.data is not None
        options = {"recover": self.learns or "labels", "small": small, "run": run, "reporter": reporter}
        return shrink(graph, cut, self.data, training, **options)

    def inputs(self) -> Sequence[Tensor] | None:
        """Some of the examples that nothing was learnt from, for the proof of an `.onnx` file."""
        if self.calibration is not None:
            found = first_inputs(self.calibration.held)
            return found if self.calibration.packed is None else self.calibration.packed.real(found[0])
        if self.data is None:
            return None
        held = self.data.validation
        return first_inputs(held if size_of(held) else self.data.train)
