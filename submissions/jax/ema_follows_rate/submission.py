"""NadamW with warmup and cosine decay, evaluated at an EMA whose share of the updates so far follows the rate."""

from ...recipe.jax import Recipe, follows_rate, nadamw, warmup_cosine

recipe = Recipe(optimizer=nadamw, schedule=warmup_cosine, averaging=follows_rate)

init_optimizer_state = recipe.init_optimizer_state
update_params = recipe.update_params
prepare_for_eval = recipe.prepare_for_eval
data_selection = recipe.data_selection
get_batch_size = recipe.get_batch_size
check_hyperparameters = recipe.check_hyperparameters
