"""Distributed Shampoo with warmup and cosine decay, evaluated at the mean of the latest snapshots (LAWA)."""

from ...recipe.pytorch import Recipe, lawa, shampoo, warmup_cosine

recipe = Recipe(optimizer=shampoo, schedule=warmup_cosine, averaging=lawa)

init_optimizer_state = recipe.init_optimizer_state
update_params = recipe.update_params
prepare_for_eval = recipe.prepare_for_eval
data_selection = recipe.data_selection
get_batch_size = recipe.get_batch_size
check_hyperparameters = recipe.check_hyperparameters
