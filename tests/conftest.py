import os

import pytest

# Of two threads for each of two workers on two cores, half wait for the others, and computing do so.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What is no test: helpers, and scripts that tests run in processes of their own.
collect_ignore = ["support", "processes"]


def pytest_collection_modifyitems(items):
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked:
        import torch

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))
