import os
import tempfile
from pathlib import Path

import pytest

# Of two threads for each of two workers on two cores, half wait for the others, and computing do so.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What XLA compiles for one test or run serves the next: half of the time of JAX's tests.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "weight_averaging_compiled"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

# What is no test: helpers, and scripts that tests run in processes of their own.
collect_ignore = ["support", "processes"]


def pytest_collection_modifyitems(items):
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked:
        import torch

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(scope="module")
def few_held_out_images():
    """Runs of mini_imagenet_vit spend most of their time on evaluations: here on 250 images, not on 2,500."""
    from miniperf.workloads.imagenet_vit.data import ImagenetVitData

    whole = ImagenetVitData.load_splits

    def few(self):
        return {
            name: split if name == "train" else {key: values[:125] for key, values in split.items()}
            for name, split in whole(self).items()
        }

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImagenetVitData, "load_splits", few)
        patch.setattr(ImagenetVitData, "max_eval_train_examples", 125)
        yield
