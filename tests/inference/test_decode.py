"""Our batched decoder writes what transformers' own `generate` writes, token for token."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.model.small import small_model
from wsiseg.inference.decode import decode, encode_prefix
from wsiseg.model.pathchat import PathChatSegR1


def generate_alone(model: PathChatSegR1, pixels: torch.Tensor, query: str) -> list[list[int]]:
    """The peer: transformers' generate on whole prompts, trimmed at the first `<SEG>` or end."""
    tokenizer, config = model.tokenizer, model.config
    prompt = tokenizer.prompt(query, 0.5)
    ids = torch.tensor([[*prompt.before, *[tokenizer.image_pad] * config.image_token_count, *prompt.after]])
    ids = ids.repeat(len(pixels), 1)
    grid = torch.tensor([[1, config.pathology.grid, config.pathology.grid]] * len(pixels))
    out = model.vlm.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=model.pathology_pixels(pixels),
        image_grid_thw=grid,
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


@pytest.mark.parametrize("seed", range(4))
def test_decoding_equals_generate(seed: int) -> None:
    model = small_model(seed=seed, boost_stops=0.6 + 0.5 * seed)
    pixels = torch.rand(7, 3, 128, 128, generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        tokens = model.image_tokens(pixels)
    ours = decode(model, tokens, encode_prefix(model, model.tokenizer.prompt("outline the glands", 0.5)))
    assert [c.ids for c in ours] == generate_alone(model, pixels, "outline the glands")
    for completion in ours:
        assert (completion.seg_state is not None) == (completion.ids[-1] == model.tokenizer.seg)


@pytest.mark.parametrize("state", ["self", "predictor"])
def test_the_seg_state_is_the_one_of_a_teacher_forced_pass(state: str) -> None:
    model = small_model(seed=1, boost_stops=1.5)
    model.config = dataclasses.replace(model.config, seg_state=state)
    pixels = torch.rand(5, 3, 128, 128, generator=torch.Generator().manual_seed(3))
    prompt = model.tokenizer.prompt("nuclei", None)
    with torch.inference_mode():
        tokens = model.image_tokens(pixels)
        completions = decode(model, tokens, encode_prefix(model, prompt))
        emitted = [i for i, c in enumerate(completions) if c.seg_state is not None]
        assert emitted, "this seed no longer emits <SEG>; choose another"
        for i in emitted:
            head, tail = model.embed(torch.tensor([prompt.before])), model.embed(
                torch.tensor([prompt.after + completions[i].ids])
            )
            states = model.vlm.model.language_model(
                inputs_embeds=torch.cat([head, tokens[i : i + 1], tail], 1),
                position_ids=model.positions(len(prompt.before), tail.shape[1])[:, None],
            ).last_hidden_state[0]
            expected = states[-1] if state == "self" else states[-2]
            torch.testing.assert_close(completions[i].seg_state, expected, atol=2e-5, rtol=1e-4)


def test_a_sample_does_not_depend_on_its_neighbours() -> None:
    model = small_model(seed=2, boost_stops=1.0)
    pixels = torch.rand(6, 3, 128, 128, generator=torch.Generator().manual_seed(5))
    prefix = encode_prefix(model, model.tokenizer.prompt("tumour", 1.0))
    with torch.inference_mode():
        tokens = model.image_tokens(pixels)
    together = [c.ids for c in decode(model, tokens, prefix)]
    assert together == [decode(model, tokens[i : i + 1], prefix)[0].ids for i in range(6)]
