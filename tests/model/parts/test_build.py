"""Published weights become a model: each part computes what its publisher's own code computes, or is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLForConditionalGeneration

from tests.model.published import ROWS, small_sam, timm_forward, timm_state, write_dinov2, write_qwen
from wsiseg.errors import ModelError, OutputError
from wsiseg.model import load_model
from wsiseg.model.build import build_folder, write_shards
from wsiseg.model.config import PathChatConfig, load_config, paper
from wsiseg.model.dinov2 import Dinov2
from wsiseg.model.folder import load_folder, save_model
from wsiseg.model.parts.pathology import fold_positions, from_transformers, pathology_config, read_pathology
from wsiseg.model.parts.segment_anything import read_sam, sam_config
from wsiseg.model.pathchat import PathChatSegR1, tiles_to_tensor
from wsiseg.model.published import published
from wsiseg.model.sam import ImageEncoder, MaskHead
from wsiseg.model.vision import PathologyTower


@dataclass
class Built:
    parts: Path
    folder: Path
    model: PathChatSegR1
    dinov2: torch.nn.Module
    sam: torch.nn.Module


@pytest.fixture(scope="module", params=[True, False], ids=["tied like 3B", "untied like 7B"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    parts = tmp_path_factory.mktemp("parts")
    write_qwen(parts / "qwen", tied=request.param)
    dinov2 = write_dinov2(parts / "dinov2", registers=4, swiglu=True)
    sam = small_sam()
    torch.save(sam.state_dict(), parts / "medsam_vit_b.pth")
    build(parts, parts / "out")
    return Built(parts, parts / "out", load_folder(parts / "out"), dinov2, sam)


def build(parts: Path, out: Path, sam_kind: str = "MedSAM") -> PathChatConfig:
    return build_folder(
        out,
        language=str(parts / "qwen"),
        pathology=str(parts / "dinov2"),
        sam=parts / "medsam_vit_b.pth",
        sam_kind=sam_kind,
    )


@pytest.fixture(scope="module")
def qwen(built: Built) -> Qwen2_5_VLForConditionalGeneration:
    """What transformers itself reads from the same folder."""
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(built.parts / "qwen", dtype=torch.float32).eval()


def test_the_table_keeps_its_rows_and_only_seg_is_new(built: Built, qwen: Qwen2_5_VLForConditionalGeneration) -> None:
    # Trap: resize_token_embeddings(len(tokenizer)) would cut off the spare rows.
    seg = built.model.tokenizer.seg
    assert seg == 262
    for ours, theirs in (
        (built.model.vlm.get_input_embeddings().weight, qwen.get_input_embeddings().weight),
        (built.model.vlm.lm_head.weight, qwen.lm_head.weight),
    ):
        assert ours.shape == theirs.shape == (ROWS, 64)
        assert (ours != theirs).any(dim=1).nonzero().flatten().tolist() == [seg]
        torch.testing.assert_close(ours[seg], theirs[:seg].mean(dim=0), atol=1e-4, rtol=1e-2)


def test_the_language_model_answers_as_the_publishers_code_with_3d_positions(
    built: Built, qwen: Qwen2_5_VLForConditionalGeneration
) -> None:
    # Trap: without mm_token_type_ids transformers counts in one dimension, silently. Trap: another norm epsilon.
    model = built.model
    torch.manual_seed(0)
    tiles = torch.rand(1, 3, 64, 64)
    stock, qwen.model.visual = qwen.model.visual, model.vlm.model.visual
    prompt = model.tokenizer.prompt("glands", 0.5)
    pad = model.tokenizer.image_pad
    ids = torch.tensor([[*prompt.before, *[pad] * model.config.image_token_count, *prompt.after]])
    side = model.config.pathology.grid
    with torch.inference_mode():
        theirs = {
            name: qwen(
                input_ids=ids,
                pixel_values=model.pathology_pixels(tiles),
                image_grid_thw=torch.tensor([[1, side, side]]),
                output_hidden_states=True,
                **kinds,
            ).hidden_states[-1]
            for name, kinds in (("3-D", {"mm_token_type_ids": (ids == pad).int()}), ("1-D", {}))
        }
        embedded = model.embed(ids)
        embedded[ids == pad] = model.image_tokens(tiles)[0]
        ours = model.vlm.model.language_model(
            inputs_embeds=embedded,
            position_ids=model.positions(len(prompt.before), len(prompt.after))[:, None],
            use_cache=False,
        ).last_hidden_state
    qwen.model.visual = stock
    torch.testing.assert_close(ours, theirs["3-D"], atol=1e-5, rtol=1e-4)
    assert (ours - theirs["1-D"]).abs().max() > 1e-2


def test_known_weights_without_a_preprocessor_have_their_publishers_normalisation(tmp_path: Path) -> None:
    # Midnight's code normalises by itself; the folder need not say how.
    write_dinov2(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    part = read_pathology(tmp_path, known=published("midnight"), source="kaiko-ai/midnight", licence="MIT")
    assert part.config.mean == part.config.std == (0.5, 0.5, 0.5)


def test_the_pathology_encoder_is_the_published_one_also_after_saving(built: Built, tmp_path: Path) -> None:
    # Trap: a replaced vision tower that from_pretrained reloads as a random stock tower.
    pixels = torch.rand(2, 3, 224, 224)
    save_model(built.model, tmp_path / "again")
    with torch.inference_mode():
        theirs = built.dinov2(pixel_values=pixels).last_hidden_state[:, 5:]  # class token, four registers
        for model in (built.model, load_folder(tmp_path / "again")):
            torch.testing.assert_close(model.vlm.model.visual.encoder(pixels), theirs, atol=1e-5, rtol=1e-4)
    assert built.model.config.pathology.mean == (0.5, 0.4, 0.3)


@pytest.mark.parametrize(("kind", "offset", "scale"), [("MedSAM", 0.0, 255.0), ("SAM", None, None)])
def test_medsam_reads_pixels_in_0_to_1_and_sam_normalised_ones(
    built: Built, tmp_path: Path, kind: str, offset: float | None, scale: float | None
) -> None:
    # Trap: a checkpoint fed with the other's pixels still draws masks.
    build(built.parts, tmp_path / "m", sam_kind=kind)
    model = load_folder(tmp_path / "m")
    # Trap: stretched to its own least and largest value, as MedSAM's script does with an image, a tile would not
    # agree with its neighbours.
    tiles = np.random.default_rng(0).integers(100, 151, (1, 256, 256, 3), np.uint8)
    upstream = built.sam
    with torch.inference_mode():
        seen = torch.from_numpy(tiles).permute(0, 3, 1, 2).float()
        pixels = seen / scale if scale else upstream.preprocess(seen)
        embedding, _ = model.image_encoder(model.image_pixels(tiles_to_tensor(tiles)))
        torch.testing.assert_close(embedding, upstream.image_encoder(pixels), atol=1e-5, rtol=1e-4)
    own = model.mask_head.state_dict()
    assert own.keys() == {key for key in upstream.state_dict() if not key.startswith("image_encoder")}
    assert all(torch.equal(value, upstream.state_dict()[key]) for key, value in own.items())


def test_half_precision_keeps_the_frequencies_of_positions(built: Built) -> None:
    model = load_folder(built.folder, dtype=torch.bfloat16)
    assert model.vlm.model.language_model.rotary_emb.inv_freq.dtype == torch.float32
    assert model.mask_head.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix.dtype == torch.float32
    tiles, states = torch.rand(2, 3, 64, 64), torch.randn(2, 64)
    with torch.inference_mode():
        half, full = model.masks(tiles, states.bfloat16()), built.model.masks(tiles, states)
        assert model.image_tokens(tiles).dtype == torch.bfloat16
    assert (half - full).abs().mean() < 0.05 * full.abs().mean()


def test_a_start_for_training_is_not_passed_off_as_a_model(built: Built) -> None:
    config = load_config(built.folder / "config.json")
    assert [part.licence for part in config.parts] == ["toy-research", "unknown: ask its publisher", "Apache-2.0"]
    card = (built.folder / "README.md").read_text()
    assert all(part.licence in card and part.sha256[:16] in card for part in config.parts)
    with pytest.raises(ModelError, match="start for training: its projector and Seg-Adapter and <SEG> token"):
        load_model(built.folder)
    with pytest.raises(ModelError, match=r"published weights \(qwen2_5_vl\), not a model of wsiseg"):
        load_model(built.parts / "qwen")


def test_an_existing_folder_is_left_alone(built: Built) -> None:
    with pytest.raises(OutputError, match="exists already"):
        build(built.parts, built.folder)


def test_a_full_disk_leaves_nothing_behind(built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Trap: what safetensors cannot write is no OSError of Python's; and half a folder is in the way of the next try.
    def full(state: dict[str, torch.Tensor], path: Path, **_: object) -> None:
        path.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OutputError, match=r"cannot write .*No space left on device"):
        build(built.parts, tmp_path / "models" / "m")
    assert not list((tmp_path / "models").iterdir())


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_shard(parts: Path, number: int, edit) -> None:  # type: ignore[no-untyped-def]
    path = parts / "qwen" / f"model-{number:05d}-of-00002.safetensors"
    state = load_file(path)
    edit(state)
    save_file(state, path)


def untie(parts: Path) -> None:
    """As peft does to Qwen2.5-VL 3B through `modules_to_save`; its older versions leave config.json as it was."""
    edit_json(parts / "qwen/config.json", tie_word_embeddings=True)
    edit_shard(parts, 1, lambda s: s.update({"lm_head.weight": torch.randn(ROWS, 64).bfloat16()}))


def edit_sam(parts: Path, edit) -> None:  # type: ignore[no-untyped-def]
    state = torch.load(parts / "medsam_vit_b.pth", weights_only=True)
    edit(state)
    torch.save(state, parts / "medsam_vit_b.pth")


NORM = "model.norm.weight"
INDEX, PIXELS = "model.safetensors.index.json", "preprocessor_config.json"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / "qwen/model-00002-of-00002.safetensors").unlink(), "lacks model-00002-of-00002.safetensors"),
        (lambda p: (p / "qwen/tokenizer.json").unlink(), "no tokenizer at .*tokenizer.json"),
        (lambda p: edit_json(p / "qwen/config.json", model_type="qwen3_vl"), "must be Qwen2.5-VL"),
        (lambda p: edit_json(p / "qwen/config.json", quantization_config={}), "quantised"),
        (lambda p: edit_json(p / "qwen/config.json", num_hidden_layers=3), r"language model .*missing: .*layers\.2"),
        (lambda p: edit_json(p / "qwen/config.json", intermediate_size=98), r"language model .*\(96, 64\), not \(98"),
        (lambda p: edit_shard(p, 1, lambda s: s.update(extra=torch.zeros(1))), "unexpected: vlm.extra"),
        (lambda p: edit_shard(p, 1, lambda s: s.update({k: v.char() for k, v in s.items()})), "wrong dtype: .*int8"),
        (lambda p: untie(p), "tie_word_embeddings.* but the weights hold two that differ"),
        (lambda p: edit_json(p / "qwen/config.json", vocab_size=262), "no spare row for <SEG>"),
        (lambda p: edit_json(p / "qwen/config.json", rope_scaling=None), r"qwen/config\.json is not understood"),
        (lambda p: edit_json(p / "qwen/config.json", vocab_size="300"), "vocab_size must be int, not '300'"),
        (lambda p: edit_json(p / "qwen/config.json", num_attention_heads=0), "num_attention_heads must be above 0"),
        (lambda p: edit_json(p / "qwen" / INDEX, weight_map=["a"]), rf"{INDEX} is not understood"),
        (lambda p: edit_json(p / "dinov2/config.json", num_attention_heads=None), r"dinov2/config\.json is not under"),
        (lambda p: edit_json(p / "dinov2/config.json", num_attention_heads=0), "0 heads do not divide the width of 32"),
        (lambda p: edit_json(p / "dinov2" / PIXELS, image_mean=0.5), rf"{PIXELS} is not understood"),
        (lambda p: edit_json(p / "dinov2" / PIXELS, image_std=[0.5]), rf"{PIXELS} is not understood"),
        (lambda p: torch.save({1: torch.zeros(1)}, p / "medsam_vit_b.pth"), r"MedSAM .*vit_b\.pth is not understood"),
        (lambda p: edit_json(p / "dinov2/config.json", model_type="vit"), "must be a DINOv2-type one"),
        (lambda p: edit_json(p / "dinov2/config.json", num_attention_heads=3), "3 heads do not divide the width"),
        (lambda p: (p / "dinov2/preprocessor_config.json").unlink(), "preprocessor_config.json is missing"),
        (lambda p: edit_sam(p, lambda s: s.pop("mask_decoder.iou_token.weight")), "MedSAM .*missing: .*iou_token"),
        (lambda p: edit_sam(p, lambda s: s.pop("image_encoder.pos_embed")), "not a SAM checkpoint"),
        (lambda p: (p / "medsam_vit_b.pth").write_bytes(b"<html>"), r"damaged, or no checkpoint .*weights$"),
        (lambda p: (p / "medsam_vit_b.pth").write_text("Repository not found"), "is not loaded: .*no checkpoint"),
        (lambda p: torch.save({"a": Path()}, p / "medsam_vit_b.pth"), "is not loaded: .*holds more than weights"),
    ],
)
def test_a_part_that_does_not_fit_is_refused_by_name(built: Built, tmp_path: Path, damage, message: str) -> None:  # type: ignore[no-untyped-def]
    for name in ("qwen", "dinov2"):
        shutil.copytree(built.parts / name, tmp_path / name)
    shutil.copy(built.parts / "medsam_vit_b.pth", tmp_path)
    damage(tmp_path)
    with pytest.raises(ModelError, match=message):
        build(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_names_of_one_tensor_are_stored_as_two(tmp_path: Path) -> None:
    # Trap: safetensors refuses what a pickle may hold.
    one = torch.rand(4)
    write_shards({"a": one, "b": one, "c": one[:2]}, tmp_path, "part")
    stored = load_file(tmp_path / "part.safetensors")
    assert all(torch.equal(stored[key], one[: len(stored[key])]) for key in "abc")


def test_a_built_folder_without_one_of_its_files_does_not_load(built: Built, tmp_path: Path) -> None:
    shutil.copytree(built.folder, tmp_path / "m")
    (tmp_path / "m/pathology.safetensors").unlink()
    with pytest.raises(ModelError, match=r"missing: vlm\.model\.visual\.encoder"):
        load_folder(tmp_path / "m")
    shutil.copy(tmp_path / "m/sam.safetensors", tmp_path / "m/sam-copy.safetensors")
    with pytest.raises(ModelError, match="is in another file"):
        load_folder(tmp_path / "m")


@pytest.mark.parametrize("wrap", [lambda s: {"model": s, "epoch": 3}, lambda s: {f"module.{k}": s[k] for k in s}])
def test_what_medsams_training_writes_is_read_too(tmp_path: Path, wrap) -> None:  # type: ignore[no-untyped-def]
    state = small_sam().state_dict()
    torch.save(state, tmp_path / "plain.pth")
    torch.save(wrap(state), tmp_path / "wrapped.pth")
    plain, wrapped = (read_sam(tmp_path / f"{n}.pth", kind="MedSAM") for n in ("plain", "wrapped"))
    assert plain.config == wrapped.config
    assert all(torch.equal(wrapped.tensors[key], value) for key, value in plain.tensors.items())


@pytest.mark.parametrize(
    ("registers", "positions", "swiglu"),
    [(0, 257, False), (4, 256, True), (8, 256, True), (4, 261, True)],
    ids=["UNI", "H-optimus", "UNI2-h", "Virchow2"],
)
def test_timms_layouts_compute_what_timm_computes(registers: int, positions: int, swiglu: bool) -> None:
    state = timm_state(registers=registers, positions=positions, swiglu=swiglu)
    encoder = loaded_encoder(state)
    pixels = torch.rand(2, 3, 224, 224)
    with torch.inference_mode():
        torch.testing.assert_close(encoder(pixels), timm_forward(state, pixels, 4), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("given", "width", "registers"), [("uni2-h", 1280, 4), ("uni", 1536, 8), ("virchow2", 1280, 0), ("virchow", 32, 0)]
)
def test_timm_weights_under_the_name_of_others_are_refused(
    tmp_path: Path, given: str, width: int, registers: int
) -> None:
    # Trap: heads and normalisation come from the name; of another's every key and shape may fit.
    shapes = {key: value.shape for key, value in timm_state(registers=registers, positions=256).items()}
    swapped = {32: width, 96: 3 * width}
    state = {key: torch.zeros([swapped.get(n, n) for n in shape]) for key, shape in shapes.items()}
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=rf"is not {given}: its width is {width} and it has {registers} register"):
        read_pathology(tmp_path, known=published(given), source="mine", licence="")


@pytest.mark.parametrize(("registers", "image_size"), [(0, 224), (0, 518), (4, 518)])
def test_positions_of_another_size_are_resampled_as_transformers_does(
    tmp_path: Path, registers: int, image_size: int
) -> None:
    theirs = write_dinov2(tmp_path / "d", registers=registers, image_size=image_size)
    encoder = loaded_encoder(from_transformers(load_file(tmp_path / "d/model.safetensors")))
    pixels = torch.rand(1, 3, 224, 224)
    with torch.inference_mode():
        expected = theirs(pixel_values=pixels).last_hidden_state[:, 1 + registers :]
        torch.testing.assert_close(encoder(pixels), expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("millions", "sizes"),
    [
        (303, {"width": 1024, "patch_size": 16, "grid": 14, "depth": 24, "num_heads": 16, "mlp_width": 4096}),
        (681, {"width": 1536, "depth": 24, "num_heads": 24, "mlp_width": 4096, "swiglu": True, "registers": 8}),
        (631, {"width": 1280, "depth": 32, "num_heads": 16, "mlp_width": 3416, "swiglu": True, "registers": 4}),
        (1135, {"width": 1536, "depth": 40, "num_heads": 24, "mlp_width": 4096, "swiglu": True, "registers": 4}),
        (86, {"width": 768, "depth": 12, "num_heads": 12, "mlp_width": 2048, "swiglu": True, "registers": 4}),
    ],
    ids=["UNI", "UNI2-h", "Virchow2", "H-optimus-0", "H0-mini"],
)
def test_encoders_have_the_published_number_of_parameters(millions: int, sizes: dict[str, int]) -> None:
    with torch.device("meta"):
        encoder = Dinov2(**({"patch_size": 14, "grid": 16} | sizes))  # type: ignore[arg-type]
    assert sum(value.numel() for value in encoder.parameters()) / 1e6 == pytest.approx(millions, abs=1)


@pytest.mark.parametrize(
    ("width", "depth", "heads", "global_blocks"),
    [(768, 12, 12, (2, 5, 8, 11)), (1024, 24, 16, (5, 11, 17, 23)), (1280, 32, 16, (7, 15, 23, 31))],
    ids=["vit_b", "vit_l", "vit_h"],
)
def test_sams_sizes_are_read_off_its_tensors(
    width: int, depth: int, heads: int, global_blocks: tuple[int, ...]
) -> None:
    expected = dataclasses.replace(
        paper().image, embed_dim=width, depth=depth, num_heads=heads, global_attn_indexes=global_blocks
    )
    with torch.device("meta"):
        image, mask = ImageEncoder(expected).vit.state_dict(), MaskHead(expected).state_dict()
    assert sam_config({f"image_encoder.{k}": v for k, v in image.items()} | mask, "MedSAM", Path("x")) == expected


def loaded_encoder(state: dict[str, torch.Tensor]) -> torch.nn.Module:
    config = pathology_config(state, 4, (0.0,) * 3, (1.0,) * 3, "toy")
    encoder = PathologyTower(config, 8).encoder
    encoder.load_state_dict(fold_positions(state, config.grid))
    return encoder.eval()
