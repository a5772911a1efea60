"""Three updates of a small model with DeepSpeed's ZeRO on a CPU: `python -m tests.processes.zero_training STAGE DIR`.

Beside the folder it leaves `weights_N.pt`: the float32 weights after each update, as DeepSpeed itself gathers them.
"""

import os
import sys
import tempfile

import deepspeed
import torch
from deepspeed.utils import safe_get_full_fp32_param
from torch import nn

stage, folder = int(sys.argv[1]), sys.argv[2]
os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
store = torch.distributed.FileStore(tempfile.mktemp(), 1)
torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 1))
model[1].register_buffer("scale", torch.tensor([2.0, 3.0]))
engine, *_ = deepspeed.initialize(
    model=model,
    model_parameters=model.parameters(),
    config={
        "train_batch_size": 4,
        "optimizer": {"type": "Adam", "params": {"lr": 0.01, "torch_adam": True}},
        "zero_optimization": {"stage": stage},
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": True},
    },
)
for number in (1, 2, 3):
    loss = engine(torch.randn(4, 3).bfloat16()).square().mean()
    engine.backward(loss)
    engine.step()
    engine.save_checkpoint(folder)
    weights = {name: safe_get_full_fp32_param(value).clone() for name, value in engine.module.named_parameters()}
    torch.save(weights, os.path.join(os.path.dirname(folder), f"weights_{number}.pt"))
