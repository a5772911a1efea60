"""scripts.run with the language model of full size made small, alone or on several ranks.

torchrun --standalone --nproc_per_node=2 tests/support/small_lm.py --workload=finewebedu_lm_124m ...
DIE=1:7 torchrun ...   rank 1 is killed when it draws batch 7
"""

import os
import sys
from typing import Any

sys.path.insert(0, os.getcwd())

from absl import app

from miniperf import runner
from miniperf.workloads.finewebedu_lm.sizes import Sizes
from miniperf.workloads.finewebedu_lm_124m import pytorch
from scripts import run
from tests.support.killing import die

workload = pytorch.FinewebeduLm124mWorkload
workload.sizes = Sizes(vocabulary=50, context=16, width=16, layers=2, heads=2, hidden=32)
workload.batch_size, workload.micro_batch_size, workload.eval_batch_size = 16, 2, 8
workload.eval_every_n_steps, workload.checkpoint_every_n_steps = 2, 4
workload.step_hint = 12


class DyingQueue(runner.CountedQueue):
    def __next__(self) -> Any:
        batch = super().__next__()
        if os.environ["DIE"] == f"{os.environ['RANK']}:{self.drawn}":
            die()
        return batch


if __name__ == "__main__":
    if "DIE" in os.environ:
        runner.CountedQueue = DyingQueue
    app.run(run.main)
