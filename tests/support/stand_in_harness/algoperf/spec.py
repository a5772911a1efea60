from miniperf.spec import *  # noqa: F403
