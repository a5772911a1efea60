"""The decoder of the language-model workloads."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miniperf.workloads.finewebedu_lm.model import Decoder, rotate, rotations, token_losses
from miniperf.workloads.finewebedu_lm.sizes import PAPER, ROTARY_BASE, Sizes

SMALL = Sizes(vocabulary=40, context=24, width=32, layers=3, heads=4, hidden=48)


def small(seed: int = 0) -> Decoder:
    torch.manual_seed(seed)
    return Decoder(SMALL)


def test_the_papers_model_has_123_551_232_parameters():
    with torch.device("meta"):
        model = Decoder(PAPER)
    assert sum(p.numel() for p in model.parameters()) == 123_551_232
    assert sum(t.numel() for t in model.state_dict().values()) == 123_551_232  # no buffers, the embedding once
    assert not any(name.endswith("bias") for name, _ in model.named_parameters())


def test_matrices_start_at_02_and_those_that_write_into_the_residual_stream_smaller():
    torch.manual_seed(0)
    model = Decoder(Sizes(vocabulary=500, context=8, width=256, layers=5, heads=4, hidden=384))
    smaller = 0
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert (parameter == 1).all()
            continue
        writes = name.endswith(("attention.projection.weight", "mlp.projection.weight"))
        smaller += writes
        expected = 0.02 / math.sqrt(2 * 5) if writes else 0.02
        assert parameter.std().item() == pytest.approx(expected, rel=0.02), name
        assert abs(parameter.mean().item()) < 0.03 * expected, name
    assert smaller == 2 * 5


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, SMALL.context - 1))
def test_a_later_token_changes_no_earlier_logit(seed, place):
    model = small(seed % 5)
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(SMALL.vocabulary, (2, SMALL.context), generator=generator)
    changed = tokens.clone()
    changed[:, place] = (changed[:, place] + 1) % SMALL.vocabulary
    with torch.no_grad():
        one, two = model(tokens), model(changed)
    torch.testing.assert_close(one[:, :place], two[:, :place], rtol=0, atol=1e-6)
    assert ((one - two)[:, place:].abs().amax(dim=(0, 2)) > 1e-6).all()  # and reaches every one from there on


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 300), st.sampled_from([2, 8, 64]), st.integers(0, 2**31))
def test_rotary_positions_turn_complex_numbers(length, head_width, seed):
    x = torch.randn(2, 3, length, head_width, generator=torch.Generator().manual_seed(seed))
    half = head_width // 2
    turned = rotate(x, rotations(length, head_width))
    for place in {0, length // 2, length - 1}:
        for i in range(half):
            angle = place * ROTARY_BASE ** (-2 * i / head_width)
            expected = (x[..., place, i].double() + 1j * x[..., place, half + i].double()) * complex(
                math.cos(angle), math.sin(angle)
            )
            got = turned[..., place, i].double() + 1j * turned[..., place, half + i].double()
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_a_score_depends_on_the_distance_alone():
    q, k = torch.randn(2, 1, 16, generator=torch.Generator().manual_seed(1)).unbind()
    turns = rotations(50, 16)
    scores = rotate(q.expand(50, 16), turns) @ rotate(k.expand(50, 16), turns).T
    for distance in (0, 3, 20):
        diagonal = scores.diagonal(-distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-4)
    assert scores[:, 0].std() > 0.1  # the distance does matter


def test_input_and_output_embedding_are_one_parameter():
    model = small()
    assert [name for name in model.state_dict() if model.state_dict()[name].shape[0] == SMALL.vocabulary] == [
        "embedding.weight"
    ]
    before = model(torch.tensor([[1, 2, 3]]))
    with torch.no_grad():
        model.embedding.weight[7] += 1  # no token of the input
    after = model(torch.tensor([[1, 2, 3]]))
    assert (before != after)[..., 7].all()
    assert torch.equal(before[..., :7], after[..., :7])
    copy = Decoder(SMALL)
    copy.load_state_dict(model.state_dict())
    assert torch.equal(copy(torch.tensor([[1, 2, 3]])), after)


def test_the_loss_is_the_cross_entropy_of_the_next_token():
    logits, targets = small()(torch.arange(20).view(2, 10)), torch.arange(1, 21).view(2, 10)
    losses = token_losses(logits, targets)
    assert losses.shape == targets.shape
    expected = -logits.double().softmax(dim=2).log().gather(2, targets.unsqueeze(2)).squeeze(2)
    torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=1e-5)
    assert losses.mean().item() == pytest.approx(math.log(SMALL.vocabulary), abs=0.1)  # at the start, nearly uniform
    smoothed = token_losses(logits, targets, 0.1)
    uniform = -logits.log_softmax(dim=2).mean(dim=2)
    torch.testing.assert_close(smoothed, 0.9 * losses + 0.1 * uniform)


def test_one_sequence_is_learnt_by_heart():
    model = small()
    sequence = torch.randint(SMALL.vocabulary, (1, SMALL.context + 1), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95))
    for _ in range(60):
        loss = token_losses(model(sequence[:, :-1]), sequence[:, 1:]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


def test_the_compiled_model_is_the_model():
    model = small()
    tokens = torch.randint(SMALL.vocabulary, (2, SMALL.context), generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(tokens), model(tokens))


def test_a_sequence_longer_than_the_context_and_odd_heads_are_refused_in_one_line():
    with pytest.raises(ValueError, match=r"^a sequence of 25 tokens exceeds the model's context of 24$"):
        small()(torch.zeros(1, 25, dtype=torch.long))
    with pytest.raises(ValueError, match=r"^width 30 must be a multiple of 2 x 6 heads: rotary positions$"):
        Sizes(vocabulary=10, context=8, width=30, layers=1, heads=6, hidden=8)
