"""mini_fastmri: a small U-Net that removes the aliasing from undersampled magnetic resonance images.

Data: random phantoms, measured as a scanner would. A volume is a body and its organs (ellipsoids) with a smooth
texture, seen by one coil (shading and phase) and cut into slices. The Fourier transform of a slice plus complex noise
is its k-space; a mask keeps a quarter of its columns, the centre among them. The input is the magnitude of the
zero-filled inverse transform, the target that of all of the k-space, so the noise is in both, as in the knee scans
of fastMRI (Zbontar et al. 2018, arXiv 1811.08839), whose mask, normalisation and loss these are.
"""

from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from miniperf import spec
from miniperf.cache import cached
from miniperf.workloads.base import MiniWorkload, Split, summed

SIDE, SLICES = 28, 4  # pixels; slices of one volume
VOLUMES = {"train": 1000, "validation": 50, "test": 50}
ACCELERATION, CENTER_FRACTION = 4, 0.08
CLIP = 6.0  # standard deviations
CHANNELS, POOLS = 8, 2
WINDOW, K1, K2 = 7, 0.01, 0.03  # of SSIM


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


def phantom(rng: np.random.RandomState) -> np.ndarray:
    """The slices of one random volume as a coil sees them, complex [SLICES, SIDE, SIDE]."""
    axis = (np.arange(SIDE) + 0.5) / SIDE * 2 - 1
    depth = np.linspace(-0.4, 0.4, SLICES)
    points = np.stack(np.meshgrid(depth, axis, axis, indexing="ij"), axis=-1)  # [slices, side, side, zyx]

    def ellipsoid(centre: np.ndarray, radii: np.ndarray) -> np.ndarray:
        turn, _ = np.linalg.qr(rng.randn(3, 3))
        return (((points - centre) @ turn / radii) ** 2).sum(axis=-1) < 1

    body = ellipsoid(rng.uniform(-0.1, 0.1, 3), rng.uniform(0.65, 0.95, 3))
    image = 0.4 * body
    for _ in range(rng.randint(6, 14)):
        organ = ellipsoid(rng.uniform(-0.6, 0.6, 3), rng.uniform(0.06, 0.4, 3)) & body
        texture = np.zeros(points.shape[:-1])
        for _ in range(3):
            wave = rng.randn(3) * rng.uniform(2, 12)
            texture += np.sin(points @ wave + rng.uniform(0, 2 * np.pi)) / 3
        image = np.where(organ, image + rng.uniform(-0.35, 0.6) + 0.2 * texture, image)
    # The coil: brightest near where it lies, its phase a random quadratic.
    coil = rng.uniform(-1.2, 1.2, 3)
    shading = np.exp(-((points - coil) ** 2).sum(axis=-1) / rng.uniform(3, 8))
    phase = points @ rng.uniform(-2, 2, 3) + (points**2) @ rng.uniform(-1, 1, 3)
    return np.clip(image, 0, None) * shading * np.exp(1j * phase)


def measure(rng: np.random.RandomState, slices: np.ndarray) -> dict[str, np.ndarray]:
    """The examples of one volume. The noise is that of the scanner: the same in the input and in the target.

    Returns:
        inputs, targets: [slices, side, side], normalised by the mean and the deviation of the input.
        mean, std: [slices], which undo that.
        volume_max: [slices], the largest target of the volume.
    """
    kspace = to_kspace(slices)
    level = rng.uniform(0.005, 0.02) * np.abs(slices).max()
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
    volumes = [measure(rng, phantom(rng)) for _ in range(sum(VOLUMES.values()))]
    return {name: np.concatenate([volume[name] for volume in volumes]) for name in volumes[0]}


def ssim(images: Tensor, targets: Tensor, data_range: Tensor) -> Tensor:
    """Structural similarity of each image (Wang et al. 2004), as scikit-image defines it by default: uniform windows
    of 7 x 7, sample covariance, mean over the windows that lie inside the image.

    Args:
        images, targets: [batch, height, width].
        data_range: [batch], the largest value there can be.

    Returns:
        [batch], float64.
    """
    x, y = images.double().unsqueeze(1), targets.double().unsqueeze(1)
    mean_x, mean_y, xx, yy, xy = (F.avg_pool2d(z, WINDOW, stride=1) for z in (x, y, x * x, y * y, x * y))
    unbias = WINDOW**2 / (WINDOW**2 - 1)
    var_x, var_y, cov = ((unbias * z) for z in (xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y))
    c1, c2 = (((k * data_range.double()) ** 2).view(-1, 1, 1, 1) for k in (K1, K2))
    above = (2 * mean_x * mean_y + c1) * (2 * cov + c2)
    below = (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    return (above / below).mean(dim=(1, 2, 3))


class Convolutions(nn.Module):
    """Two 3 x 3 convolutions, each with instance norm, leaky ReLU and dropout of whole channels."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
        self.second = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)

    def forward(self, x: Tensor, dropout_rate: float) -> Tensor:
        for layer in (self.first, self.second):
            x = F.leaky_relu(F.instance_norm(layer(x)), 0.2)
            x = F.dropout2d(x, dropout_rate, self.training)
        return x


class UNet(nn.Module):
    """fastMRI's U-Net (Ronneberger et al. 2015): channels double as the image halves, and skips join the two ways."""

    def __init__(self) -> None:
        super().__init__()
        widths = [CHANNELS * 2**level for level in range(POOLS + 1)]
        pairs = list(pairwise(widths))
        self.down = nn.ModuleList(Convolutions(a, b) for a, b in [(1, CHANNELS), *pairs])
        self.upsample = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2, bias=False) for a, b in reversed(pairs))
        self.up = nn.ModuleList(Convolutions(b, a) for a, b in reversed(pairs))
        self.output = nn.Conv2d(CHANNELS, 1, 1)

    def forward(self, inputs: Tensor, dropout_rate: float) -> Tensor:
        """inputs: [batch, side, side], the side a multiple of 2^POOLS. Returns images of the same shape."""
        x = self.down[0](inputs.unsqueeze(1), dropout_rate)
        skips = []
        for layer in list(self.down)[1:]:
            skips.append(x)
            x = layer(F.avg_pool2d(x, 2), dropout_rate)
        for upsample, layer in zip(self.upsample, self.up, strict=True):
            x = F.leaky_relu(F.instance_norm(upsample(x)), 0.2)
            x = layer(torch.cat([x, skips.pop()], dim=1), dropout_rate)
        return self.output(x).squeeze(1)


class MiniFastMriWorkload(MiniWorkload):
    batch_size = 8
    step_hint = 1800
    eval_batch_size = 100
    target_metric_name = "ssim"
    validation_target_value = 0.78135
    test_target_value = 0.78319
    loss_type = spec.LossType.MEAN_ABSOLUTE_ERROR

    def load_splits(self) -> dict[str, Split]:
        columns = cached("fastmri_1", generate)
        sizes = [count * SLICES for count in VOLUMES.values()]
        parts = {name: torch.from_numpy(column).split(sizes) for name, column in columns.items()}
        return {split: {name: part[i] for name, part in parts.items()} for i, split in enumerate(VOLUMES)}

    def build_model(self) -> nn.Module:
        return UNet()

    def is_output_params(self, param_key: str) -> bool:
        return param_key.startswith("output.")

    def loss_fn(
        self, label_batch: Tensor, logits_batch: Tensor, mask_batch: Tensor | None = None, label_smoothing: float = 0.0
    ) -> dict[str, Tensor]:
        del label_smoothing  # there are no classes
        return summed((logits_batch - label_batch).abs().mean(dim=(1, 2)), mask_batch)

    def metric_sums(self, batch: dict[str, Any], logits: Any) -> dict[str, Tensor]:
        mean, std = batch["mean"].view(-1, 1, 1), batch["std"].view(-1, 1, 1)
        values = ssim(logits * std + mean, batch["targets"] * std + mean, batch["volume_max"])
        # where: the range of a padded example is 0, its similarity 0/0.
        values = torch.where(batch["weights"] > 0, values, 0.0)
        return {"ssim": values.sum(), "loss": self.loss_fn(batch["targets"], logits, batch["weights"])["summed"]}
