from pathlib import Path

import torch


def maybe_restore_checkpoint(
    framework, optimizer_state, model_params, model_state, train_state, eval_results, global_step, preemption_count,
    checkpoint_dir,
):  # fmt: skip
    found = sorted(Path(checkpoint_dir).glob("checkpoint_*"), key=lambda path: int(path.name.split("_")[1]))
    if not found:
        return optimizer_state, model_params, model_state, train_state, eval_results, global_step, preemption_count
    saved = torch.load(found[-1], weights_only=True)
    model_params.load_state_dict(saved["model_params"])
    for key, value in saved["optimizer_state"].items():
        optimizer_state[key].load_state_dict(value)
    step, count = saved["global_step"], saved["preemption_count"] + 1
    return optimizer_state, model_params, model_state, train_state, list(saved["eval_results"]), step, count


def save_checkpoint(
    framework, optimizer_state, model_params, model_state, train_state, eval_results, global_step, preemption_count,
    checkpoint_dir, save_intermediate_checkpoints,
):  # fmt: skip
    saved = {
        "model_params": model_params.state_dict(),
        "optimizer_state": {key: value.state_dict() for key, value in optimizer_state.items()},
        "eval_results": eval_results, "global_step": global_step, "preemption_count": preemption_count,
    }  # fmt: skip
    torch.save(saved, Path(checkpoint_dir) / f"checkpoint_{global_step}")
