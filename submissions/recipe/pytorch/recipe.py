"""The functions of an AlgoPerf submission in PyTorch: an optimizer, a schedule and, maybe, an averager."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from absl import logging
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from weight_averaging.torch import Averager, recompute_batch_norm
from weight_averaging.torch.model.batch_norm import batch_norms

from ...api import spec
from ..base import BaseRecipe
from .averagers import averager_of
from .distributed import DEVICE, USE_PYTORCH_DDP, in_ddp
from .gradients import backward
from .muon import MuonBase
from .optimizers import BaseOptimizer
from .recent_batches import RecentBatches

RECOMPUTE_BATCHES = 10  # training batches that renew batch-norm statistics where these are not averaged


@dataclass(frozen=True)
class Recipe(BaseRecipe):
    """The recipe with a model as a module, and its optimizer, scheduler and averager as objects with states."""

    optimizer: BaseOptimizer | MuonBase
    schedule: Callable[[Optimizer, Any, int], LRScheduler]

    def init_optimizer_state(
        self, workload: Any, model_params: nn.Module, model_state: Any, hyperparameters: Any, rng: Any
    ) -> dict[str, Any]:
        """Every value has a state_dict: that is what the harness saves, and restores into a fresh state."""
        del model_state, rng
        if not isinstance(model_params, nn.Module):
            raise ValueError("the submission is in PyTorch, the model is not: run it with --framework=pytorch")
        self.check_hyperparameters(hyperparameters, workload.step_hint)
        hyperparameters = self._own_if_any(hyperparameters)
        optimizer = self.optimizer.build(model_params, hyperparameters, workload.step_hint)
        scheduler = self.schedule(optimizer, hyperparameters, workload.step_hint)
        state: dict[str, Any] = {"optimizer": optimizer, "scheduler": scheduler}
        if self.averages is not None:
            state["averager"] = averager_of(self.averages, model_params, hyperparameters, workload.step_hint)
            if state["averager"].buffers == "recompute":
                state["recent_batches"] = RecentBatches(RECOMPUTE_BATCHES)
        elif self.optimizer.settings.averages and batch_norms(model_params):
            # Training sees other weights than evaluations do, and so do its statistics.
            state["recent_batches"] = RecentBatches(RECOMPUTE_BATCHES)
        return state

    def update_params(
        self,
        workload: Any,
        current_param_container: nn.Module,
        current_params_types: Any,
        model_state: Any,
        hyperparameters: Any,
        batch: dict[str, Tensor],
        loss_type: Any,
        optimizer_state: dict[str, Any],
        eval_results: list[tuple[int, Any]],
        global_step: int,
        rng: Any,
        train_state: Mapping[str, Any] | None = None,
    ) -> tuple[dict[str, Any], nn.Module, Any]:
        """One update of the raw weights. `global_step` counts the updates before this one.

        `train_state` is the harness's book-keeping. Its runner passes it to those who name it, its tests to everyone.
        """
        del current_params_types, loss_type, eval_results, train_state
        hyperparameters = self._own_if_any(hyperparameters)
        model = current_param_container
        averager = optimizer_state.get("averager")
        if averager is not None:
            averager.swap_out()  # an evaluation leaves the average in the model
        if self.optimizer.settings.averages:
            optimizer_state["optimizer"].train()  # likewise
        if USE_PYTORCH_DDP:
            model = in_ddp(model, DEVICE)
        model.train()
        optimizer_state["optimizer"].zero_grad()

        options = {}
        if hasattr(hyperparameters, "dropout_rate"):  # else the model's own default
            options["dropout_rate"] = hyperparameters.dropout_rate
        smoothing = getattr(hyperparameters, "label_smoothing", 0.0)
        loss, model_state = backward(workload, model, batch, model_state, rng, smoothing, options)

        if hasattr(hyperparameters, "grad_clip"):
            nn.utils.clip_grad_norm_(model.parameters(), max_norm=hyperparameters.grad_clip)
        logs = global_step <= 100 or global_step % 500 == 0
        grad_norm = _norm(model) if logs else 0.0  # before a step that works on the gradients in place
        optimizer_state["optimizer"].step()
        learning_rate = optimizer_state["scheduler"].get_last_lr()[0]  # of this update
        optimizer_state["scheduler"].step()
        if averager is not None:
            averager.update(global_step + 1, learning_rate)
        if "recent_batches" in optimizer_state:
            optimizer_state["recent_batches"].append(batch)
        if logs:
            _log(workload, loss, grad_norm, optimizer_state["scheduler"], averager, global_step)
        return optimizer_state, model, model_state

    def prepare_for_eval(
        self,
        workload: Any,
        current_param_container: nn.Module,
        current_params_types: Any,
        model_state: Any,
        hyperparameters: Any,
        loss_type: Any,
        optimizer_state: dict[str, Any],
        eval_results: list[tuple[int, Any]],
        global_step: int,
        rng: Any,
    ) -> tuple[dict[str, Any], nn.Module, Any]:
        """Put the average into the model, if there is one yet; the next update takes it out."""
        del current_params_types, hyperparameters, loss_type, eval_results, global_step

        def forward(batch: dict[str, Tensor]) -> Any:
            return workload.model_fn(
                current_param_container, batch, model_state, spec.ForwardPassMode.TRAIN, rng, True, dropout_rate=0.0
            )

        def recompute() -> None:
            batches = optimizer_state["recent_batches"].batches
            recompute_batch_norm(current_param_container, [partial(forward, batch) for batch in batches])

        if "averager" in optimizer_state:
            optimizer_state["averager"].swap_in(recompute)
        elif self.optimizer.settings.averages:
            optimizer_state["optimizer"].eval()  # once only: a second time changes nothing
            if "recent_batches" in optimizer_state and optimizer_state["recent_batches"].batches:
                recompute()
        return optimizer_state, current_param_container, model_state


@torch.no_grad()
def _norm(model: nn.Module) -> float:
    """Of all gradients together."""
    norms = torch._foreach_norm([p.grad for p in model.parameters() if p.grad is not None])
    return torch.linalg.vector_norm(torch.stack(norms)).item()


def _log(
    workload: Any, loss: Tensor, grad_norm: float, scheduler: LRScheduler, averager: Averager | None, global_step: int
) -> None:
    """Loss, gradient norm, learning rate and what the averager holds, at the steps where the official baseline logs."""
    if workload.metrics_logger is not None:
        metrics = {"loss": loss.item(), "grad_norm": grad_norm, "learning_rate": scheduler.get_last_lr()[0]}
        if averager is not None:
            steps = averager.snapshot_steps
            metrics |= {"averaging/snapshots": len(steps), "averaging/last_snapshot": max(steps, default=0)}
            metrics["averaging/ready"] = float(averager.ready)  # an evaluation would see the average
        workload.metrics_logger.append_scalar_metrics(metrics, global_step)
    logging.info("%d) loss = %0.3f, grad_norm = %0.3f", global_step, loss.item(), grad_norm)
