"""mini_fastmri in PyTorch: a small U-Net, scored by structural similarity."""

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from miniperf.workloads.fastmri.data import FastMriData
from miniperf.workloads.pytorch import PyTorchWorkload, summed

CHANNELS, POOLS = 8, 2
WINDOW, K1, K2 = 7, 0.01, 0.03  # of SSIM


def ssim(images: Tensor, targets: Tensor, data_range: Tensor) -> Tensor:
    """Structural similarity of each image (Wang et al. 2004), as scikit-image defines it by default.

    Windows are uniform, of 7 x 7, with the sample covariance. The mean is over the windows that lie inside the image.

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
    """Two 3 x 3 convolutions, each with instance norm, leaky ReLU and dropout."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
        self.second = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)

    def forward(self, x: Tensor, dropout_rate: float) -> Tensor:
        for layer in (self.first, self.second):
            x = F.leaky_relu(F.instance_norm(layer(x)), 0.2)
            x = F.dropout(x, dropout_rate, self.training)
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


class MiniFastMriWorkload(FastMriData, PyTorchWorkload):
    def build_model(self) -> nn.Module:
        return UNet()

    def is_output_params(self, param_key: str) -> bool:
        return param_key.startswith("output.")

    def loss_fn(
        self, label_batch: Tensor, logits_batch: Tensor, mask_batch: Tensor | None = None, label_smoothing: float = 0.0
    ) -> dict[str, Tensor]:
        del label_smoothing  # there are no classes
        return summed((logits_batch - label_batch).abs().mean(dim=(1, 2)), mask_batch)

    def metric_sums(self, batch: dict[str, Any], logits: Any) -> dict[str, Any]:
        mean, std = batch["mean"].view(-1, 1, 1), batch["std"].view(-1, 1, 1)
        values = ssim(logits * std + mean, batch["targets"] * std + mean, batch["volume_max"])
        # where: the range of a padded example is 0, its similarity 0/0.
        values = torch.where(batch["weights"] > 0, values, 0.0)
        return {"ssim": values.sum()}
