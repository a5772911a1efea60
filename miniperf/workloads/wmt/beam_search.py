"""Beam search over token sequences, many sentences at once."""

from typing import Protocol

import torch
from torch import Tensor


class Decoder(Protocol):
    """Scores the next token of every hypothesis. It remembers the tokens of the earlier steps."""

    def step(self, tokens: Tensor) -> Tensor:
        """tokens: [sentences, beams], the latest ones. Returns the log-probabilities [sentences, beams, vocabulary]
        of the next."""
        ...

    def select(self, sentences: Tensor, beams: Tensor) -> None:
        """Go on with these sentences [n] and, in each, with these hypotheses [n, beams]; a beam may come twice."""
        ...


def length_penalty(length: int, alpha: float) -> float:
    """What a log-probability is divided by (Wu et al. 2016, arXiv 1609.08144, equation 14)."""
    return ((5.0 + length) / 6.0) ** alpha


def beam_search(
    decoder: Decoder,
    num_sentences: int,
    max_length: int,
    beam_size: int = 4,
    alpha: float = 0.6,
    start_id: int = 0,
    end_id: int = 1,
) -> Tensor:
    """The best hypothesis found for each sentence, by log-probability over length penalty.

    A hypothesis is finished when the end is among the `beam_size` best continuations. A sentence is done when
    `beam_size` hypotheses are finished, or when none of the others can still win. It then leaves the batch, so that
    what is found for it does not depend on the sentences beside it. With a beam of 1 this is greedy decoding.

    Args:
        decoder: fresh; scores what follows the start token.
        max_length: in tokens, the end included. A sentence with no finished hypothesis by then gets its best open
            one.

    Returns:
        [num_sentences, max_length], filled with `start_id` behind the end.
    """
    output = torch.full((num_sentences, max_length), start_id)
    best = torch.full((num_sentences,), float("-inf"))
    finished = torch.zeros(num_sentences, dtype=torch.long)
    open_ids = torch.arange(num_sentences)  # the sentences still searched: rows of what follows
    scores = torch.full((num_sentences, beam_size), float("-inf"))
    scores[:, 0] = 0.0  # at first all hypotheses are the same one
    sequences = torch.full((num_sentences, beam_size, 1), start_id)
    for length in range(1, max_length + 1):
        log_probabilities = scores.unsqueeze(2) + decoder.step(sequences[:, :, -1])
        vocabulary = log_probabilities.shape[2]
        # Twice as many as needed: at most `beam_size` of them end, one for each hypothesis.
        top, index = log_probabilities.flatten(1).topk(min(2 * beam_size, beam_size * vocabulary))
        parent, token = index // vocabulary, index % vocabulary
        ends = token == end_id

        ending = (ends & top.isfinite())[:, :beam_size]
        value, which = torch.where(ending, top[:, :beam_size] / length_penalty(length, alpha), float("-inf")).max(1)
        better = value > best[open_ids]
        rows = better.nonzero().squeeze(1)
        output[open_ids[rows], : length - 1] = sequences[rows, parent[rows, which[rows]], 1:]
        output[open_ids[rows], length - 1] = end_id
        best[open_ids[rows]] = value[rows]
        finished[open_ids] += ending.sum(1)

        scores, kept = top.masked_fill(ends, float("-inf")).topk(beam_size)
        parent, token = parent.gather(1, kept), token.gather(1, kept)
        sequences = torch.cat([sequences.gather(1, parent.unsqueeze(2).expand(-1, -1, length)), token.unsqueeze(2)], 2)

        # Log-probabilities only fall, and the penalty is largest at full length.
        hope = scores[:, 0] / length_penalty(max_length, alpha)
        going = ((finished[open_ids] < beam_size) & (best[open_ids] < hope)).nonzero().squeeze(1)
        if length == max_length or len(going) == 0:
            break
        decoder.select(going, parent[going])
        open_ids, scores, sequences = open_ids[going], scores[going], sequences[going]
    unfinished = (finished[open_ids] == 0).nonzero().squeeze(1)
    output[open_ids[unfinished], :length] = sequences[unfinished, 0, 1:]
    return output
