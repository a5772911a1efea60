"""Trainers of TRL themselves: `make test-trainers` installs it. Weights are random, texts of made-up words."""

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("trl")
pytest.importorskip("peft")
import datasets
import peft
import tokenizers
import trl
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    TrainerCallback,
)

from weight_averaging.torch import LAWA
from weight_averaging.trainers.transformers import WeightAveraging

pytestmark = pytest.mark.trainers

WORDS = ["<pad>", "<eos>", *(f"w{number}" for number in range(20))]


def tokenizer():
    words = tokenizers.models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<pad>")
    made = tokenizers.Tokenizer(words)
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<eos>")


def rows(kind: str, count: int = 16):
    random = np.random.default_rng(0)

    def text() -> str:
        return " ".join(random.choice(WORDS[2:], 4))

    names = {"sft": ["text"], "preference": ["prompt", "chosen", "rejected"], "prompt": ["prompt"]}[kind]
    return datasets.Dataset.from_list([{name: f"{text()} " for name in names} for _ in range(count)])


def tiny(kind=LlamaForCausalLM, seed: int = 0, **settings) -> nn.Module:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    return kind(LlamaConfig(vocab_size=len(WORDS), max_position_embeddings=64, **sizes, **special, **settings))


def flat(model: nn.Module) -> np.ndarray:
    return torch.cat([parameter.detach().double().reshape(-1) for parameter in model.parameters()]).numpy()


class Recorder(TrainerCallback):
    """Notes the raw weights after each step."""

    def __init__(self):
        self.steps = []

    def on_optimizer_step(self, args, state, control, model, **_):
        self.steps.append(flat(model))

    def mean(self, step: int) -> np.ndarray:
        return np.mean(self.steps[step - 3 : step], axis=0)


def trainer_of(kind: str, folder, data: str, model=None, evaluate: str = "average", **settings):
    """A trainer of TRL, its recorder, the average, and the list of (step, weights) that its evaluations see."""
    arguments = {name: settings.pop(name) for name in ("ref_model", "peft_config", "reward_funcs") if name in settings}
    given = {
        "max_steps": 8, "per_device_train_batch_size": 2, "per_device_eval_batch_size": 4, "learning_rate": 0.02,
        "eval_strategy": "steps", "eval_steps": 4, "save_steps": 4, "logging_strategy": "no", "report_to": [],
        "disable_tqdm": True, "use_cpu": True, "bf16": False, "dataloader_pin_memory": False, **settings,
    }  # fmt: skip
    recorder, seen = Recorder(), []
    trainer = getattr(trl, f"{kind}Trainer")(
        model=model or tiny(),
        args=getattr(trl, f"{kind}Config")(output_dir=str(folder), **given),
        train_dataset=rows(data), eval_dataset=rows(data, 8),
        processing_class=tokenizer(), callbacks=[recorder], **arguments,
    )  # fmt: skip
    real = trainer.prediction_step

    def noted(*args, **kwargs):
        seen.append((trainer.state.global_step, flat(trainer.model)))
        return real(*args, **kwargs)

    trainer.prediction_step = noted
    averaging = WeightAveraging(lambda model: LAWA(model, interval=1, window=3), evaluate=evaluate).attach(trainer)
    return trainer, recorder, averaging, seen


def logged(trainer) -> list[dict]:
    return [entry for entry in trainer.state.log_history if "eval_loss" in entry]


def lora():
    return peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)


@pytest.mark.parametrize("adapter", [False, True])
def test_supervised_fine_tuning_is_evaluated_at_the_mean_and_resumes(tmp_path, adapter):
    given = {"gradient_accumulation_steps": 2, "max_length": 16, **({"peft_config": lora()} if adapter else {})}
    trainer, recorder, averaging, seen = trainer_of("SFT", tmp_path, "sft", **given)
    trainer.train()
    assert [step for step, _ in seen] == [4, 4, 8, 8]
    for step, weights in seen:
        np.testing.assert_allclose(weights, recorder.mean(step), atol=1e-6)
    np.testing.assert_array_equal(flat(trainer.model), recorder.steps[-1])
    again, _, restored, _ = trainer_of("SFT", tmp_path, "sft", tiny(seed=0 if adapter else 5), **given)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    np.testing.assert_array_equal(flat(again.model), recorder.steps[-1])
    for one in (averaging, restored):
        with one.averaged():
            np.testing.assert_array_equal(flat(one._model), seen[-1][1])
    averaging.save_pretrained(tmp_path / "average")
    loaded = tiny()
    if adapter:
        loaded = peft.PeftModel.from_pretrained(loaded, tmp_path / "average")
    else:
        loaded = LlamaForCausalLM.from_pretrained(tmp_path / "average")
    np.testing.assert_array_equal(flat(loaded), seen[-1][1])


def test_numbers_of_two_passes_are_not_mixed(tmp_path):
    found = {}
    for evaluate in ("average", "both"):
        model = tiny(LlamaForSequenceClassification, num_labels=1)
        trainer, _, _, _ = trainer_of("Reward", tmp_path / evaluate, "preference", model, evaluate)
        trainer.train()
        found[evaluate] = logged(trainer)
    for alone, both in zip(found["average"], found["both"], strict=True):
        for name in ("loss", "min_reward", "mean_reward", "max_reward", "margin"):
            assert both[f"eval_{name}"] == alone[f"eval_{name}"] != both[f"eval_raw_{name}"]


@pytest.mark.parametrize("reference", ["given", "base", "adapter", "synced"])
def test_a_reference_is_the_same_whether_the_average_is_in_the_model_or_not(tmp_path, reference):
    """Its rewards and log-probabilities are those of a trainer whose model has nothing but the mean."""

    def made(folder):
        model, given = tiny(), {"max_length": 24}
        if reference == "base":
            given["peft_config"] = lora()
        elif reference == "adapter":  # TRL keeps a copy of it beside it
            model = peft.get_peft_model(model, lora())
        else:
            given["ref_model"] = tiny(seed=3)
        if reference == "synced":
            given.update(sync_ref_model=True, ref_model_sync_steps=3, ref_model_mixup_alpha=0.5)
        return trainer_of("DPO", folder, "preference", model, **given)

    trainer, recorder, averaging, seen = made(tmp_path / "averaged")
    initial = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.train()
    for step, weights in seen:
        np.testing.assert_allclose(weights, recorder.mean(step), atol=1e-6)
    np.testing.assert_array_equal(flat(trainer.model), recorder.steps[-1])
    other, _, _, _ = made(tmp_path / "other")
    if reference == "synced":
        mixed, by_hand = flat(tiny(seed=3)), recorder.steps
        for step in (3, 6):
            mixed = (mixed + by_hand[step - 1]) / 2
        np.testing.assert_allclose(flat(trainer.ref_model), mixed, atol=1e-6)
        other.ref_model.load_state_dict(trainer.ref_model.state_dict())
    other.model.load_state_dict(initial)
    with averaging.averaged(), torch.no_grad():
        for mine, theirs in zip(other.model.parameters(), trainer.model.parameters(), strict=True):
            mine.copy_(theirs)
    expected = other.evaluate()
    for name in ("eval_loss", "eval_rewards/chosen", "eval_rewards/margins", "eval_logps/rejected"):
        assert logged(trainer)[-1][name] == pytest.approx(expected[name], abs=1e-5)


def reward(completions, **_):
    return [float(len(set(completion.split()))) for completion in completions]


class Engine:
    """Generates, in place of vLLM's, by a copy of the weights."""

    def __init__(self, trainer):
        self.trainer, self.weights, self.used = trainer, None, []

    def sync_weights(self):
        self.weights = flat(self.trainer.model)

    def generate(self, prompts, **_):
        self.used.append((self.trainer.model.training, self.trainer.state.global_step, self.weights))
        rewarded = [[2, 2 + number % 2, 1] for number in range(len(prompts))]  # unlike, so that there is a gradient
        return prompts, rewarded, [[[-1.0]] * 3 for _ in prompts], None


@pytest.mark.parametrize("engine", [False, True])
def test_rollouts_are_by_the_raw_weights_in_training_and_by_the_average_in_evaluations(tmp_path, engine):
    trainer, recorder, _, _ = trainer_of(
        "GRPO", tmp_path, "prompt", reward_funcs=reward, num_generations=2, max_completion_length=3, beta=0.0
    )
    rollouts, initial = [], flat(trainer.model)
    if engine:
        trainer.use_vllm, trainer._last_loaded_step, trainer.vllm_generation = True, -1, Engine(trainer)
        rollouts = trainer.vllm_generation.used
    else:
        real = trainer._generate_single_turn

        def noted(*args, **kwargs):
            rollouts.append((trainer.model.training, trainer.state.global_step, flat(trainer.model)))
            return real(*args, **kwargs)

        trainer._generate_single_turn = noted
    trainer.train()
    assert {step for training, step, _ in rollouts if training} == set(range(8))
    assert {step for training, step, _ in rollouts if not training} == {4, 8}
    for training, step, weights in rollouts:
        expected = [initial, *recorder.steps][step] if training else recorder.mean(step)
        np.testing.assert_allclose(weights, expected, atol=1e-6)
    assert not np.allclose(recorder.mean(4), recorder.steps[3], atol=1e-4)
    np.testing.assert_array_equal(flat(trainer.model), recorder.steps[-1])
