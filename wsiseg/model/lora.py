"""Low-rank adapters as peft saves them, checked strictly and folded into a model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import nn

from wsiseg.errors import ModelError
from wsiseg.model import model_folder
from wsiseg.model.config import PathChatConfig
from wsiseg.model.folder import check_new, check_state, load_folder, new_folder, save_model, stored_tensors
from wsiseg.model.parts import field, read_json, read_tensors
from wsiseg.model.pathchat import PathChatSegR1

_PEFT = "base_model.model."
_ON_A_TABLE = re.compile(r"embed_tokens\.lora_embedding_|lm_head\.lora_")
_APART = (
    "trains input and output tables of a tied model apart; train single rows (trainable_token_indices), or both tables "
    "as one (modules_to_save with ensure_weight_tying), without LoRA on either"
)


def merge_adapter(model: PathChatSegR1, adapter: Path) -> None:
    """Fold the adapter in the folder (adapter_config.json, adapter_model.safetensors) into the weights, in place.

    The adapter is one of the whole model, or one of its `vlm` (a Qwen2.5-VL adapter that leaves the vision tower
    alone). Load the model in float32: W + (α/r)·B·A is rounded once, when it is saved.

    Raises:
        ModelError: not a LoRA adapter, keys that do not fit this model, dimensions that differ, NaN.
    """
    from peft import PeftConfig, get_peft_model
    from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict

    config_path, weights = adapter / "adapter_config.json", adapter / "adapter_model.safetensors"
    raw = read_json(config_path)
    if (kind := field(raw, "peft_type", config_path)) != "LORA":
        raise ModelError(f"{adapter} is a {kind} adapter; only LoRA can be merged")
    if not weights.is_file():
        raise ModelError(f"{adapter} holds no {weights.name}")
    state = read_tensors([weights])
    if broken := sorted(key for key, value in state.items() if not value.float().isfinite().all()):
        raise ModelError(f"{weights} holds numbers that are not finite, the first in {broken[0]}")
    whole = any(key.startswith(f"{_PEFT}vlm.") for key in state)
    if whole and model.config.text.tie_word_embeddings and any(".token_adapter." in key for key in state):
        # peft sees a tie only from `vlm`: it trained the row of the input table, and left the head's as it was.
        raise ModelError(
            f"{adapter} trains tokens of a tied table and was put on the whole model, so that input and output "
            "tables came apart in training; put the adapter on `model.vlm`"
        )
    if model.config.text.tie_word_embeddings and any(_ON_A_TABLE.search(key) for key in state):
        # Merged, what was learned of one table would change the other as well.
        raise ModelError(f"{adapter} {_APART}")
    base: nn.Module = model if whole else model.vlm
    try:
        wrapped: Any = get_peft_model(base, PeftConfig.from_pretrained(str(adapter)))  # type: ignore[arg-type]
        wanted = get_peft_model_state_dict(wrapped)
        # peft itself only warns about keys that it does not find.
        check_state(wanted, state, f"adapter {adapter} on model {model.config.name!r}")
        set_peft_model_state_dict(wrapped, state)
        merged = wrapped.merge_and_unload(safe_merge=True)
    except (ValueError, TypeError, IndexError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{adapter} does not fit the model {model.config.name!r}: {error}") from error
    if merged is not base:
        raise ModelError(f"{adapter}: peft did not give the model back; this peft version is not supported")
    tables = model.vlm.get_input_embeddings().weight, model.vlm.lm_head.weight
    if model.config.text.tie_word_embeddings and tables[0] is not tables[1]:
        # A model folder holds one table: the other, trained as well, would be left out.
        raise ModelError(f"{adapter} {_APART}")


def merge_folder(model: str, adapter: Path, out: Path) -> PathChatConfig:
    """Write the model folder `out`: `model` (a name or a folder) with the adapter folded in, each weight in its dtype.

    Raises:
        ModelError: see `merge_adapter`.
        OutputError: `out` exists and is not empty, or cannot be written.
    """
    check_new(out)
    folder = model_folder(model)
    merged = load_folder(folder)
    merge_adapter(merged, adapter)
    dtypes = {key: value.dtype for key, value in stored_tensors(folder).items()}
    card = folder / "README.md"
    text = card.read_text("utf-8") if card.is_file() else f"# {merged.config.name}\n"
    text += f"\n## Merged\n\nThe LoRA adapter `{adapter.name}` was folded in by `wsiseg models merge`; "
    text += "figures above are those of the model without it.\n"
    with new_folder(out) as written:
        save_model(merged, written, dtypes=dtypes)
        (written / "README.md").write_text(text, "utf-8")
    return merged.config
