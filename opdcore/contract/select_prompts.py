"""The stage select_prompts: which prompts the distillation after it draws from.

Where strategies come from, and how far each is tested, is said in their knob's help. It knows no
prompt, model or device.
"""

from __future__ import annotations

from typing import Literal

from opdcore.contract.document import Document, knob

Strategy = Literal["teacher_template", "teacher_content", "gap", "low_kl", "random"]


class SelectionKnobs(Document):
    """Among which prompts is chosen, by what, and how often."""

    kind: Literal["select_prompts"] = "select_prompts"
    strategy: Strategy = knob(
        "gap",
        group="selection",
        help="teacher_template: all candidates, which the student too reads in the teacher's rendering; "
        "held-out prompts keep its own. Tested in 2604.13016, 5.2. "
        "teacher_content: prompts of the teacher's own post-training, mixed with others. Tested in "
        "2604.13016, 5.2; the best mixture is not known. "
        "gap: prompts that the teacher solves more often than the student, by the verifier. Not tested "
        "by any paper we know; only near relatives are. "
        "low_kl: prompts on which both models differ least, then more of them. Unproven, and the worst "
        "of four in the one small replication. "
        "random: as many at random, the control for gap and low_kl.",
    )
    candidates: int = knob(
        2048,
        group="selection",
        ge=1,
        le=10_000_000,
        unit="prompts",
        help="At most so many prompts are looked at, drawn at random; no other is distilled on after this stage.",
    )
    share: float = knob(
        0.2,
        group="selection",
        gt=0,
        le=1,
        help="Part of the candidates that gap, low_kl and random keep at most; with gap a prompt without "
        "a gap is never kept. teacher_template and teacher_content keep all that are no duplicates.",
    )
    refresh_steps: int = knob(
        0,
        group="selection",
        ge=0,
        le=1_000_000,
        unit="steps",
        help="Choose anew after every so many distillation steps, with the student as it then is; 0: "
        "never. teacher_template and teacher_content never change.",
    )
    expand: float = knob(
        0.2,
        group="selection",
        ge=0,
        le=1,
        help="What every refresh adds to share, until all candidates may be kept. Without refreshes "
        "nothing is added.",
    )
    outside_share: float = knob(
        0.5,
        group="selection",
        ge=0,
        le=0.95,
        help="With teacher_content alone: the part of what is kept that comes from the outside set, or "
        "from the training prompts where there is none. No paper gives the ratio; some is needed "
        "against a collapse of entropy.",
    )
    near_duplicate: float = knob(
        0.8,
        group="selection",
        gt=0,
        le=1,
        level="advanced",
        help="With teacher_content alone: a prompt is left out whose pieces of twelve letters agree "
        "with an earlier one's by this Jaccard index; 1: only equal prompts are.",
    )


class MeasuringKnobs(Document):
    """How the strategies that measure prompts ask both models."""

    samples_per_prompt: int = knob(
        4,
        group="sampling",
        ge=1,
        le=256,
        unit="rollouts",
        help="Responses to each candidate: with gap each side's, with low_kl the student's. The other "
        "strategies sample nothing, and nothing of this group but max_prompt_tokens matters to them.",
    )
    temperature: float = knob(
        1.0,
        group="sampling",
        gt=0,
        le=2,
        help="Temperature of these responses, at which low_kl also compares both models.",
    )
    max_prompt_tokens: int = knob(
        1024,
        group="sampling",
        ge=1,
        le=131_072,
        unit="tokens",
        level="advanced",
        help="A longer candidate is refused before the run starts.",
    )
    max_response_tokens: int = knob(
        7168,
        group="sampling",
        ge=1,
        le=131_072,
        unit="tokens",
        help="Where these responses are cut. Shorter is cheaper, and with gap counts a cut answer as "
        "the verifier finds it.",
    )
    micro_batch_tokens: int = knob(
        16_384,
        group="sampling",
        ge=16,
        le=16_777_216,
        unit="tokens",
        level="advanced",
        help="Tokens, padding included, in one forward pass of low_kl. Memory, not the result, "
        "depends on it.",
    )


class SelectPromptsStage(MeasuringKnobs, SelectionKnobs):
    """Chooses the prompts that the distillation after it draws from, and says why."""

    @property
    def reads_own_sets(self) -> bool:
        """Whether candidates come from the prompt sets `teacher_content` and `outside`."""
        return self.strategy == "teacher_content"

    @property
    def measures(self) -> bool:
        """Whether candidates are ranked by what the models do with them."""
        return self.strategy in ("gap", "low_kl")

    @property
    def changes(self) -> bool:
        """Whether a refresh can change what is kept."""
        return bool(self.refresh_steps) and self.strategy in ("gap", "low_kl", "random")
