"""SOAP with one point for every workload, evaluated at the mean of the latest snapshots (LAWA)."""

from ...recipe.pytorch import Recipe, lawa, soap, warmup_cosine
from ...recipe.self_tuning import AVERAGING, SOAP

recipe = Recipe(optimizer=soap, schedule=warmup_cosine, averaging=lawa, point=SOAP | AVERAGING)

init_optimizer_state = recipe.init_optimizer_state
update_params = recipe.update_params
prepare_for_eval = recipe.prepare_for_eval
data_selection = recipe.data_selection
get_batch_size = recipe.get_batch_size
check_hyperparameters = recipe.check_hyperparameters
