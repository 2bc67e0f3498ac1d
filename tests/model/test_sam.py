"""The mask decoder batched over images gives what upstream gives one image at a time."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from functools import partial

import pytest
import torch

from wsiseg.model import sam
from wsiseg.model.config import ImageEncoderConfig, paper
from wsiseg.model.sam import ImageEncoder, MaskHead, _Attention, _modeling


@pytest.fixture(scope="module")
def head() -> MaskHead:
    torch.manual_seed(0)
    config = ImageEncoderConfig(stem="patch", image_size=256, prompt_dim=64, num_multimask_outputs=3)
    return MaskHead(config).eval()


def test_batch_equals_upstream_one_by_one(head: MaskHead) -> None:
    embedding, prompts = torch.randn(5, 64, 16, 16), torch.randn(5, 2, 64)
    with torch.inference_mode():
        batched = head(embedding, [], prompts)
        for i in range(5):
            alone, _ = head.mask_decoder(
                image_embeddings=embedding[i : i + 1],
                image_pe=head.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=prompts[i : i + 1],
                dense_prompt_embeddings=head.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(
                    1, -1, 16, 16
                ),
                multimask_output=False,
            )
            torch.testing.assert_close(batched[i], alone[0, 0], atol=2e-6, rtol=1e-4)


def test_upstream_itself_cannot_pair_images_with_prompts(head: MaskHead) -> None:
    # The reason for our own call; if this ever passes, use upstream's.
    with pytest.raises(RuntimeError), torch.inference_mode():
        head.mask_decoder.predict_masks(
            torch.randn(3, 64, 16, 16),
            head.prompt_encoder.get_dense_pe(),
            torch.randn(3, 1, 64),
            torch.zeros(3, 64, 16, 16),
        )


def test_the_patch_stem_is_sams_image_encoder() -> None:
    # Same keys and shapes as medsam_vit_b.pth's image_encoder, so that its weights will load.
    with torch.device("meta"):
        ours = ImageEncoder(paper().image).vit.state_dict()
    assert sum(value.numel() for value in ours.values()) == 89_670_912
    assert ours["pos_embed"].shape == (1, 64, 64, 768)
    assert ours["blocks.2.attn.rel_pos_h"].shape == (127, 64)
    assert ours["blocks.0.attn.rel_pos_h"].shape == (27, 64)


def test_the_tiny_encoder_takes_tiles_of_any_multiple_of_128() -> None:
    encoder = ImageEncoder(ImageEncoderConfig(embed_dim=32, depth=1, num_heads=2, prompt_dim=32)).eval()
    with torch.inference_mode():
        for side in (128, 256, 384):
            embedding, (finer4, finer2) = encoder(torch.rand(1, 3, side, side))
            assert embedding.shape == (1, 32, side // 8, side // 8)
            assert finer4.shape == (1, 8, side // 4, side // 4)
            assert finer2.shape == (1, 4, side // 2, side // 2)


def test_modeling_loads_without_torchvision_and_leaves_the_package_alone() -> None:
    code = (
        "import sys; sys.modules['torchvision'] = None\n"
        "import wsiseg.model.sam as sam\n"
        "assert sam._modeling.MaskDecoder and 'segment_anything' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert _modeling.ImageEncoderViT.__module__.startswith("wsiseg._segment_anything_modeling")


@pytest.mark.parametrize("flash", [False, True])
@pytest.mark.parametrize(("window", "size"), [(0, 64), (3, 64), (14, 224)])
def test_fused_attention_is_upstreams(window: int, size: int, flash: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sam, "is_flash_better", lambda q: flash)
    torch.manual_seed(0)
    config = dataclasses.replace(
        paper().image, image_size=size, embed_dim=32, depth=1, num_heads=2, window_size=window, global_attn_indexes=()
    )
    block = ImageEncoder(config).vit.blocks[0].eval()
    with torch.no_grad():
        for table in (block.attn.rel_pos_h, block.attn.rel_pos_w):
            table.normal_()
    x = torch.randn(2, size // 16, size // 16, 32)
    with torch.inference_mode():
        ours = block(x)
        assert type(block.attn) is _Attention
        block.attn.forward = partial(_Attention.__base__.forward, block.attn)
        torch.testing.assert_close(ours, block(x))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_medsams_encoder_in_16_bits_is_as_near_to_32_as_with_a_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    encoder = ImageEncoder(dataclasses.replace(paper().image, depth=3)).eval().to("cuda")
    with torch.no_grad():
        for block in encoder.vit.blocks:
            for table in (block.attn.rel_pos_h, block.attn.rel_pos_w):
                table.normal_(std=0.3)
    pixels = torch.randn(2, 3, 1024, 1024, device="cuda")
    with torch.inference_mode():
        exact, _ = encoder(pixels)
        encoder.bfloat16()
        flash, _ = encoder(pixels.bfloat16())
        monkeypatch.setattr(sam, "is_flash_better", lambda q: False)
        biased, _ = encoder(pixels.bfloat16())
    off, off_biased = ((found.float() - exact).norm() / exact.norm() for found in (flash, biased))
    assert off < 0.05
    assert off < 1.2 * off_biased
