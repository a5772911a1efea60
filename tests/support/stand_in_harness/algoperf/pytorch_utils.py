from miniperf.pytorch_utils import *  # noqa: F403
