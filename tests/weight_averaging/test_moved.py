"""What was importable in 0.2.0 still is, and says where it is now."""

import importlib
import subprocess
import sys

import pytest
import torch

from weight_averaging import averages, moved
from weight_averaging import jax as jax_averagers
from weight_averaging import torch as torch_averagers
from weight_averaging.averages import horizon

# Names that 0.2.0's docs, docstrings and examples have people import, by the path of then.
PUBLIC = {
    "averages": "LAWA EMA Power Tail Merge Weighted Average SnapshotError exponential",
    "collection": "suggest Suggestion decay_from_window window_from_decay interval_and_window horizon is_due missed "
    "still_held check_count check_decay check_horizon check_step exponent_from_horizon suggested_horizon WINDOW",
    "pairwise": "pairwise_sum accumulators merges LEAF",
    "names": "not_to_average clean_names without_wrappers",
    "filters": "Filter Choice",
    "replacing": "replacing",
    "placement": "on_host free_host_bytes size",
    "convert": "from_torch to_torch from_jax to_jax Held",
    "torch": "LAWA EMA Averages Averager recompute_batch_norm",
    "torch.averages": "Averages",
    "torch.averager": "Averager",
    "torch.lawa": "LAWA",
    "torch.ema": "EMA",
    "torch.batch_norm": "recompute_batch_norm batch_norms",
    "torch.selection": "Selection Selected Entry",
    "torch.blocks": "Block squares finite is_finite",
    "torch.results": "average_state_dict copy_to",
    "jax": "lawa ema lawa_for_run ema_for_run host_lawa choose_lawa LAWAState EMAState HostLAWAState Averager",
    "jax.host": "host_lawa choose_lawa HostLAWAState",
    "jax.window": "LAWAState",
    "offline": "Plan Result Snapshots LAWA EMA Tail Power Merge Weighted latest_of SnapshotError",
    "offline.reading": "Snapshots",
    "offline.plan": "Plan Result",
    "offline.cumulative": "write_sums Sums",
    "offline.posthoc": "fit exponent Fit",
    "offline.unaveraged": "latest_of",
    "offline.recording": "SnapshotWriter verify",
    "offline.writing": "average_to_files",
    "trainers.lightning": "WeightAveraging",
    "trainers.transformers": "WeightAveraging",
}


@pytest.mark.parametrize("path", PUBLIC)
def test_a_public_path_of_0_2_0_is_importable(path):
    full = f"weight_averaging.{path}"
    if path in moved.MOVED:
        sys.modules.pop(full, None)
        new = " or ".join(f"weight_averaging.{name}" for name in moved.MOVED[path])
        with pytest.warns(DeprecationWarning, match=f"{full} has moved: import from {new}"):
            module = importlib.import_module(full)
    else:
        module = importlib.import_module(full)
    for name in PUBLIC[path].split():
        assert getattr(module, name) is not None


def test_a_horizon_that_was_a_share_of_the_updates_so_far_is_called_share():
    """The same average, with a warning at the line of who wrote it; elsewhere a horizon is a share of the whole run."""
    model = torch.nn.Linear(1, 1)
    makers = {
        "torch": (lambda: torch_averagers.EMA(model, horizon=0.3), torch_averagers.EMA(model, share=0.3)),
        "jax": (lambda: jax_averagers.ema(horizon=0.3), jax_averagers.ema_growing(0.3)),
        "averages": (lambda: averages.exponential(None, horizon=0.3), averages.exponential(None, 0.3)),
        "horizon": (lambda: horizon.exponent_from_horizon(0.3), horizon.exponent_from_share(0.3)),
    }
    for old, new in makers.values():
        with pytest.warns(DeprecationWarning, match="is called (share=|exponent_from_share) now") as said:
            made = old()
        assert [warning.filename for warning in said] == [__file__]
        assert (made.settings() == new.settings()) if isinstance(made, torch_averagers.EMA) else made == new
    with pytest.raises(TypeError, match=r"one share of the updates so far, not share=0\.1 and horizon=0\.3"):
        torch_averagers.EMA(model, share=0.1, horizon=0.3)


@pytest.mark.parametrize("path", moved.MOVED)
def test_every_old_module_leads_to_modules_that_exist(path):
    sys.modules.pop(f"weight_averaging.{path}", None)
    with pytest.warns(DeprecationWarning, match="has moved"):
        old = importlib.import_module(f"weight_averaging.{path}")
    for new in moved.MOVED[path]:
        module = importlib.import_module(f"weight_averaging.{new}")
        (some, *_) = [name for name in vars(module) if not name.startswith("_")]
        assert getattr(old, some) is not None
    with pytest.raises(AttributeError, match="has no nothing_like_that"):
        old.nothing_like_that  # noqa: B018


def test_the_warning_points_at_who_imports(tmp_path):
    (tmp_path / "theirs.py").write_text(
        "from weight_averaging.collection import suggest\nprint(suggest(3000).interval)\n"
    )
    command = [sys.executable, "-W", "always", str(tmp_path / "theirs.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "6\n"
    assert "theirs.py:1: DeprecationWarning: weight_averaging.collection has moved" in done.stderr


def test_what_never_was_is_still_not_found():
    with pytest.raises(ModuleNotFoundError, match=r"weight_averaging\.nonsense"):
        importlib.import_module("weight_averaging.nonsense")
