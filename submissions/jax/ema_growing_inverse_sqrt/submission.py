"""NadamW with warmup and a rate that falls with the root of the updates, evaluated at an EMA over a share of these."""

from ...recipe.jax import Recipe, growing, nadamw, warmup_inverse_sqrt

recipe = Recipe(optimizer=nadamw, schedule=warmup_inverse_sqrt, averaging=growing)

init_optimizer_state = recipe.init_optimizer_state
update_params = recipe.update_params
prepare_for_eval = recipe.prepare_for_eval
data_selection = recipe.data_selection
get_batch_size = recipe.get_batch_size
check_hyperparameters = recipe.check_hyperparameters
