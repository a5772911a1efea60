"""LAWA and EMA over the parameters of a `torch.nn.Module`."""

from weight_averaging.torch.averager import Averager
from weight_averaging.torch.ema import EMA
from weight_averaging.torch.grid import Averages
from weight_averaging.torch.lawa import LAWA
from weight_averaging.torch.model.batch_norm import recompute_batch_norm

__all__ = ["EMA", "LAWA", "Averager", "Averages", "recompute_batch_norm"]
