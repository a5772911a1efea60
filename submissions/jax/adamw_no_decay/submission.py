"""AdamW at a constant learning rate after warmup: the baseline without decay."""

from ...recipe.jax import Recipe, adamw, warmup_constant

recipe = Recipe(optimizer=adamw, schedule=warmup_constant)

init_optimizer_state = recipe.init_optimizer_state
update_params = recipe.update_params
prepare_for_eval = recipe.prepare_for_eval
data_selection = recipe.data_selection
get_batch_size = recipe.get_batch_size
check_hyperparameters = recipe.check_hyperparameters
