"""The trainers of sentence-transformers and setfit themselves: `make test-trainers` installs the first."""

import logging

import numpy as np
import pytest
import torch

pytest.importorskip("sentence_transformers", minversion="6")
import datasets
import tokenizers
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.modules import Dense
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from transformers import TrainerCallback

from weight_averaging.torch import LAWA
from weight_averaging.trainers.transformers import WeightAveraging

pytestmark = pytest.mark.trainers

WORDS = [f"w{number}" for number in range(20)]


def tiny(seed: int = 0) -> SentenceTransformer:
    words = tokenizers.models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="w0")
    made = tokenizers.Tokenizer(words)
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    torch.manual_seed(seed)
    parts = [StaticEmbedding(made, embedding_dim=8), Dense(8, 4)]
    return SentenceTransformer(modules=parts, device="cpu")


def texts(count: int, seed: int = 0) -> list[str]:
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, 3)) for _ in range(count)]


def flat(model: torch.nn.Module) -> np.ndarray:
    return torch.cat([parameter.detach().double().reshape(-1) for parameter in model.parameters()]).numpy()


class Evaluator(EmbeddingSimilarityEvaluator):
    """Notes the weights that it sees."""

    def __init__(self):
        super().__init__(texts(6, 1), texts(6, 2), [0.1, 0.9, 0.4, 0.3, 0.8, 0.2], name="dev", write_csv=False)
        self.seen = []

    def __call__(self, model, *args, **kwargs):
        self.seen.append(flat(model))
        return super().__call__(model, *args, **kwargs)


class Recorder(TrainerCallback):
    def __init__(self):
        self.steps, self.what = [], lambda: self.trainer.model

    def on_optimizer_step(self, *args, **kwargs):
        self.steps.append(flat(self.what()))


def trainer_of(folder, loss, seed: int = 0, evaluate: str = "average", whole: bool = False):
    given = {
        "max_steps": 8, "per_device_train_batch_size": 2, "learning_rate": 0.02, "eval_strategy": "steps",
        "eval_steps": 4, "save_steps": 4, "logging_strategy": "no", "report_to": [], "disable_tqdm": True,
        "use_cpu": True, "dataloader_pin_memory": False,
    }  # fmt: skip
    rows = {"a": texts(16, 3), "b": texts(16, 4)}
    if loss is softmax:
        rows["label"] = [number % 3 for number in range(16)]
    model, recorder = tiny(seed), Recorder()
    trainer = SentenceTransformerTrainer(
        model=model, loss=loss(model), evaluator=Evaluator(), callbacks=[recorder],
        args=SentenceTransformerTrainingArguments(output_dir=str(folder), **given),
        train_dataset=datasets.Dataset.from_dict(rows), eval_dataset=datasets.Dataset.from_dict(rows),
    )  # fmt: skip
    recorder.trainer = trainer
    averaging = WeightAveraging(
        lambda model: LAWA(trainer.loss if whole else model, interval=1, window=3), evaluate=evaluate
    ).attach(trainer)
    return trainer, recorder, averaging


def softmax(model):
    """A loss with a classifier of its own."""
    return losses.SoftmaxLoss(model, 4, 3)


def test_losses_and_evaluators_see_the_mean_and_a_run_resumes(tmp_path):
    trainer, recorder, averaging = trainer_of(tmp_path, losses.MultipleNegativesRankingLoss)
    trainer.train()
    means = [np.mean(recorder.steps[step - 3 : step], axis=0) for step in (4, 8)]
    np.testing.assert_allclose(trainer.evaluator.seen, means, atol=1e-6)
    np.testing.assert_array_equal(flat(trainer.model), recorder.steps[-1])
    again, _, _ = trainer_of(tmp_path, losses.MultipleNegativesRankingLoss, seed=5)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    np.testing.assert_array_equal(flat(again.model), recorder.steps[-1])
    averaging.save_pretrained(tmp_path / "average")
    loaded = SentenceTransformer(str(tmp_path / "average"), device="cpu")
    np.testing.assert_array_equal(flat(loaded), trainer.evaluator.seen[-1])


def test_parts_of_the_loss_of_two_passes_are_not_mixed(tmp_path):
    found = []
    for evaluate in ("average", "both"):
        trainer, _, _ = trainer_of(tmp_path, losses.GlobalOrthogonalRegularizationLoss, evaluate=evaluate)
        trainer.train()
        found.append([entry for entry in trainer.state.log_history if "eval_loss" in entry])
    for alone, both in zip(*found, strict=True):
        assert both["eval_gor_mean"] == alone["eval_gor_mean"]
        total = both["eval_raw_gor_mean"] + both["eval_raw_gor_second_moment"]
        assert both["eval_raw_loss"] == pytest.approx(total, rel=1e-3)


@pytest.mark.parametrize("whole", [False, True])
def test_a_loss_with_weights_of_its_own_is_told_or_averaged_with_the_model(tmp_path, caplog, whole):
    trainer, recorder, averaging = trainer_of(tmp_path, softmax, whole=whole)
    recorder.what = lambda: trainer.loss
    with caplog.at_level(logging.WARNING, logger="weight_averaging"):
        trainer.train()
    assert ("trains loss.classifier.bias, loss.classifier.weight, no part" in caplog.text) is not whole
    with averaging.averaged():
        expected = np.mean(recorder.steps[-3:], axis=0)
        own = sum(parameter.numel() for parameter in trainer.model.parameters())
        if not whole:
            expected[own:] = recorder.steps[-1][own:]
        np.testing.assert_allclose(flat(trainer.loss), expected, atol=1e-6)


def test_setfit_averages_its_body_and_fits_its_head_inside_the_block(tmp_path):
    setfit = pytest.importorskip("setfit", exc_type=ImportError)
    linear = pytest.importorskip("sklearn.linear_model")
    model = setfit.SetFitModel(model_body=tiny(), model_head=linear.LogisticRegression())
    rows = datasets.Dataset.from_dict({"text": texts(8), "label": [0, 1] * 4})
    arguments = setfit.TrainingArguments(
        output_dir=str(tmp_path), max_steps=6, batch_size=4, body_learning_rate=0.02, report_to="none",
        eval_strategy="steps", eval_steps=3, save_strategy="no", show_progress_bar=False, num_epochs=1,
    )  # fmt: skip
    recorder = Recorder()
    trainer = setfit.Trainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows, callbacks=[recorder])
    recorder.trainer = trainer.st_trainer
    with pytest.raises(TypeError, match=r"not a setfit\.trainer\.Trainer"):
        WeightAveraging(lambda model: LAWA(model, interval=1, window=3)).attach(trainer)
    averaging = WeightAveraging(lambda model: LAWA(model, interval=1, window=3)).attach(trainer.st_trainer)
    seen, real = [], trainer.st_trainer.prediction_step

    def noted(*args, **kwargs):
        seen.append(flat(model.model_body))
        return real(*args, **kwargs)

    trainer.st_trainer.prediction_step = noted
    trainer.train()
    means = [np.mean(recorder.steps[step - 3 : step], axis=0) for step in (3, 6)]
    np.testing.assert_allclose(seen[0], means[0], atol=1e-6)
    np.testing.assert_allclose(seen[-1], means[1], atol=1e-6)
    np.testing.assert_array_equal(flat(model.model_body), recorder.steps[-1])
    with averaging.averaged() as ready:
        assert ready
        trainer.train_classifier(list(rows["text"]), list(rows["label"]))
        np.testing.assert_allclose(flat(model.model_body), means[1], atol=1e-6)
    np.testing.assert_array_equal(flat(model.model_body), recorder.steps[-1])
