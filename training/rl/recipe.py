"""The switches of SO-GRPO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from wsiseg.errors import DataError
from wsiseg.training.recipe import Amount, Count, Natural, Share
from wsiseg.training.trainable import TuningRecipe


@dataclass(frozen=True)
class RlRecipe(TuningRecipe):
    """SO-GRPO (docs/so-grpo.md), with defaults for a laptop and the bundled model.

    A step asks up to `queries_per_image` questions, half of them about what is there, of each of `batch_images` ×
    `accumulation` images and draws `answers` answers (the paper's G) to each at `temperature`. Both encoders stay as
    they are; the language model (or its adapters, `tuning: lora`), Seg-Adapter and mask head learn. The reference
    policy is `model` itself.

    Rewards: weights `reward_soft` … `reward_length`; R_sparse is + `sparse_bonus` or − `sparse_penalty`; R_len is 0
    from `length_low` to `length_high` tokens. `step_cost` is taken off for every token.

    Advantage: Ã = (1 − c) group + c per token, c = `mixture`, 0 for the first `critic_warmup` steps. Standard GRPO is
    `mixture: 0`, pure GAE `mixture: 1`, "w/o GAE" `per_token: returns` (reward to go minus the group's mean, no
    critic). `gamma` and `gae_lambda` are GAE's γ and λ.

    Loss: `inner_epochs` passes over a step's answers with clip `clip_ratio`; `kl` is β, `value_weight` c_V, and
    `value_clip` its clip. The critic starts at the mean R of the first step, or Ã would begin with a bias towards
    whatever was drawn, and learns at `value_rate` times the rate. λ_d = `pathwise` (0: no pathwise term) with
    `pathwise_bce` beside it; `pathwise_to_llm: false` keeps it in Seg-Adapter and mask head. α_k = α₀ / (1 + ηk)
    with α₀ = `learning_rate`; `eta: null` is 9 / steps, which ends at a tenth.

    `fixed_seg` is LISA's way: `<SEG>` is read in the place of an answer's last token, always, whatever it was.

    Every `probe_every` steps the stop regret is measured by `probes` probes an answer.
    """

    stage: Literal["rl"] = "rl"
    steps: Count = 200
    batch_images: Count = 3
    queries_per_image: Count = 2
    answers: Count = 8
    temperature: Amount = 1.0
    learning_rate: Amount = 3e-5
    eta: Amount | None = None
    warmup_steps: Natural = 0
    weight_decay: Amount = 0.0
    ema: Share = 0.0
    precision: Literal["bf16", "fp32"] = "fp32"
    workers: Natural = 0
    validate_every: Count = 25
    validation_images: Natural = 24
    checkpoint_every: Count = 25

    reward_soft: Amount = 1.0
    reward_sparse: Amount = 1.0
    reward_spatial: Amount = 0.5
    reward_format: Amount = 0.2
    reward_length: Amount = 0.2
    sparse_bonus: Amount = 0.1
    sparse_penalty: Amount = 0.1
    length_low: Count = 20
    length_high: Count = 70
    step_cost: Amount = 0.0

    mixture: Share = 0.6
    per_token: Literal["gae", "returns"] = "gae"
    critic_warmup: Natural = 30
    gamma: Share = 1.0
    gae_lambda: Share = 0.95

    inner_epochs: Count = 1
    clip_ratio: Share = 0.2
    kl: Amount = 0.01
    value_weight: Amount = 0.5
    value_clip: Amount = 0.2
    value_rate: Amount = 100.0
    pathwise: Amount = 1.0
    pathwise_bce: Amount = 0.5
    pathwise_to_llm: bool = True
    fixed_seg: bool = False

    probe_every: Count = 10
    probes: Count = 4

    @property
    def reads_start(self) -> bool:
        return self.tuning == "full"

    def __post_init__(self) -> None:
        """Raises DataError: values that do not go together."""
        if self.gradient_checkpointing:
            raise DataError("rl reads a prompt once for all its answers, which gradient_checkpointing rules out")
        if self.answers < 2:
            raise DataError(f"answers: {self.answers}; a group needs 2 or more to have a mean to compare with")
        if self.temperature == 0:
            raise DataError("temperature: 0 draws the same answer every time; give a number above 0, such as 1")
        if self.length_low > self.length_high:
            raise DataError(f"length_low {self.length_low} is above length_high {self.length_high}")

    @property
    def reward_weights(self) -> dict[str, float]:
        return {
            name: getattr(self, f"reward_{name}") for name in ("soft", "sparse", "spatial", "format", "length")
        }
