"""Probes that begin where the model is, so that their first gradients are not those of ignorance."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.training.test_sft import RECIPE
from wsiseg.model import model_folder
from wsiseg.model.folder import load_folder
from wsiseg.training.batch import Batch, Collate
from wsiseg.training.data.store import QuadrupletStore
from wsiseg.training.probes import fit_linear
from wsiseg.training.sft import SftModel, stream


@pytest.mark.parametrize("classes", [1, 5])
def test_a_probe_reads_what_can_be_read_of_states_it_has_not_seen(classes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, max(classes, 2), (600,), generator=generator)
    centres = 3 * torch.randn(max(classes, 2), 40, generator=generator)
    states = centres[labels] + torch.randn(600, 40, generator=generator)
    probe = nn.Linear(40, classes)
    fit_linear(probe, states[:400], labels[:400])
    logits = probe(states[400:])
    said = logits.argmax(1) if classes > 1 else (logits[:, 0] > 0).long()
    assert (said == labels[400:]).float().mean() > 0.99
    shuffled = labels[torch.randperm(600, generator=generator)]
    assert fit_linear(probe, states, shuffled) > 0.3  # there is nothing to read


def test_fitted_probes_pull_less_at_a_model_that_knows_its_words(store: Path) -> None:
    model = load_folder(model_folder(None))
    recipe = dataclasses.replace(RECIPE, wordings_per_image=20)
    views = stream(QuadrupletStore.open(store), model, recipe, "train", 5, 12)
    collate = Collate(model.config, model.tokenizer)
    batches = [collate([views[i] for i in range(k, k + 4)]) for k in range(0, 12, 4)]
    torch.manual_seed(0)
    sft = SftModel(model, recipe)
    before = pull(sft, batches[2])
    sft.fit_probes(batches[:2])
    assert all(p.grad is None for p in sft.parameters())  # nothing is left for the first step
    assert pull(sft, batches[2]) < 0.5 * before
    wording = sft.wording.weight.clone()
    sft.fit_probes([collate([dataclasses.replace(views[i], wordings=()) for i in range(4)])])
    assert torch.equal(sft.wording.weight, wording)  # nothing was said that it could be fitted to


def pull(sft: SftModel, batch: Batch) -> float:
    """Norm of the gradient of the wording probe's loss on the language model."""
    states = sft._wording_states(batch)
    weights = list(sft.model.vlm.model.language_model.parameters())
    loss = F.cross_entropy(sft.wording(states), batch.concepts)
    gradients = torch.autograd.grad(loss, weights, allow_unused=True)
    return float(torch.stack([g.square().sum() for g in gradients if g is not None]).sum().sqrt())
