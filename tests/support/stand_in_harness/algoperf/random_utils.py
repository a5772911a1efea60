from miniperf.random_utils import *  # noqa: F403
