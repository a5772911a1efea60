"""scripts.run with the language model of full size made small, alone or on several ranks.

python tests/small_lm.py --workload=finewebedu_lm_124m --submission=adamw_lawa --data_dir=... --max_global_steps=6
torchrun --standalone --nproc_per_node=2 tests/small_lm.py ...
"""

import os
import sys

sys.path.insert(0, os.getcwd())

from absl import app

from miniperf.workloads.finewebedu_lm.model import Sizes
from miniperf.workloads.finewebedu_lm_124m import pytorch
from scripts import run

workload = pytorch.FinewebeduLm124mWorkload
workload.sizes = Sizes(vocabulary=50257, context=16, width=16, layers=2, heads=2, hidden=32)
workload.batch_size, workload.micro_batch_size, workload.eval_batch_size = 16, 2, 8
workload.eval_every_n_steps, workload.checkpoint_every_n_steps = 2, 4
workload.step_hint = 12

if __name__ == "__main__":
    app.run(run.main)
