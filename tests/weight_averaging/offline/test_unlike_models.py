"""`merge` of models that are not quite alike: types, rows of a vocabulary, tied heads. Each rule is told."""

import json

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from safetensors.torch import load_file, save_file

from tests.support.forms import command
from weight_averaging import offline
from weight_averaging.averages import SnapshotError
from weight_averaging.offline.reading.unlike import Models

TYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def merged(capsys, folder, *arguments, out="out.safetensors") -> str:
    return command(capsys, "merge", *arguments, f"--out={folder / out}")


@settings(max_examples=25, deadline=None)
@given(
    types=st.lists(st.sampled_from(TYPES), min_size=2, max_size=4),
    rows=st.lists(st.integers(2, 6), min_size=4, max_size=4),
    vocabulary=st.sampled_from(["smallest", "largest"]),
    tied=st.lists(st.booleans(), min_size=4, max_size=4),
    seed=st.integers(0, 99),
)
def test_agrees_with_the_rules_in_float64(tmp_path_factory, types, rows, vocabulary, tied, seed):
    folder = tmp_path_factory.mktemp("merge")
    generator = torch.Generator().manual_seed(seed)
    weights = [0.5 / (len(types) - 1)] * (len(types) - 1) + [0.5]
    paths, states = [], []
    for index, dtype in enumerate(types):
        shapes = {"embed.weight": (rows[index], 3), "lm_head.weight": (rows[index], 3), "norm.weight": (3,)}
        if tied[index]:
            del shapes["lm_head.weight"]
        state = {name: torch.randn(*shape, generator=generator).to(dtype) for name, shape in shapes.items()}
        paths.append(folder / f"{index}.safetensors")
        save_file(state, paths[-1])
        states.append({name: tensor.double().numpy() for name, tensor in state.items()})
        if not all(tied[: len(types)]):
            states[-1].setdefault("lm_head.weight", states[-1]["embed.weight"])
    count = (min if vocabulary == "smallest" else max)(rows[: len(types)])
    fits = [i for i in range(len(types)) if rows[i] == count and (not tied[i] or all(tied[: len(types)]))]
    if not fits:
        with pytest.raises(SnapshotError, match="no one of the models has both"):
            Models(paths, weights=weights, vocabulary=vocabulary)
        return
    models = Models(paths, weights=weights, vocabulary=vocabulary)
    assert models.paths[len(types)] == paths[fits[-1]]
    average = offline.Weighted(weights=tuple(models.weights))
    plan = offline.Plan([(average, len(types))], models.steps)
    (result,) = plan.run(models.stream(plan.needed))
    widest = types[0]
    for dtype in types[1:]:
        widest = torch.promote_types(widest, dtype)
    assert result.state.keys() == states[0].keys()
    for name, tensor in result.state.items():
        assert tensor.dtype == widest
        for row in range(len(tensor)):
            having = [index for index, state in enumerate(states) if row < len(state[name])]
            total = sum(weights[index] for index in having)
            expected = sum(weights[index] / total * states[index][name][row] for index in having)
            bits = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}[widest]
            np.testing.assert_allclose(tensor[row].double().numpy(), expected, atol=3 * bits)


def test_types_are_told_and_the_widest_is_written(tmp_path, capsys):
    for name, dtype in (("a", torch.bfloat16), ("b", torch.float32), ("c", torch.float16)):
        torch.save({"w": torch.full((2,), 1.0, dtype=dtype), "v": torch.ones(2, dtype=dtype)}, tmp_path / f"{name}.pt")
    paths = [tmp_path / f"{name}.pt" for name in "abc"]
    said = merged(capsys, tmp_path, *paths, out="out.pt")
    assert "w and 1 others are of types bfloat16 and float16 and float32: averaged and written as float32" in said
    assert torch.load(tmp_path / "out.pt")["w"].dtype == torch.float32
    said = merged(capsys, tmp_path, tmp_path / "a.pt", tmp_path / "a.pt")
    assert "is named twice" in said


def test_damage_in_a_model_of_another_type_is_seen(tmp_path, capsys):
    for name, dtype in (("a", torch.bfloat16), ("b", torch.float32)):
        torch.save({"w": torch.full((999,), 1.5, dtype=dtype)}, tmp_path / f"{name}.pt")
    contents = bytearray((tmp_path / "a.pt").read_bytes())
    place = contents.find(torch.full((9,), 1.5, dtype=torch.bfloat16).view(torch.uint8).numpy().tobytes())
    contents[place + 100] ^= 1
    (tmp_path / "a.pt").write_bytes(contents)
    said = merged(capsys, tmp_path, tmp_path / "a.pt", tmp_path / "b.pt")
    assert "a.pt is damaged: w is not as its checksum in the file says" in said
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        ({"w": torch.ones(2)}, {"w": torch.ones(2, dtype=torch.int64)}, "w is "),
        ({"w": torch.ones(2)}, {"w": torch.ones(2).to(torch.float8_e4m3fn)}, "w is "),
        ({"w": torch.ones(2)}, {"w": torch.ones(2), "lm_head.weight": torch.ones(3, 2)}, "does not fit"),
        ({"w": torch.ones(2, 3)}, {"w": torch.ones(3, 3)}, "w is "),  # no vocabulary
        ({"emb.w": torch.ones(2, 3)}, {"emb.w": torch.ones(2, 4)}, "emb.w is "),
        ({"emb.w": torch.ones(2, 3), "b": torch.ones(2)}, {"emb.w": torch.ones(3, 3), "b": torch.ones(4)}, "does not"),
        ({"emb.w": torch.ones(2, 3)}, {"emb.w": torch.ones(3, 3)}, "of other vocabularies; if their first rows are of"),
    ],
)
def test_what_differs_otherwise_is_refused_in_one_line(tmp_path, capsys, first, second, says):
    save_file(first, tmp_path / "a.safetensors")
    save_file(second, tmp_path / "b.safetensors")
    flags = [] if "vocabularies" in says else ["--vocabulary=largest"]
    said = merged(capsys, tmp_path, tmp_path / "a.safetensors", tmp_path / "b.safetensors", *flags)
    assert said.startswith("error: ")
    assert says in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out.safetensors").exists()


def test_rows_that_no_weight_counts_for_are_refused(tmp_path, capsys):
    for name, rows in (("a", 3), ("b", 2), ("c", 3)):
        save_file({"emb.weight": torch.ones(rows, 2)}, tmp_path / f"{name}.safetensors")
    weights = ",".join(f"{tmp_path / name}.safetensors={w}" for name, w in (("a", 1), ("b", 1), ("c", -1)))
    said = merged(capsys, tmp_path, f"--weights={weights}", "--vocabulary=largest")
    assert "the weights of the models with rows 2 to 2 sum to 0" in said


# transformers


def llama(folder, rows: int, tied: bool, dtype: torch.dtype, seed: int):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1,
        vocab_size=rows, tie_word_embeddings=tied, dtype=str(dtype).removeprefix("torch."),
    )  # fmt: skip
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(config).to(dtype)
    model.save_pretrained(folder)
    return transformers, model


def test_a_tied_model_of_fewer_words_and_16_bits_with_an_untied_one(tmp_path, capsys):
    transformers, one = llama(tmp_path / "one", 32, False, torch.float32, 1)
    _, two = llama(tmp_path / "two", 30, True, torch.bfloat16, 2)
    assert "lm_head.weight" not in load_file(tmp_path / "two/model.safetensors")
    said = merged(capsys, tmp_path, tmp_path / "one", tmp_path / "two", out="both")
    assert "two 30: of other vocabularies" in said
    said = merged(capsys, tmp_path, tmp_path / "one", tmp_path / "two", "--vocabulary=largest", out="both")
    assert f"1: {tmp_path / 'two'}, weight 0.5" in said
    assert "two has no lm_head.weight: its model.embed_tokens.weight is its head too" in said
    assert "bfloat16 and float32: averaged and written as float32" in said
    assert "30 and 32 rows; rows from 30 on are the mean of the models that have them" in said
    assert f"what is not weights (names, configuration, ...) is that of {tmp_path / 'one'}" in said
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "both")
    assert loaded.dtype == torch.float32
    first, second = one.state_dict(), two.float().state_dict()
    for name, tensor in loaded.state_dict().items():
        expected = first[name].clone()
        rows = len(second[name])
        expected[:rows] = (first[name][:rows] + second[name]) / 2
        torch.testing.assert_close(tensor, expected)


def test_16_bits_last_do_not_round_the_result_again(tmp_path, capsys):
    """The folder's configuration is of the last model, and would have it loaded in its type."""
    transformers, _ = llama(tmp_path / "one", 30, False, torch.float32, 1)
    llama(tmp_path / "two", 30, False, torch.bfloat16, 2)
    merged(capsys, tmp_path, tmp_path / "one", tmp_path / "two", out="both")
    config = json.loads((tmp_path / "both/config.json").read_text())
    assert {config[key] for key in ("dtype", "torch_dtype") if key in config} == {"float32"}
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "both").dtype == torch.float32


def tokenizer(folder, tokens, added=(), as_list=False) -> None:
    vocabulary = [[token, 0.0] for token in tokens] if as_list else {token: i for i, token in enumerate(tokens)}
    more = [{"id": number, "content": token} for number, token in added]
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": more}))


@pytest.mark.parametrize("as_list", [False, True])
def test_tokens_at_other_places_are_told_or_refused(tmp_path, capsys, as_list):
    words = [f"w{number}" for number in range(200)]
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        save_file({"emb.weight": torch.ones(200, 2)}, tmp_path / name / "model.safetensors", {"format": "pt"})
        (tmp_path / name / "config.json").write_text("{}")
        tokenizer(tmp_path / name, words, as_list=as_list)
    paths = [tmp_path / "one", tmp_path / "two"]
    assert "unlike" not in merged(capsys, tmp_path, *paths, out="same")
    tokenizer(tmp_path / "one", words, [(7, "<|im_start|>")], as_list)
    said = merged(capsys, tmp_path, *paths, out="renamed")
    assert "have 1 of 200 tokens unlike, as 7, '<|im_start|>' and 'w7': their rows are averaged all the same" in said
    tokenizer(tmp_path / "one", words[::-1], as_list=as_list)
    said = merged(capsys, tmp_path, *paths, out="other")
    assert said.startswith("error: ")
    assert "have 200 of 200 tokens unlike, as 0, 'w199' and 'w0': rows of their embeddings are of other tokens" in said
    (tmp_path / "one/tokenizer.json").write_text("[")
    assert "tokenizer.json is damaged: it is no JSON object" in merged(capsys, tmp_path, *paths, out="damaged")
    (tmp_path / "one/tokenizer.json").write_text('{"model": {"vocab": [1, []]}, "added_tokens": [3, {"id": "x"}]}')
    assert "mean of 2 models" in merged(capsys, tmp_path, *paths, out="odd")
