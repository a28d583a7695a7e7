"""Recipes as configurations of other trainers: TRL's distillation and verl's on-policy distillation.

Keys are those of TRL 1.16 and of verl's `docs/algo/opd.md`. What a trainer has no key for stands as a
comment in the file, never left out in silence. It reads recipes and writes text; it knows no model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from opdcore.contract.cold_start import ColdStartStage
from opdcore.contract.distill import DistillStage
from opdcore.contract.recipe import Recipe

Training = DistillStage | ColdStartStage

# Values that ask for nothing, so that a trainer without the knob loses nothing.
IDLE: dict[str, Any] = {
    "reward_clamp": None,
    "reward_power": 0.0,
    "high_entropy_forward_weight": 0.0,
    "initial_kl_weight": 0.0,
    "gold_sft_weight": 0.0,
    "extrapolation": 1.0,
    "token_mask": "none",
    "token_selection": "all",
    "loss_prefix_tokens": None,
    "depth_half_life_tokens": None,
    "curriculum_start_tokens": None,
    "mask_late_chunks": False,
    "only_correct": False,
    "rollouts_per_prompt": 1,
    "sampling_precision": "float32",
}
# Knobs that only count beside another one's value.
BESIDE: dict[str, tuple[str, tuple[object, ...]]] = {
    "jsd_beta": ("divergence", ("jsd",)),
    "high_entropy_nats": ("high_entropy_forward_weight", ()),
    "selection_entropy_nats": ("token_selection", ("entropy", "either")),
    "selection_kl_nats": ("token_selection", ("divergence", "either")),
    "late_overlap": ("mask_late_chunks", (True,)),
    "rescues": ("on_failing", ("rescue",)),
    "sampled_loss": ("form", ("sampled",)),
    "support": ("form", ("top_k",)),
    "normalisation": ("form", ("top_k",)),
    "k": ("form", ("top_k",)),
    "lora_rank": ("tuning", ("lora",)),
    "lora_alpha": ("tuning", ("lora",)),
    "lora_learning_rate": ("tuning", ("lora",)),
    "learning_rate": ("tuning", ("full",)),
}
SCHEDULES = {"constant": "constant", "linear": "linear", "cosine": "cosine"}


@dataclass
class Sheet:
    """One stage's configuration under way: its keys, the knobs that they express, and remarks."""

    stage: Training
    keys: dict[str, Any] = field(default_factory=dict)
    said: set[str] = field(default_factory=lambda: {"kind"})
    remarks: list[str] = field(default_factory=list)

    def put(self, key: str, value: Any, *knobs: str) -> None:  # noqa: ANN401 (YAML)
        """Sets a dotted key, which expresses these knobs."""
        *parents, name = key.split(".")
        target = self.keys
        for parent in parents:
            target = target.setdefault(parent, {})
        target[name] = value
        self.said |= set(knobs)

    def take(self, **named: str) -> None:
        """Sets keys to the knobs of the stage as they are; a key's dots are written `__`."""
        for knob, key in named.items():
            self.put(key.replace("__", "."), getattr(self.stage, knob), knob)

    def remark(self, text: str, *knobs: str) -> None:
        """Says what is otherwise there, of these knobs."""
        self.remarks.append(text)
        self.said |= set(knobs)

    def unsaid(self) -> Iterator[str]:
        """Every knob that counts and has no key, with its value."""
        for name in type(self.stage).model_fields:
            value = getattr(self.stage, name)
            if name in self.said or (name in IDLE and IDLE[name] == value):
                continue
            if name not in BESIDE or self._counts(*BESIDE[name]):
                yield f"{name}: {value}"

    def _counts(self, other: str, values: tuple[object, ...]) -> bool:
        found = getattr(self.stage, other)
        return found in values if values else bool(found)


def write(recipe: Recipe, trainer: str) -> str:
    """The recipe as one YAML document for each distillation and cold start, in their order.

    `trainer` is one of NAMES.
    """
    stages = [stage for stage in recipe.stages if isinstance(stage, DistillStage | ColdStartStage)]
    head = [
        f"{recipe.name}: written by Stillroom for {NAMES[trainer]}.",
        "Models and data are yours to fill in: STUDENT, TEACHER, TRAIN, HELD_OUT.",
        "A later document starts from what the one before it trained.",
        *_unexpressed_stages(recipe),
    ]
    documents = (_document(stage, recipe, trainer) for stage in stages)
    return "\n---\n".join([_comments(head).rstrip(), *documents])


def _document(stage: Training, recipe: Recipe, trainer: str) -> str:
    sheet = Sheet(stage)
    _WRITERS[trainer, stage.kind](sheet, recipe)
    lost = list(sheet.unsaid())
    notes = [f"Stage: {stage.kind}.", *sheet.remarks]
    if lost:
        notes += [f"{NAMES[trainer]} has no key for:", *(f"  {line}" for line in lost)]
    written = yaml.safe_dump(sheet.keys, sort_keys=False, allow_unicode=True)
    return _comments(notes) + written.rstrip()


def _trl_distill(sheet: Sheet, recipe: Recipe) -> None:
    """A `trl.DistillationConfig`."""
    stage = sheet.stage
    assert isinstance(stage, DistillStage)
    sheet.put("model_name_or_path", "STUDENT")
    sheet.put("teacher_model_name_or_path", "TEACHER")
    _trl_shared(sheet, recipe)
    sheet.put(
        "per_device_train_batch_size",
        stage.prompts_per_step * stage.rollouts_per_prompt,
        "prompts_per_step",
    )
    sheet.take(
        temperature="temperature",
        sampling_top_p="top_p",
        max_response_tokens="max_completion_length",
    )
    beta = {"reverse": 1.0, "forward": 0.0, "jsd": stage.jsd_beta}[stage.divergence]
    sheet.put("beta", beta, "divergence", "jsd_beta")
    sheet.remark("The batch is of one device; divide it among more, or use gradient accumulation.")
    if stage.form != "full":
        sheet.remark(
            f"TRL compares the full vocabulary at each token, here it was {stage.form}: another loss.",
            "form",
        )
    sheet.said.add("form")
    if stage.rollouts_per_prompt > 1:
        sheet.remark("A prompt is answered once in a batch, so repeat each prompt in the data.",
                     "rollouts_per_prompt")  # fmt: skip


def _trl_cold(sheet: Sheet, recipe: Recipe) -> None:
    """A `trl.SFTConfig`."""
    sheet.put("model_name_or_path", "STUDENT")
    _trl_shared(sheet, recipe)
    sheet.take(responses_per_step="per_device_train_batch_size")
    stage = sheet.stage
    sheet.put(
        "max_length",
        stage.max_prompt_tokens + stage.max_response_tokens,
        "max_prompt_tokens",
        "max_response_tokens",
    )
    sheet.put("completion_only_loss", value=True)
    sheet.remark(
        "An SFTConfig. Sample the teacher's responses first and drop cut and repeating ones;"
    )
    sheet.remark("TRAIN holds them as prompt and completion.")


def _trl_shared(sheet: Sheet, recipe: Recipe) -> None:
    stage = sheet.stage
    sheet.take(steps="max_steps", warmup_steps="warmup_steps", weight_decay="weight_decay",
               beta1="adam_beta1", beta2="adam_beta2", max_grad_norm="max_grad_norm",
               checkpoint_steps="save_steps", keep_checkpoints="save_total_limit")  # fmt: skip
    sheet.put("learning_rate", _rate(stage), "learning_rate", "lora_learning_rate")
    name = SCHEDULES[stage.schedule]
    warm = "constant_with_warmup" if name == "constant" and stage.warmup_steps else name
    sheet.put("lr_scheduler_type", warm, "schedule")
    sheet.put("bf16", stage.precision == "bfloat16", "precision")
    sheet.put("gradient_checkpointing", value=False)
    sheet.put("seed", recipe.seed)
    if stage.tuning == "lora":
        sheet.put("use_peft", value=True)
        sheet.take(lora_rank="lora_r", lora_alpha="lora_alpha")
        sheet.put("lora_target_modules", "all-linear")
    sheet.said.add("tuning")


def _verl_distill(sheet: Sheet, recipe: Recipe) -> None:
    """Overrides of `verl.trainer.main_ppo`, as a tree."""
    stage = sheet.stage
    assert isinstance(stage, DistillStage)
    actor = "actor_rollout_ref__actor"
    rollout = "actor_rollout_ref__rollout"
    sheet.put("data.train_files", "TRAIN")
    sheet.put("data.val_files", "HELD_OUT")
    sheet.take(
        prompts_per_step="data__train_batch_size",
        max_prompt_tokens="data__max_prompt_length",
        max_response_tokens="data__max_response_length",
        weight_decay=f"{actor}__optim__weight_decay",
        warmup_steps=f"{actor}__optim__lr_warmup_steps",
        max_grad_norm=f"{actor}__grad_clip",
        rollouts_per_prompt=f"{rollout}__n",
        temperature=f"{rollout}__temperature",
        sampling_top_p=f"{rollout}__top_p",
        steps="trainer__total_training_steps",
        checkpoint_steps="trainer__save_freq",
        keep_checkpoints="trainer__max_actor_ckpt_to_keep",
        evaluate_steps="trainer__test_freq",
    )
    sheet.put("actor_rollout_ref.actor.ppo_mini_batch_size", stage.prompts_per_step)
    sheet.put(
        "actor_rollout_ref.actor.optim.lr", _rate(stage), "learning_rate", "lora_learning_rate"
    )
    sheet.put("actor_rollout_ref.actor.optim.betas", [stage.beta1, stage.beta2], "beta1", "beta2")
    sheet.put("actor_rollout_ref.model.path", "STUDENT")
    _verl_tuning(sheet, stage)
    sheet.put("algorithm.use_kl_in_reward", value=False)
    _verl_initial(sheet, stage)
    _verl_loss(sheet, stage)
    sheet.put("trainer.val_before_train", value=True)
    sheet.put("data.seed", recipe.seed)


def _verl_tuning(sheet: Sheet, stage: DistillStage) -> None:
    if stage.tuning == "lora":
        sheet.take(
            lora_rank="actor_rollout_ref__model__lora_rank",
            lora_alpha="actor_rollout_ref__model__lora_alpha",
        )
        sheet.put("actor_rollout_ref.model.target_modules", "all-linear")
    sheet.said.add("tuning")


def _verl_initial(sheet: Sheet, stage: DistillStage) -> None:
    held = bool(stage.initial_kl_weight)
    sheet.put("actor_rollout_ref.actor.use_kl_loss", held)
    if held:
        sheet.take(initial_kl_weight="actor_rollout_ref__actor__kl_loss_coef")
        sheet.put("actor_rollout_ref.actor.kl_loss_type", "low_var_kl")
        sheet.remark("KL to the start is estimated from the sampled token there, here it is exact.")


def _verl_loss(sheet: Sheet, stage: DistillStage) -> None:
    loss = "distillation.distillation_loss"
    sheet.put("distillation.enabled", value=True)
    sheet.put("distillation.teacher_models.teacher_model.model_path", "TEACHER")
    longest = stage.max_prompt_tokens + stage.max_response_tokens + 1
    sheet.put("distillation.teacher_models.teacher_model.inference.max_model_len", longest)
    mode, exact = _verl_mode(stage)
    sheet.put(f"{loss}.loss_mode", mode, "form", "divergence", "sampled_loss")
    sheet.put(f"{loss}.use_policy_gradient", mode == "k1")
    sheet.put(f"{loss}.use_task_rewards", value=False)
    if mode.startswith("forward_kl"):
        sheet.put(f"{loss}.topk", stage.k, "k")
        if exact:
            sheet.said |= {"support", "normalisation"}
    if stage.reward_clamp is not None:
        sheet.put(f"{loss}.loss_max_clamp", stage.reward_clamp, "reward_clamp")
    if not exact:
        sheet.remark(
            f"verl has no {stage.divergence} divergence on {stage.form} with these choices; {mode} is "
            "the nearest, and another loss."
        )
    sheet.remark("verl compares at temperature 1 whatever the rollouts' is.")
    sheet.remark("Set distillation.nnodes and n_gpus_per_node to the teacher's GPUs.")


def _verl_mode(stage: DistillStage) -> tuple[str, bool]:
    """The loss mode that is meant or nearest, and whether it is the same loss."""
    if stage.form == "sampled":
        modes = {"policy_gradient": "k1", "k2": "k2", "k3": "k3"}
        return modes[stage.sampled_loss], stage.divergence == "reverse"
    if stage.divergence == "forward":
        tail = stage.normalisation == "tail_bucket"
        mode = "forward_kl_topk_tail" if tail else "forward_kl_topk"
        same = stage.form == "top_k" and stage.support == "teacher"
        return mode, same and stage.normalisation in ("tail_bucket", "unnormalised")
    return "k1", False


def _verl_cold(sheet: Sheet, recipe: Recipe) -> None:
    """Overrides of verl's SFT trainer."""
    sheet.put("data.train_files", "RESPONSES")
    sheet.take(
        responses_per_step="data__train_batch_size",
        weight_decay="optim__weight_decay",
        max_grad_norm="optim__clip_grad",
        steps="trainer__total_training_steps",
        checkpoint_steps="trainer__save_freq",
    )
    stage = sheet.stage
    longest = stage.max_prompt_tokens + stage.max_response_tokens
    sheet.put("data.max_length", longest, "max_prompt_tokens", "max_response_tokens")
    sheet.put("optim.lr", _rate(stage), "learning_rate", "lora_learning_rate")
    sheet.put("optim.betas", [stage.beta1, stage.beta2], "beta1", "beta2")
    share = round(stage.warmup_steps / stage.steps, 4)
    sheet.put("optim.lr_warmup_steps_ratio", share, "warmup_steps")
    sheet.put("trainer.seed", recipe.seed)
    sheet.remark(
        "Of verl's SFT trainer. Sample the teacher's responses into RESPONSES first, and drop"
    )
    sheet.remark("cut and repeating ones.")


def _rate(stage: Training) -> float:
    return stage.lora_learning_rate if stage.tuning == "lora" else stage.learning_rate


def _unexpressed_stages(recipe: Recipe) -> Iterator[str]:
    for stage in recipe.stages:
        if not isinstance(stage, DistillStage | ColdStartStage):
            knobs = stage.model_dump(mode="json", exclude={"kind"})
            told = ", ".join(f"{name} {value}" for name, value in knobs.items())
            yield (
                f"Not written, since only distillations and cold starts are: {stage.kind} {told}".rstrip()
                + "."
            )
    asked = recipe.evaluation.model_dump(mode="json") | {"goal": recipe.goal.kind}
    told = ", ".join(f"{name} {value}" for name, value in asked.items())
    yield f"Held-out prompts were graded so, which is yours to set up there: {told}."


def _comments(lines: Iterable[str]) -> str:
    return "".join(f"# {line}\n" for line in lines)


NAMES = {"trl": "TRL", "verl": "verl"}
_WRITERS: dict[tuple[str, str], Callable[[Sheet, Recipe], None]] = {
    ("trl", "distill"): _trl_distill,
    ("trl", "cold_start"): _trl_cold,
    ("verl", "distill"): _verl_distill,
    ("verl", "cold_start"): _verl_cold,
}
