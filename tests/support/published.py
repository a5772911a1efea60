"""The published logs that tests read where they are at hand, and their published scores."""

import os
from pathlib import Path

import pytest

_DATA = Path(__file__).parents[3] / "shared/data"
V05 = Path(os.environ.get("ALGOPERF_V05_LOGS", _DATA / "algoperf_v05_external.tar.xz"))
A100 = Path(os.environ.get("ALGOPERF_A100_LOGS", _DATA / "algoperf_a100_self_tuning.tar.xz"))

# Of the leaderboards: v0.5, external tuning, and that of 2026 on A100 GPUs, self-tuning.
SCORES_V05 = {
    "shampoo_submission": 0.7784, "schedule_free_adamw": 0.7077, "generalized_adam": 0.6383, "cyclic_lr": 0.6301,
    "nadamp": 0.5909, "baseline": 0.5707, "amos": 0.4918, "caspr_adaptive": 0.4722, "lawa_queue": 0.3699,
    "lawa_ema": 0.3384, "schedule_free_prodigy": 0.0,
}  # fmt: skip
SCORES_A100 = {
    "schedule_free_adamw_v2": 0.5679, "ademamix": 0.5191, "schedule_free_adamw": 0.4669, "nadamw_baselinev05": 0.4506,
    "schedule_free_adamw_jax_v2": 0.4405, "muon_torch": 0.4231, "schedule_free_adamw_jax": 0.4108, "nadamw": 0.3844,
    "muon_torch_replicated_torch_hps": 0.3827, "cautious_nadamw": 0.3143, "muon_torch_jax_hps_lr_fix": 0.3137,
    "muon_torch_replicated_jax_hps": 0.2969, "muon": 0.2845, "lion": 0.2783, "nadamw_resnet": 0.1857,
    "single_worker_diloco": 0.1369, "single_worker_dilocov2": 0.1302,
}  # fmt: skip


def need(path: Path) -> Path:
    """The path, or the test is skipped."""
    if not path.exists():
        pytest.skip(f"no published logs at {path}; name them in ALGOPERF_V05_LOGS or ALGOPERF_A100_LOGS")
    return path
