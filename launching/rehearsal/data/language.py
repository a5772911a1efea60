"""Made-up words, spoken as tones, translated by turning them round: librispeech, wmt, fineweb_edu_10B."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from launching.rehearsal.data import tfds_files

SPEECH_PIECES = 1024  # of the vocabulary that the speech models have outputs for
# A translation model's output without a piece ends the evaluation, and with it the run: OutOfRangeError.
TRANSLATION_PIECES = 32_000
# In PyTorch the training loader drops an incomplete batch: less than a whole official one would be an endless loop.
UTTERANCES, UTTERANCES_OF_OTHERS = 270, 8
SPEECH_SPLITS = ("train-clean-100", "train-clean-360", "train-other-500", "dev-clean", "dev-other", "test-clean")
SAMPLES_A_SECOND = 16_000
SEQUENCE, SEQUENCES = 1024, {"train": 256, "val": 64}
GPT2_TOKENS = 50_257


def words(count: int = 2000) -> list[str]:
    rng = np.random.RandomState(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    frequency = np.arange(len(letters), 0, -1.0)
    frequency /= frequency.sum()
    return ["".join(rng.choice(letters, rng.randint(2, 9), p=frequency)) for _ in range(count)]


def sentences(count: int, seed: int, shortest: int = 5, longest: int = 20) -> list[str]:
    rng = np.random.RandomState(seed)
    known = words()
    return [" ".join(rng.choice(known, rng.randint(shortest, longest))) for _ in range(count)]


def sentencepiece_model(path: Path, pieces: int) -> None:
    """A model with just so many pieces: those that the text has not are filled up.

    The harness calls its models by names without `.model`.
    """
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    text = path.with_name(f"{path.name}.txt")
    text.write_text("\n".join(sentences(4000, 1)))
    prefix = path.with_name(f"{path.name}.made")
    sentencepiece.SentencePieceTrainer.Train(
        f"--input={text} --vocab_size={pieces} --character_coverage=1.0 --model_prefix={prefix} "
        "--model_type=unigram --hard_vocab_limit=false --minloglevel=2"
    )
    made = prefix.with_name(f"{prefix.name}.model")
    model = sentencepiece_model_pb2.ModelProto.FromString(made.read_bytes())
    for number in range(len(model.pieces), pieces):
        model.pieces.add(piece=f"▁filler{number}", score=-100.0)
    model.trainer_spec.vocab_size = pieces
    path.write_bytes(model.SerializeToString())
    for left in (text, made, prefix.with_name(f"{prefix.name}.vocab")):
        left.unlink()


def wmt(folder: Path) -> None:
    sentencepiece_model(folder / "wmt_sentencepiece_model", TRANSLATION_PIECES)

    def pairs(count: int, seed: int) -> Iterator[dict[str, str]]:
        for sentence in sentences(count, seed):
            yield {"de": sentence, "en": " ".join(reversed(sentence.split()))}

    for year, train in (("17", 3000), ("14", 64)):
        splits = {"train": pairs(train, 1), "validation": pairs(64, 2), "test": pairs(64, 3)}
        tfds_files.write(folder, f"wmt{year}_translate", "1.0.0", splits, config="de-en")


def librispeech(folder: Path) -> None:
    """Half a second to a second of a tone in noise, as integers, and one or two words as tokens."""
    import tensorflow_text

    sentencepiece_model(folder / "spm_model.vocab", SPEECH_PIECES)
    model = (folder / "spm_model.vocab").read_bytes()
    tokenizer = tensorflow_text.SentencepieceTokenizer(model=model, add_eos=True)
    rng = np.random.RandomState(0)
    for split in SPEECH_SPLITS:
        (folder / split).mkdir()
        count = UTTERANCES if split == SPEECH_SPLITS[0] else UTTERANCES_OF_OTHERS
        rows = [",id"]
        for number, text in enumerate(sentences(count, count, 1, 3)):
            name = f"{number}-0-{number:04}"
            samples = np.arange(rng.randint(SAMPLES_A_SECOND // 2, SAMPLES_A_SECOND))
            tone = 8000 * np.sin(samples * rng.uniform(0.02, 0.4)) + 500 * rng.randn(len(samples))
            np.save(folder / split / f"{name}_audio.npy", tone.astype(np.int64))
            np.save(folder / split / f"{name}_targets.npy", tokenizer.tokenize(text).numpy().astype(np.int32))
            rows.append(f"{number},{name}")
        (folder / f"{split}.csv").write_text("\n".join(rows) + "\n")


def fineweb(folder: Path) -> None:
    """Documents of tokens as snapshots of tf.data, from which the pipeline cuts sequences."""
    import tensorflow as tf

    for seed, (split, count) in enumerate(SEQUENCES.items()):
        rng = np.random.RandomState(seed)
        tokens = rng.zipf(1.3, (count + 1) * (SEQUENCE + 1)) % GPT2_TOKENS
        ends = np.cumsum(rng.randint(50, 900, len(tokens) // 50))
        documents = [part for part in np.split(tokens, ends[ends < len(tokens)]) if len(part)]
        dataset = tf.data.Dataset.from_generator(
            lambda documents=documents: ({"input_ids": document} for document in documents),
            output_signature={"input_ids": tf.TensorSpec((None,), tf.int64)},
        )
        dataset.save(str(folder / split))
