"""mini_fastmri: a small U-Net that removes the aliasing from undersampled magnetic resonance images.

Data: slices of a real brain (brain.py), measured as a scanner would, which is simulated. A volume is seen by one coil
(shading and phase). The Fourier transform of a slice plus complex noise is its k-space; a mask keeps a quarter of its
columns, the centre among them. The input is the magnitude of the zero-filled inverse transform, and the target that of
all of the k-space. So the noise is in both, as in the knee scans of fastMRI (Zbontar et al. 2018, arXiv 1811.08839).
The mask, normalisation and loss are theirs.
"""

import numpy as np

from miniperf import spec
from miniperf.cache import cached
from miniperf.workloads.base import MiniWorkload, Split
from miniperf.workloads.fastmri import brain

SIDE, SLICES = 28, 4  # pixels; slices of one volume
VOLUMES = {"train": 1000, "validation": 50, "test": 30}
ACCELERATION, CENTER_FRACTION = 4, 0.08
CLIP = 6.0  # standard deviations


def to_kspace(image: np.ndarray) -> np.ndarray:
    """Centred, orthonormal 2D Fourier transform of the last two axes."""
    shifted = np.fft.ifftshift(image, axes=(-2, -1))
    return np.fft.fftshift(np.fft.fft2(shifted, norm="ortho"), axes=(-2, -1))


def magnitude(kspace: np.ndarray) -> np.ndarray:
    """Magnitude of the inverse transform."""
    shifted = np.fft.ifftshift(kspace, axes=(-2, -1))
    return np.abs(np.fft.fftshift(np.fft.ifft2(shifted, norm="ortho"), axes=(-2, -1)))


def column_mask(rng: np.random.RandomState, columns: int) -> np.ndarray:
    """Which columns are measured, bool [columns]: the centre always, the others at random, a quarter on average."""
    centre = int(columns * CENTER_FRACTION)
    first = (columns - centre + 1) // 2
    mask = rng.rand(columns) < (columns / ACCELERATION - centre) / (columns - centre)
    mask[first : first + centre] = True
    return mask


def seen_by_coil(rng: np.random.RandomState, image: np.ndarray) -> np.ndarray:
    """Slices [slices, side, side] as one coil sees them, complex: brightest near where it lies, the phase a random
    quadratic."""
    axis = (np.arange(SIDE) + 0.5) / SIDE * 2 - 1
    depth = np.linspace(-0.4, 0.4, len(image))
    points = np.stack(np.meshgrid(depth, axis, axis, indexing="ij"), axis=-1)  # [slices, side, side, zyx]
    coil = rng.uniform(-1.2, 1.2, 3)
    shading = np.exp(-((points - coil) ** 2).sum(axis=-1) / rng.uniform(3, 8))
    phase = points @ rng.uniform(-2, 2, 3) + (points**2) @ rng.uniform(-1, 1, 3)
    return image * shading * np.exp(1j * phase)


def measure(rng: np.random.RandomState, slices: np.ndarray) -> dict[str, np.ndarray]:
    """The examples of one volume. The noise is that of the scanner: the same in the input and in the target.

    Returns:
        inputs, targets: [slices, side, side], normalised by the mean and the deviation of the input.
        mean, std: [slices], which undo that.
        volume_max: [slices], the largest target of the volume.
    """
    kspace = to_kspace(slices)
    level = rng.uniform(0.003, 0.01) * np.abs(slices).max()
    kspace = kspace + level * (rng.randn(*kspace.shape) + 1j * rng.randn(*kspace.shape))
    masks = np.stack([column_mask(rng, SIDE) for _ in slices])
    inputs, targets = magnitude(kspace * masks[:, None, :]), magnitude(kspace)
    mean, std = inputs.mean(axis=(1, 2)), inputs.std(axis=(1, 2))

    def normalised(images: np.ndarray) -> np.ndarray:
        return np.clip((images - mean[:, None, None]) / std[:, None, None], -CLIP, CLIP)

    volume_max = np.full(len(slices), targets.max())
    columns = {"inputs": normalised(inputs), "targets": normalised(targets)}
    columns |= {"mean": mean, "std": std, "volume_max": volume_max}
    return {name: column.astype(np.float32) for name, column in columns.items()}


def generate() -> dict[str, np.ndarray]:
    """All examples, volume by volume."""
    rng = np.random.RandomState(0)
    whole, volumes = brain.maps(), []
    for split, count in VOLUMES.items():
        slabs = brain.slabs(whole, split)
        cuts = (brain.cut(rng, slabs[i % len(slabs)], SLICES, SIDE) for i in range(count))
        volumes += [measure(rng, seen_by_coil(rng, cut)) for cut in cuts]
    return {name: np.concatenate([volume[name] for volume in volumes]) for name in volumes[0]}


class FastMriData(MiniWorkload):
    batch_size = 8
    step_hint = 2000
    target_share = 0.31  # of the schedule, where the paper's baseline reaches fastmri's target
    eval_batch_size = 100
    max_eval_train_examples = 40
    target_metric_name = "ssim"
    validation_target_value = 0.59185
    test_target_value = 0.61902
    loss_type = spec.LossType.MEAN_ABSOLUTE_ERROR

    def load_splits(self) -> dict[str, Split]:
        columns = cached("fastmri_2", generate)
        bounds = np.cumsum([count * SLICES for count in VOLUMES.values()])[:-1]
        parts = {name: np.split(column, bounds) for name, column in columns.items()}
        return {split: {name: part[i] for name, part in parts.items()} for i, split in enumerate(VOLUMES)}
