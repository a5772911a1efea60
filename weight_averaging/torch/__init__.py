"""LAWA and EMA over the parameters of a `torch.nn.Module`."""

from weight_averaging.torch.averager import Averager
from weight_averaging.torch.averages import Averages
from weight_averaging.torch.batch_norm import recompute_batch_norm
from weight_averaging.torch.ema import EMA
from weight_averaging.torch.lawa import LAWA

__all__ = ["EMA", "LAWA", "Averager", "Averages", "recompute_batch_norm"]
