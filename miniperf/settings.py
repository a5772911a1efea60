"""What a run needs to know beyond the submission, the workload and the hyperparameters."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Settings:
    """As the flags of submission_runner have them."""

    workload_name: str
    submission_path: str
    rng_seed: int
    batch_size: int
    framework: str = "pytorch"
    data_dir: str = ""
    max_global_steps: int | None = None
    eval_every_n_steps: int | None = None  # None: by time, as officially
    continue_after_target: bool = False
    save_checkpoints: bool = True
    save_intermediate_checkpoints: bool = True
    tuning_ruleset: str = "external"
    save_snapshots_every_n_steps: int | None = None
    checkpoint_every_n_steps: int | None = None  # None: at every evaluation, as officially
    torch_compile: bool = False

    @property
    def origin(self) -> dict[str, Any]:
        """What a checkpoint must have in common with the run that goes on from it."""
        return {"workload": self.workload_name, "submission_path": self.submission_path, "rng_seed": self.rng_seed}
