"""The language model of "When, Where and Why to Average Weights?" (arXiv 2502.06761, Section 7), in PyTorch.

A decoder of 124 million parameters, 9400 updates of 512 sequences of 1024 tokens, the target a validation loss of 3.28.
Its data is a folder that scripts.prepare_text has made, given by --data_dir. It runs on CUDA where there is any, in
bfloat16 autocast over float32 weights, on one rank or on many.
"""

import contextlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from miniperf import spec
from miniperf.pytorch_utils import in_ranks, pytorch_setup
from miniperf.workloads.finewebedu_lm import tokenizer
from miniperf.workloads.finewebedu_lm.chunks import ShuffledBatches, in_order
from miniperf.workloads.finewebedu_lm.model import Decoder, token_losses
from miniperf.workloads.finewebedu_lm.shards import Tokens
from miniperf.workloads.finewebedu_lm.sizes import PAPER
from miniperf.workloads.pytorch import parameters_of, summed
from weight_averaging.errors import UsageError

USE_DDP, RANK, DEVICE, RANKS = pytorch_setup()


class FinewebeduLm124mWorkload(spec.Workload):
    """See above. There is no test split, and so no target for it, as in AlgoPerf's own finewebedu_lm."""

    sizes = PAPER
    batch_size = 512
    micro_batch_size = 16  # sequences of a rank that go through the model at a time
    step_hint = 9400
    eval_every_n_steps = 40
    checkpoint_every_n_steps = 400  # a window of 20 makes checkpoints of 12 GB
    target_metric_name = "loss"
    validation_target_value = 3.28
    test_target_value = None
    loss_type = spec.LossType.SOFTMAX_CROSS_ENTROPY
    eval_batch_size = 16  # of a rank
    num_test_examples = 0
    train_mean = 0.0
    train_stddev = 1.0
    # The paper counts updates; these matter only to whoever asks for evaluations by time.
    max_allowed_runtime_sec = 48 * 3600
    eval_period_time_sec = 600

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._tokens: dict[str, Tokens] = {}

    def open(self, data_dir: str) -> None:
        if not data_dir:
            raise UsageError("--data_dir must be given: a folder made by scripts.prepare_text (docs/language_model.md)")
        folder = Path(data_dir).expanduser()
        self._tokens = {
            name: Tokens(folder, name, tokenizer.NAME, self.sizes.vocabulary) for name in ("train", "validation")
        }
        if self.num_validation_examples == 0:
            raise UsageError(f"{folder}: the validation split has no chunk of {self.sizes.context + 1} tokens")

    def _of_split(self, split: str) -> Tokens:
        if not self._tokens:
            raise ValueError("the data is known only after open(); call that first")
        return self._tokens["train" if split == "eval_train" else split]

    @property
    def num_train_examples(self) -> int:
        return len(self._of_split("train")) // (self.sizes.context + 1)

    @property
    def num_validation_examples(self) -> int:
        return len(self._of_split("validation")) // (self.sizes.context + 1)

    @property
    def num_eval_train_examples(self) -> int:
        return min(512, self.num_train_examples, self.num_validation_examples)

    def has_reached_validation_target(self, eval_result: dict[str, float]) -> bool:
        return eval_result["validation/loss"] <= self.validation_target_value

    def has_reached_test_target(self, eval_result: dict[str, float]) -> bool:
        return True

    def _build_input_queue(
        self,
        data_rng: Any,
        split: str,
        data_dir: str,
        global_batch_size: int,
        cache: bool | None = None,
        repeat_final_dataset: bool | None = None,
        num_batches: int | None = None,
    ) -> "Batches":
        """Batches of this rank, to train on. UsageError if the folder cannot be used, or the batch not be divided."""
        assert split == "train", "evaluations read the splits in order"
        self.open(data_dir)
        check_division(global_batch_size, RANKS, self.micro_batch_size)
        if RANK == 0:
            check(self._tokens)
        seed = int(data_rng[0])
        return Batches(ShuffledBatches(self._tokens["train"], self.sizes.context, global_batch_size, seed, RANK, RANKS))

    def init_model_fn(self, rng: Any) -> tuple[nn.Module, None]:
        torch.manual_seed(int(rng[0]))
        model = Decoder(self.sizes)
        self._param_shapes, self._param_types = parameters_of(model)
        return in_ranks(model.to(DEVICE)), None

    def model_fn(
        self,
        params: nn.Module,
        augmented_and_preprocessed_input_batch: dict[str, Any],
        model_state: Any,
        mode: spec.ForwardPassMode,
        rng: Any,
        update_batch_norm: bool,
        dropout_rate: float = 0.0,
    ) -> tuple[Tensor, None]:
        """Logits [batch, context, vocabulary]. The model has no dropout: the rate is taken and not used."""
        del model_state, rng, update_batch_norm, dropout_rate
        params.train(mode == spec.ForwardPassMode.TRAIN)
        gradients = contextlib.nullcontext() if mode == spec.ForwardPassMode.TRAIN else torch.no_grad()
        with gradients, torch.autocast(DEVICE.type, torch.bfloat16, enabled=DEVICE.type == "cuda"):
            return params(augmented_and_preprocessed_input_batch["inputs"]), None

    def loss_fn(
        self, label_batch: Tensor, logits_batch: Tensor, mask_batch: Tensor | None = None, label_smoothing: float = 0.0
    ) -> dict[str, Tensor]:
        """In float32. A mask, if there is one, is [batch, context]."""
        return summed(token_losses(logits_batch.float(), label_batch, label_smoothing), mask_batch)

    def is_output_params(self, param_key: str) -> bool:
        return "embedding" in param_key  # tied

    @torch.no_grad()
    def _eval_model_on_split(
        self,
        split: str,
        num_examples: int,
        global_batch_size: int,
        params: nn.Module,
        model_state: Any,
        rng: Any,
        data_dir: str,
        global_step: int = 0,
    ) -> dict[str, float]:
        """Loss in nats a token over the split's chunks, of which every rank takes its part; and perplexity."""
        del data_dir, global_step
        if num_examples == 0:  # as AlgoPerf's finewebedu_lm has it of a split that is not there
            return {"loss": 0.0, "ppl": 1.0}
        sums = torch.zeros(2, dtype=torch.float64, device=DEVICE)  # of losses, and how many
        for arrays in in_order(self._of_split(split), self.sizes.context, global_batch_size, RANK, RANKS, num_examples):
            batch = placed(arrays)
            logits, _ = self.model_fn(params, batch, model_state, spec.ForwardPassMode.EVAL, rng, False)
            losses = self.loss_fn(batch["targets"], logits)
            sums += torch.stack([losses["summed"].double(), losses["n_valid_examples"].double()])
        if USE_DDP:
            dist.all_reduce(sums)
        loss = (sums[0] / sums[1]).item()
        return {"loss": loss, "ppl": math.exp(loss)}


class Batches:
    """Batches of tensors on this rank's device. `skip` passes over some at no cost."""

    def __init__(self, arrays: ShuffledBatches) -> None:
        self._arrays = arrays
        self.skip = arrays.skip

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        return {**placed(next(self._arrays)), "weights": None}


def placed(arrays: dict[str, Any]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array).to(DEVICE) for name, array in arrays.items()}


def check_division(batch: int, ranks: int, micro_batch: int) -> None:
    """UsageError unless every rank's part consists of whole micro-batches, or is smaller than one."""
    share, rest = divmod(batch, ranks)
    if rest or (share > micro_batch and share % micro_batch):
        whole = f"{ranks} ranks of whole micro-batches of {micro_batch}"
        raise UsageError(f"--micro_batch_size={micro_batch}: the batch of {batch} sequences does not divide by {whole}")


def check(splits: dict[str, Tokens]) -> None:
    """Read all shards once and compare checksums. UsageError for the first that differs."""
    total = sum(len(tokens) for tokens in splits.values())
    bar = tqdm(total=total, unit="tok", unit_scale=True, desc="checksums", disable=None, file=sys.stderr, leave=False)
    with bar:
        for tokens in splits.values():
            tokens.check(bar.update)
