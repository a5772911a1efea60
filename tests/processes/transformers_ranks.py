"""Two processes under Hugging Face's Trainer, over gloo; `-m tests.processes.transformers_ranks FOLDER [fsdp2]`."""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.fsdp
from transformers import GPT2LMHeadModel

from tests.processes.accelerate_ranks import claim_an_accelerator, full
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


def shards(model: torch.nn.Module) -> LAWA:
    return LAWA(model, interval=2, window=3)


def fsdp2(folder: Path) -> None:
    """By the plugin of accelerate."""
    import tests.weight_averaging.trainers.test_transformers

    claim_an_accelerator()
    tests.weight_averaging.trainers.test_transformers.flat = full
    config = {"version": 2, "transformer_layer_cls_to_wrap": ["GPT2Block"], "state_dict_type": "FULL_STATE_DICT"}
    settings = {"ddp_backend": "gloo", "per_device_train_batch_size": 1, "fsdp": True, "fsdp_config": config}
    recorder = Recorder()
    whole = trainer_of(folder, recorder, **settings)
    averaging = WeightAveraging(shards).attach(whole)
    whole.train()
    assert whole.accelerator.is_fsdp2
    assert hasattr(next(whole.model.parameters()), "device_mesh")
    seen = dict(whole.evaluated)
    for step in (8, 12):
        np.testing.assert_allclose(seen[step], reference.lawa(recorder.snapshots[1:step:2], 3), atol=1e-6)
    np.testing.assert_array_equal(full(whole.model), recorder.snapshots[-1])

    again = trainer_of(folder, model=tiny(seed=5), **settings)
    restored = WeightAveraging(shards).attach(again)
    again.train(resume_from_checkpoint=str(folder / "checkpoint-8"))
    np.testing.assert_array_equal(full(again.model), full(whole.model))
    with averaging.averaged(), restored.averaged():
        np.testing.assert_array_equal(full(again.model), seen[12])
    restored.averager.save_average(folder / "average")
    if dist.get_rank() == 0:  # one of them: the others would read what is being written
        tiny().config.save_pretrained(folder / "average")
    dist.barrier()
    np.testing.assert_array_equal(flat(GPT2LMHeadModel.from_pretrained(folder / "average")), seen[12])
    print("as expected", flush=True)


if __name__ == "__main__":
    (fsdp2 if sys.argv[2:] == ["fsdp2"] else main)(Path(sys.argv[1]))
