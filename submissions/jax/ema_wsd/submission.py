"""NadamW with warmup, a constant rate and a short decay, evaluated at an exponential average of snapshots."""

from ...recipe.jax import Recipe, ema, nadamw, warmup_stable_decay

recipe = Recipe(optimizer=nadamw, schedule=warmup_stable_decay, averaging=ema)

init_optimizer_state = recipe.init_optimizer_state
update_params = recipe.update_params
prepare_for_eval = recipe.prepare_for_eval
data_selection = recipe.data_selection
get_batch_size = recipe.get_batch_size
check_hyperparameters = recipe.check_hyperparameters
