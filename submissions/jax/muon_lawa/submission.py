"""Muon and NadamW with cosine decay, evaluated at the mean of the latest snapshots."""

from ...recipe.jax import Recipe, lawa, muon, warmup_cosine

recipe = Recipe(optimizer=muon, schedule=warmup_cosine, averaging=lawa)

init_optimizer_state = recipe.init_optimizer_state
update_params = recipe.update_params
prepare_for_eval = recipe.prepare_for_eval
data_selection = recipe.data_selection
get_batch_size = recipe.get_batch_size
check_hyperparameters = recipe.check_hyperparameters
