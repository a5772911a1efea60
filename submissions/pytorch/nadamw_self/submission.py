"""NadamW with warmup and cosine decay, one point for every workload: the baseline under self-tuning."""

from ...recipe.pytorch import Recipe, nadamw, warmup_cosine
from ...recipe.self_tuning import NADAMW

recipe = Recipe(optimizer=nadamw, schedule=warmup_cosine, point=NADAMW)

init_optimizer_state = recipe.init_optimizer_state
update_params = recipe.update_params
prepare_for_eval = recipe.prepare_for_eval
data_selection = recipe.data_selection
get_batch_size = recipe.get_batch_size
check_hyperparameters = recipe.check_hyperparameters
