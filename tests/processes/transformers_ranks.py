"""Two processes under Hugging Face's Trainer, over gloo; started by test_transformers.py."""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.fsdp
from transformers import GPT2LMHeadModel

from tests.support import reference
from tests.weight_averaging.trainers.test_transformers import Recorder, flat, tiny, trainer_of
from weight_averaging.torch import LAWA
from weight_averaging.trainers.transformers import WeightAveraging


def replicas(model: torch.nn.Module) -> LAWA:
    return LAWA(model, interval=2, window=3, process_group=dist.group.WORLD)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    recorder = Recorder()
    settings = {"ddp_backend": "gloo", "per_device_train_batch_size": 1}
    whole = trainer_of(folder, recorder, **settings)
    averaging = WeightAveraging(replicas).attach(whole)
    whole.train()
    assert len(averaging.averager._tracks[0].slots()) == (3 if dist.get_rank() == 0 else 0), "one window for both"
    seen = dict(whole.evaluated)
    for step in (8, 12):
        np.testing.assert_allclose(seen[step], reference.lawa(recorder.snapshots[1:step:2], 3), atol=1e-6)
    np.testing.assert_array_equal(flat(whole.model), recorder.snapshots[-1])
    averaging.save_pretrained(folder / "average")
    dist.barrier()
    np.testing.assert_array_equal(flat(GPT2LMHeadModel.from_pretrained(folder / "average")), seen[12])

    if not hasattr(torch.distributed.fsdp, "fully_shard"):
        print("as expected", flush=True)
        return  # torch 2.5 cannot load to "cpu:0", where a rank of transformers resumes
    again = trainer_of(folder, model=tiny(seed=5), **settings)
    restored = WeightAveraging(replicas).attach(again)
    again.train(resume_from_checkpoint=str(folder / "checkpoint-8"))
    np.testing.assert_array_equal(flat(again.model), flat(whole.model))
    with averaging.averaged(), restored.averaged():
        np.testing.assert_array_equal(flat(again.model), flat(whole.model))
        assert averaging.averager.swapped
    print("as expected", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
