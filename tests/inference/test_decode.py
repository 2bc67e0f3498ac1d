"""Our batched decoder writes what transformers' own `generate` writes, token for token."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from tests.model.small import small_model
from wsiseg.errors import ModelError
from wsiseg.inference.decode import Sampling, decode, encode_prefix
from wsiseg.inference.engine import PathChatSegmenter
from wsiseg.inference.shots import Shot
from wsiseg.model.pathchat import PathChatSegR1
from wsiseg.training.rl.policy import read_answers, read_prompt


def generate_alone(
    model: PathChatSegR1, tokens: torch.Tensor, query: str, shots: torch.Tensor | None = None
) -> list[list[int]]:
    """The peer: transformers' generate on whole prompts, trimmed at the first `<SEG>` or end."""
    tokenizer, config = model.tokenizer, model.config
    shown = [] if shots is None else list(shots)
    prompt = tokenizer.prompt(query, 0.5, shots=len(shown))
    pads = [tokenizer.image_pad] * config.image_token_count
    row = [token for text in prompt.shared for token in [*text, *pads]] + prompt.after
    ids = torch.tensor([row] * len(tokens))
    images = tuple(image for tile in tokens for image in (*shown, tile))
    out = model.vlm.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=images)},
        image_grid_thw=torch.tensor([[1, config.pathology.grid, config.pathology.grid]] * len(images)),
        mm_token_type_ids=(ids == tokenizer.image_pad).int(),
        max_new_tokens=config.max_new_tokens,
        do_sample=False,
        eos_token_id=[tokenizer.seg, tokenizer.end],
        pad_token_id=tokenizer.end,
        suppress_tokens=tokenizer.suppressed,
    )
    answers = []
    for row in out[:, ids.shape[1] :].tolist():
        stops = [i for i, token in enumerate(row) if token in (tokenizer.seg, tokenizer.end)]
        answers.append(row[: stops[0] + 1] if stops else row)
    return answers


def random_tokens(model: PathChatSegR1, count: int, seed: int) -> torch.Tensor:
    """Image tokens (count, n, H) that differ as much as can be, so that answers do."""
    shape = (count, model.config.image_token_count, model.config.text.hidden_size)
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(4))
def test_decoding_equals_generate(seed: int) -> None:
    model = small_model(seed=seed, stops=1.5)
    tokens = random_tokens(model, 9, seed)
    ours = decode(model, tokens, encode_prefix(model, model.tokenizer.prompt("outline the glands", 0.5)))
    assert len({len(c.ids) for c in ours}) > 2, "answers of one length test little; choose another seed"
    with torch.inference_mode():
        assert [c.ids for c in ours] == generate_alone(model, tokens, "outline the glands")
    for completion in ours:
        assert (completion.seg_state is not None) == (completion.ids[-1] == model.tokenizer.seg)


def test_who_listens_hears_every_token() -> None:
    model = small_model(seed=2, stops=1.5)
    tokens, prompt = random_tokens(model, 5, 2), model.tokenizer.prompt("outline the glands", 0.5)
    heard: list[list[list[int]]] = []
    answers = decode(model, tokens, encode_prefix(model, prompt), hear=lambda ids: heard.append([*map(list, ids)]))
    final = [answer.ids for answer in answers]
    assert heard[-1] == final
    for step, so_far in enumerate(heard, start=1):
        assert so_far == [ids[:step] for ids in final]


def test_a_model_that_is_heard_answers_the_same() -> None:
    model = small_model(seed=2, stops=1.5)
    tiles = np.random.default_rng(0).integers(0, 255, (3, 128, 128, 3), np.uint8)
    plain = PathChatSegmenter(model, name="small", fingerprint="1")
    told: list[list[str]] = []
    quiet = plain.segment_tiles(tiles, "outline the glands", 0.5)
    heard = plain.heard_by(told.append).segment_tiles(tiles, "outline the glands", 0.5)
    assert told.pop() == []  # nothing is being written any more
    assert [a.reasoning for a in heard] == [a.reasoning for a in quiet] == told[-1]
    assert len(told) > 2
    # Those who listen are still heard after examples were shown, but not of the model's own try at these.
    shown = np.zeros((128, 128), bool)
    shown[20:90, 30:80] = True
    told.clear()
    after = plain.heard_by(told.append).with_shots([Shot(tiles[0], shown, 0.5)])
    assert [a.reasoning for a in after.segment_tiles(tiles, "outline the glands", 0.5)] == told[-2]
    assert all(len(step) == len(tiles) for step in told[:-1])


def test_the_probability_of_seg_is_that_of_the_step_that_wrote_it_or_the_largest() -> None:
    model = small_model(seed=1, stops=1.5)
    tokens, prompt = random_tokens(model, 7, 1), model.tokenizer.prompt("outline the glands", 0.5)
    answers = decode(model, tokens, encode_prefix(model, prompt))
    assert len({answer.seg_state is None for answer in answers}) == 2, "choose another seed: endings are all alike"
    for answer, image in zip(answers, tokens, strict=True):
        with torch.inference_mode():
            states = read_answers(model, read_prompt(model, prompt, image), torch.tensor([answer.ids]))[0]
            chances = model.vlm.lm_head(states[:-1]).float()
            chances[:, model.tokenizer.suppressed] = -torch.inf
            of_seg = chances.softmax(-1)[:, model.tokenizer.seg]  # (T,)
        expected = of_seg.max() if answer.seg_state is None else of_seg[len(answer.ids) - 1]
        assert answer.seg_probability == pytest.approx(float(expected), abs=1e-5)


def test_a_model_that_computes_nan_is_an_error_and_not_silent() -> None:
    # Trap: the arg-max of NaN is the first token, at every step, so that no tile would ever get a mask.
    model = small_model()
    with torch.no_grad():
        model.vlm.model.language_model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    tokens, prefix = random_tokens(model, 2, 0), encode_prefix(model, model.tokenizer.prompt("glands", 0.5))
    for sampling in (None, Sampling(2, torch.Generator())):
        with pytest.raises(ModelError, match="the model small computes NaN in the place of words"):
            decode(model, tokens, prefix, sampling)


@pytest.mark.parametrize("shots", [1, 3])
def test_decoding_after_examples_equals_generate(shots: int) -> None:
    model = small_model(seed=1, stops=1.5)
    tokens, shown = random_tokens(model, 7, 1), random_tokens(model, shots, 9)
    prefix = encode_prefix(model, model.tokenizer.prompt("outline the glands", 0.5, shots=shots), shown)
    ours = [c.ids for c in decode(model, tokens, prefix)]
    assert len({len(ids) for ids in ours}) > 1, "answers of one length test little; choose another seed"
    with torch.inference_mode():
        assert ours == generate_alone(model, tokens, "outline the glands", shown)
    without = decode(model, tokens, encode_prefix(model, model.tokenizer.prompt("outline the glands", 0.5)))
    assert ours != [c.ids for c in without], "the examples have no influence"


def test_transformers_sees_the_image_tokens_that_we_see() -> None:
    model = small_model()
    pixels = torch.rand(3, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    grid = torch.tensor([[1, model.config.pathology.grid, model.config.pathology.grid]] * 3)
    with torch.inference_mode():
        theirs = model.vlm.get_image_features(model.pathology_pixels(pixels), grid).pooler_output
        assert torch.equal(torch.stack(list(theirs)), model.image_tokens(pixels))


@pytest.mark.parametrize("state", ["self", "predictor"])
def test_the_seg_state_is_the_one_of_a_teacher_forced_pass(state: str) -> None:
    model = small_model(seed=1, stops=2.5)
    model.config = dataclasses.replace(model.config, seg_state=state)
    tokens = random_tokens(model, 5, 3)
    prompt = model.tokenizer.prompt("nuclei", None)
    with torch.inference_mode():
        completions = decode(model, tokens, encode_prefix(model, prompt))
        emitted = [i for i, c in enumerate(completions) if c.seg_state is not None]
        assert emitted, "this seed no longer emits <SEG>; choose another"
        for i in emitted:
            head, tail = (
                model.embed(torch.tensor([prompt.before])),
                model.embed(torch.tensor([prompt.after + completions[i].ids])),
            )
            states = model.vlm.model.language_model(
                inputs_embeds=torch.cat([head, tokens[i : i + 1], tail], 1),
                position_ids=model.positions(len(prompt.before), tail.shape[1])[:, None],
            ).last_hidden_state[0]
            expected = states[-1] if state == "self" else states[-2]
            torch.testing.assert_close(completions[i].seg_state, expected, atol=2e-5, rtol=1e-4)
        # Also where <SEG> is the last token that there is room for.
        last = max(emitted, key=lambda i: len(completions[i].ids))
        model.config = dataclasses.replace(model.config, max_new_tokens=len(completions[last].ids))
        again = decode(model, tokens, encode_prefix(model, prompt))[last]
        assert again.ids == completions[last].ids
        torch.testing.assert_close(again.seg_state, completions[last].seg_state, atol=2e-5, rtol=1e-4)


def test_a_sample_does_not_depend_on_its_neighbours() -> None:
    model = small_model(seed=2, stops=1.5)
    tokens = random_tokens(model, 6, 5)
    prefix = encode_prefix(model, model.tokenizer.prompt("tumour", 1.0))
    together = [c.ids for c in decode(model, tokens, prefix)]
    assert together == [decode(model, tokens[i : i + 1], prefix)[0].ids for i in range(6)]
