"""SOAP with warmup and cosine decay, evaluated at an EMA over a constant share of the updates so far."""

from ...recipe.pytorch import Recipe, growing, soap, warmup_cosine

recipe = Recipe(optimizer=soap, schedule=warmup_cosine, averaging=growing)

init_optimizer_state = recipe.init_optimizer_state
update_params = recipe.update_params
prepare_for_eval = recipe.prepare_for_eval
data_selection = recipe.data_selection
get_batch_size = recipe.get_batch_size
check_hyperparameters = recipe.check_hyperparameters
