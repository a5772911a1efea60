"""Schedule-Free AdamW with warmup, evaluated at the average that it keeps itself."""

from ...recipe.jax import Recipe, schedule_free_adamw, warmup_constant

recipe = Recipe(optimizer=schedule_free_adamw, schedule=warmup_constant)

init_optimizer_state = recipe.init_optimizer_state
update_params = recipe.update_params
prepare_for_eval = recipe.prepare_for_eval
data_selection = recipe.data_selection
get_batch_size = recipe.get_batch_size
check_hyperparameters = recipe.check_hyperparameters
