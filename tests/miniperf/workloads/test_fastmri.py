"""mini_fastmri: cuts through a real brain, the scanner's forward model, the loss and SSIM against scikit-image."""

from itertools import islice

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from miniperf import spec
from miniperf.workloads.fastmri import brain
from miniperf.workloads.fastmri import data as fastmri
from miniperf.workloads.fastmri.pytorch import MiniFastMriWorkload, ssim

SMALL = {"train": 20, "validation": 8, "test": 5}  # volumes


@pytest.fixture(scope="module")
def workload(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINIPERF_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(fastmri, "VOLUMES", SMALL)
        made = MiniFastMriWorkload()
        made.init_model_fn([0, 0])
        assert made.num_train_examples == 80
        yield made


@pytest.fixture(scope="module")
def whole():
    return brain.maps()


def volume(whole, seed):
    """Slices as the coil sees them."""
    rng = np.random.RandomState(seed)
    cut = brain.cut(rng, brain.slabs(whole, "train")[0], fastmri.SLICES, fastmri.SIDE)
    return fastmri.seen_by_coil(rng, cut)


def evaluate(workload, model, batch_size):
    workload._eval_iters.clear()
    count = workload.num_validation_examples
    return workload._eval_model_on_split("validation", count, batch_size, model, None, [0, 0], "")


def train(workload, steps, key):
    model, _ = workload.init_model_fn(key)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    queue = workload._build_input_queue(key, "train", "", workload.batch_size)
    losses = []
    for step in range(steps):
        batch = next(queue)
        logits, _ = workload.model_fn(model, batch, None, spec.ForwardPassMode.TRAIN, [step, 0], True, 0.1)
        result = workload.loss_fn(batch["targets"], logits, batch["weights"])
        loss = result["summed"] / result["n_valid_examples"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model, losses


# The anatomy.


def test_the_maps_are_those_of_one_brain(whole):
    assert whole.shape == (4, 197, 233, 189)
    assert whole.min() == 0
    assert whole.max() == 1
    t1, grey, white, rest = whole
    inside = t1 > 0
    assert 1.7e6 < inside.sum() < 2.1e6  # cubic millimetres
    assert white[t1 > 0.95].mean() > 0.9  # bright in a T1-weighted image; fluid, of the rest, is dark
    assert t1[(rest > 0.9) & inside].mean() < 0.5 < t1[grey > 0.9].mean() < t1[white > 0.9].mean()
    left, right = t1[1:98], t1[99:196][::-1]  # why slabs from left to right would hold nothing out
    assert np.corrcoef(left.ravel(), right.ravel())[0, 1] > 0.99


def test_slabs_share_no_voxel_and_cover_the_brain(whole):
    numbered = np.broadcast_to(np.arange(whole.shape[2])[:, None], whole.shape[2:])[None, None]
    planes = {name: {int(y) for slab in brain.slabs(numbered, name) for y in slab.ravel()} for name in fastmri.VOLUMES}
    assert {name: len(found) for name, found in planes.items()} == {"train": 88, "validation": 44, "test": 44}
    covered = sorted(set.union(*planes.values()))
    assert len(covered) == 176
    assert whole[0][:, covered].sum() > 0.98 * whole[0].sum()


def test_no_cut_leaves_its_slab_by_its_faces():
    """Outside of the slab all is zero. Here nothing else is: tissue reaches farther than any field of view."""
    slab = np.ones((4, 201, brain.THICKNESS, 201), np.float32)
    slab[0] = 0
    slab[0, 50:151, :, 50:151] = 1  # most of a cut lies here
    rng = np.random.RandomState(8)
    cuts = np.stack([brain.cut(rng, slab, fastmri.SLICES, fastmri.SIDE) for _ in range(40)])
    assert (cuts > 0).all()
    assert not np.allclose(cuts[0], cuts[1])


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"mini_fastmri .* pip install --no-deps nilearn==0\.14\.1"):
        brain.maps()


# The forward model.


def test_a_quarter_of_the_columns_is_measured_and_always_the_centre():
    rng = np.random.RandomState(1)
    for columns, centre in ((28, [13, 14]), (320, range(148, 173))):  # 8 %: 2 and 25 columns, lowest frequencies
        masks = np.stack([fastmri.column_mask(rng, columns) for _ in range(2000)])
        assert masks[:, list(centre)].all()
        assert masks.mean() == pytest.approx(0.25, abs=0.005)
        others = np.delete(masks, list(centre), axis=1).mean(axis=0)
        assert others.std() < 0.02  # no other column is preferred
        assert not (masks[0] == masks[1]).all()


def test_the_centre_columns_are_the_lowest_frequencies():
    flat = fastmri.to_kspace(np.ones((28, 28)))
    assert np.unravel_index(np.abs(flat).argmax(), flat.shape) == (14, 14)


def test_the_transform_keeps_energy_and_is_undone(whole):
    slices = volume(whole, 2)
    kspace = fastmri.to_kspace(slices)
    assert (np.abs(kspace) ** 2).sum() == pytest.approx((np.abs(slices) ** 2).sum())
    np.testing.assert_allclose(fastmri.magnitude(kspace), np.abs(slices), atol=1e-12)


def test_with_all_columns_measured_the_input_is_the_target(whole, monkeypatch):
    slices = volume(whole, 3)
    masked = fastmri.measure(np.random.RandomState(4), slices)
    assert np.abs(masked["inputs"] - masked["targets"]).mean() > 0.1
    monkeypatch.setattr(fastmri, "column_mask", lambda rng, columns: np.ones(columns, bool))
    full = fastmri.measure(np.random.RandomState(4), slices)
    np.testing.assert_array_equal(full["inputs"], full["targets"])


def test_inputs_are_normalised_and_the_normalisation_can_be_undone(whole):
    slices = volume(whole, 5)
    example = fastmri.measure(np.random.RandomState(6), slices)
    np.testing.assert_allclose(example["inputs"].mean(axis=(1, 2)), 0, atol=0.02)  # clipping moves it a little
    np.testing.assert_allclose(example["inputs"].std(axis=(1, 2)), 1, atol=0.05)
    targets = example["targets"] * example["std"][:, None, None] + example["mean"][:, None, None]
    clipped = np.abs(example["targets"]) == fastmri.CLIP
    assert clipped.mean() < 0.02
    # The noise is small: undone, the target is the noiseless magnitude up to it.
    assert np.abs(targets - np.abs(slices))[~clipped].mean() < 0.05 * np.abs(slices).max()
    assert len(set(example["volume_max"])) == 1
    assert example["volume_max"][0] >= targets.max() - 1e-6


def test_volumes_are_not_shared_between_splits(workload):
    maxima = {name: set(split["volume_max"].tolist()) for name, split in workload.splits.items()}
    assert {name: len(values) for name, values in maxima.items()} == SMALL
    assert not maxima["train"] & maxima["validation"]
    assert not maxima["validation"] & maxima["test"]


# The metric.


def test_ssim_is_that_of_scikit_image(workload):
    rng = np.random.RandomState(7)
    targets = rng.rand(6, 28, 20)
    images = targets + np.linspace(0, 1, 6)[:, None, None] * rng.randn(6, 28, 20)
    images[1] = 1 - targets[1]  # negative correlation
    ranges = rng.uniform(0.5, 3, 6)
    mine = ssim(*(torch.from_numpy(a) for a in (images, targets, ranges)))
    theirs = [structural_similarity(x, y, data_range=r) for x, y, r in zip(images, targets, ranges)]
    np.testing.assert_allclose(mine, theirs, rtol=1e-12)
    assert mine[0] == pytest.approx(1, abs=1e-12)
    assert mine[1] < 0
    # Real images, with the whole way through the workload.
    batch = next(workload._build_input_queue([0, 0], "validation", "", 32))
    undone = (batch[k] * batch["std"].view(-1, 1, 1) + batch["mean"].view(-1, 1, 1) for k in ("inputs", "targets"))
    pairs = zip(*(images.double().numpy() for images in undone), batch["volume_max"].double().numpy())
    expected = sum(structural_similarity(x, y, data_range=r) for x, y, r in pairs)
    assert float(workload.metric_sums(batch, batch["inputs"])["ssim"]) == pytest.approx(expected, rel=1e-9)


def test_a_perfect_reconstruction_is_perfect(workload):
    batch = next(workload._build_input_queue([0, 0], "validation", "", 32))
    sums = workload.evaluate_batch(None, batch, batch["targets"])
    assert float(sums["ssim"]) == pytest.approx(32, abs=1e-9)
    assert float(sums["loss"]) == 0


# Loss, masks, model.


def test_the_loss_is_the_mean_over_pixels_summed_over_examples(workload):
    labels, images = torch.zeros(3, 2, 2), torch.tensor([1.0, -2.0, 4.0]).view(3, 1, 1) * torch.ones(3, 2, 2)
    result = workload.loss_fn(labels, images, torch.tensor([1.0, 1.0, 0.0]))
    assert result["per_example"].tolist() == [1, 2, 0]
    assert (result["summed"].item(), result["n_valid_examples"].item()) == (3, 2)


def test_padding_changes_nothing(workload):
    model, _ = workload.init_model_fn([1, 0])
    _, last = islice(workload._build_input_queue([0, 0], "validation", "", 20), 2)
    assert last["weights"].tolist() == [1.0] * 12 + [0.0] * 8
    real = {name: tensor[:12] for name, tensor in last.items()}
    sums = []
    for batch in (last, real):
        logits, _ = workload.model_fn(model, batch, None, spec.ForwardPassMode.EVAL, [0, 0], False)
        sums.append(workload.evaluate_batch(model, batch, logits))
    assert sums[0] == pytest.approx(sums[1], rel=1e-5)


def test_evaluation_does_not_depend_on_the_batch_size(workload):
    model, _ = workload.init_model_fn([1, 0])
    assert evaluate(workload, model, 7) == pytest.approx(evaluate(workload, model, 32), rel=1e-5)


def test_the_loss_falls_and_one_seed_gives_one_run(workload):
    model, losses = train(workload, 60, [2, 0])
    assert np.mean(losses[-10:]) < 0.75 * np.mean(losses[:10])
    assert (
        evaluate(workload, model, 32)["ssim"] > evaluate(workload, workload.init_model_fn([2, 0])[0], 32)["ssim"] + 0.1
    )
    assert train(workload, 10, [2, 0])[1] == losses[:10]
    assert train(workload, 10, [2, 1])[1] != losses[:10]


def test_data_is_generated_alike_every_time(monkeypatch):
    monkeypatch.setattr(fastmri, "VOLUMES", {"train": 3})
    one, two = fastmri.generate(), fastmri.generate()
    for name, column in one.items():
        assert len(column) == 12
        np.testing.assert_array_equal(column, two[name])
        assert np.isfinite(column).all()
