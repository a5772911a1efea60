"""What submissions with averages beside them have in common in both frameworks."""

from collections.abc import Mapping
from types import ModuleType

from weight_averaging.averages import Average


class Tracked(ModuleType):
    """A submission that does not average, with averages beside it that training never sees.

    Args:
        submission: the module of the submission.
        averages: what to track, by name; may be empty.
    """

    def __init__(self, submission: ModuleType, averages: Mapping[str, Average]) -> None:
        super().__init__(submission.__name__)
        self.data_selection = submission.data_selection
        self.get_batch_size = submission.get_batch_size
        if hasattr(submission, "prepare_for_eval"):
            self.prepare_for_eval = submission.prepare_for_eval
        self._submission, self._described = submission, dict(averages)
        self.seconds: list[float] = []  # of each update, spent on all averages together
