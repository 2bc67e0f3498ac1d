"""The model that training started from, for what is to stay as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

from wsiseg.model import model_folder
from wsiseg.model.folder import load_folder
from wsiseg.model.pathchat import PathChatSegR1
from wsiseg.training.trainable import TuningRecipe


class Reference:
    """A copy of the start model, or with adapters the model with them switched off."""

    def __init__(self, model: PathChatSegR1, recipe: TuningRecipe) -> None:
        self._model, self._recipe = model, recipe

    @cached_property
    def _copy(self) -> PathChatSegR1:
        return load_folder(model_folder(self._recipe.model)).eval().requires_grad_(False)

    @contextmanager
    def unchanged(self) -> Iterator[PathChatSegR1]:
        """Inside the block, the language model as it was before this stage; without adapters, the rest as well."""
        model = self._model
        if self._recipe.tuning == "full":
            yield self._copy.to(model.device)
            return
        from peft.tuners.tuners_utils import BaseTunerLayer

        parts = (model.vlm.model.language_model, model.vlm.lm_head)  # layers, and the row of <SEG>
        adapted = [module for part in parts for module in part.modules() if isinstance(module, BaseTunerLayer)]
        trains = [(parameter, parameter.requires_grad) for part in parts for parameter in part.parameters()]
        for module in adapted:
            module.enable_adapters(False)
        try:
            yield model
        finally:
            for module in adapted:
                module.enable_adapters(True)
            for parameter, did in trains:  # peft has thawed what the recipe froze
                parameter.requires_grad_(did)
