"""Several teachers and privileged ones: who scores what, what they say together, and what they follow."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import opdcore
from opdcore.alignment import measure
from opdcore.comparison import compare
from opdcore.contract.errors import BadInput, Cancelled
from opdcore.contract.participant import Participant
from opdcore.contract.prompt import Message, Prompt
from opdcore.contract.teacher import Privileged, Teacher
from opdcore.losses import position_losses
from opdcore.models import load
from opdcore.privileged import read_with
from opdcore.teachers import Member, Scoring, Teachers, following
from opdcore.teachers.panel import _mean
from tests.opdcore.jobs import QUESTIONS, by_kind, events_of, make_job, make_recipe
from tests.opdcore.model_folders import make_pair
from tests.opdcore.naive import make_objective

CPU = torch.device("cpu")


def local(folder, **said):
    return {"model": {"kind": "local", "path": str(folder)}} | said


def teacher_folders(folder):
    """A student's folder and two teachers' of other weights."""
    student, first = make_pair(folder / "one")
    _, second = make_pair(folder / "two")
    shift(second)
    return student, first, second


def shift(folder):
    """Other weights in the same folder."""
    file = folder / "model.safetensors"
    generator = torch.Generator().manual_seed(5)
    tensors = {
        name: value + 0.2 * torch.randn(value.shape, generator=generator)
        for name, value in load_file(file).items()
    }
    save_file(tensors, file, metadata={"format": "pt"})


def values_of(events):
    return [event.payload.values for event in by_kind(events, "metrics")]


def losses_of(job, run_dir):
    return [values["loss"] for values in values_of(events_of(job, run_dir))]


def test_the_same_teacher_twice_is_that_teacher(tmp_path):
    pair = make_pair(tmp_path)
    one = make_job(tmp_path, pair=pair)
    twice = make_job(tmp_path, pair=pair, teachers=[local(pair[1]), local(pair[1], weight=3.0)])
    assert losses_of(twice, tmp_path / "b") == pytest.approx(
        losses_of(one, tmp_path / "a"), rel=1e-4
    )


@pytest.mark.parametrize("divergence", ["reverse", "forward"])
def test_a_panels_gradient_is_the_weighted_mean_of_its_members_gradients(divergence):
    generator = torch.Generator().manual_seed(3)
    student, first, second = (3 * torch.randn(7, 11, generator=generator) for _ in range(3))
    sampled, shares = torch.arange(7), (0.3, 0.7)
    objective = make_objective("full", divergence=divergence)

    def gradient(teacher):
        table = student.clone()
        position_losses(
            compare(student.clone(), teacher.clone(), k=4), sampled, objective=objective,
            scale=torch.ones(7, 1), gradient=table,
        )  # fmt: skip
        return table

    together = _mean([first, second], shares, Scoring(11, divergence=divergence))
    expected = sum(
        share * gradient(one) for share, one in zip(shares, (first, second), strict=True)
    )
    torch.testing.assert_close(gradient(together), expected, atol=1e-5, rtol=1e-4)


def test_a_mixture_is_a_mixture_at_any_temperature():
    generator = torch.Generator().manual_seed(4)
    tables = [torch.randn(5, 9, generator=generator) for _ in range(2)]
    logits = _mean(tables, (0.25, 0.75), Scoring(9, temperature=1.7, divergence="forward"))
    expected = 0.25 * (tables[0] / 1.7).softmax(-1) + 0.75 * (tables[1] / 1.7).softmax(-1)
    torch.testing.assert_close((logits / 1.7).softmax(-1), expected)


def test_prompts_are_scored_by_the_teacher_of_their_tag(tmp_path):
    student, first, second = teacher_folders(tmp_path)
    rows = [row | {"tags": ["odd" if i % 2 else "even"]} for i, row in enumerate(QUESTIONS)]
    recipe = make_recipe(steps=1, prompts_per_step=40, rollouts_per_prompt=1)

    def reward(teachers):
        job = make_job(tmp_path, pair=(student, first), rows=rows, recipe=recipe, teachers=teachers)
        return values_of(events_of(job, tmp_path / f"run-{len(list(tmp_path.iterdir()))}"))[0]

    routed = reward([local(first, tags=["even"]), local(second, tags=["odd"])])
    swapped = reward([local(first, tags=["odd"]), local(second, tags=["even"])])
    alone = [reward([local(one)]) for one in (first, second)]
    # Each position is scored by one of the two, so both routings together make up both teachers.
    for key in ("token_reward", "reverse_kl", "teacher_entropy"):
        both = routed[key] + swapped[key]
        assert both == pytest.approx(alone[0][key] + alone[1][key], rel=1e-4)
        assert routed[key] != pytest.approx(alone[0][key], rel=1e-3)


def test_each_held_out_prompt_is_answered_by_its_own_teacher(tmp_path):
    student, first, second = teacher_folders(tmp_path)
    rows = [row | {"tags": ["odd" if i % 2 else "even"]} for i, row in enumerate(QUESTIONS)]

    def answered(teachers, name):
        job = make_job(tmp_path, pair=(student, first), rows=rows, teachers=teachers)
        events_of(job, tmp_path / name)
        return json.loads((tmp_path / name / "evaluations" / "teacher.json").read_bytes())

    routed = answered([local(first, tags=["even"]), local(second, tags=["odd"])], "routed")
    alone = answered([local(first)], "alone")
    even = slice(0, 6, 2)
    assert len(routed["response_tokens"]) == 6
    assert routed["response_tokens"][even] != alone["response_tokens"]


def test_a_prompt_without_a_teacher_is_refused_by_its_row(tmp_path):
    pair = make_pair(tmp_path)
    rows = [QUESTIONS[0] | {"tags": ["sums"]}, QUESTIONS[1] | {"tags": ["code"]}]
    job = make_job(tmp_path, pair=pair, rows=rows, teachers=[local(pair[1], tags=["sums"])])
    with pytest.raises(BadInput) as caught:
        events_of(job, tmp_path / "run")
    info = caught.value.info
    assert (info.code, info.field) == ("teachers.nobody_scores", "prompt_sets.train, row 2")
    assert "its tags are code" in info.message


def test_a_diagnosis_asks_for_one_teacher(tmp_path):
    pair = make_pair(tmp_path)
    recipe = make_recipe().model_dump() | {"stages": [{"kind": "diagnose"}]}
    job = make_job(tmp_path, pair=pair, teachers=[local(pair[1])] * 2)
    job = job.model_copy(update={"recipe": type(job.recipe).model_validate(recipe)})
    with pytest.raises(BadInput) as caught:
        events_of(job, tmp_path / "run")
    assert caught.value.info.code == "diagnose.several_teachers"


def test_privileged_text_is_put_before_a_prompt_or_into_the_last_user_turn():
    rule = Privileged(source="rule", rule="Use {prompt} braces.")
    assert read_with(rule, Prompt(prompt="What?")).prompt == "Use {prompt} braces.\n\nWhat?"
    turns = (
        Message(role="user", content="Hi"),
        Message(role="assistant", content="Yes?"),
        Message(role="user", content="What?"),
    )
    own = Privileged(source="prompt", form="{prompt} (hint: {privileged})")
    read = read_with(own, Prompt(messages=turns, privileged="3"))
    assert [turn.content for turn in read.messages] == ["Hi", "Yes?", "What? (hint: 3)"]
    with pytest.raises(BadInput, match="no privileged text"):
        read_with(own, Prompt(prompt="What?"))


@pytest.mark.parametrize(
    "said",
    [
        {"source": "rule"},
        {"source": "prompt", "rule": "x"},
        {"source": "rule", "rule": "x", "form": "{prompt}"},
    ],
)
def test_privileged_text_must_be_whole(said):
    with pytest.raises(ValueError, match=r"rule|form"):
        Privileged.model_validate(said)


def test_a_teacher_that_is_the_student_needs_privileged_text():
    with pytest.raises(ValueError, match="privileged"):
        Teacher.model_validate(local("x", follows="student"))


def test_a_live_self_teacher_without_a_difference_has_nothing_to_say(tmp_path):
    student, _ = make_pair(tmp_path)
    # A text that the tokenizer drops leaves both sides with the same tokens.
    privileged = {"source": "rule", "rule": "Think. ", "form": "{privileged}{prompt}"}
    recipe = make_recipe(steps=2)
    live = make_job(
        tmp_path, pair=(student, student), recipe=recipe,
        teachers=[local(student, follows="student", privileged=privileged)],
    )  # fmt: skip
    frozen = make_job(
        tmp_path, pair=(student, student), recipe=recipe,
        teachers=[local(student, privileged=privileged)],
    )  # fmt: skip
    lively, still = (
        values_of(events_of(live, tmp_path / "a")),
        values_of(events_of(frozen, tmp_path / "b")),
    )
    assert lively[0]["reverse_kl"] == pytest.approx(still[0]["reverse_kl"])
    assert lively[0]["reverse_kl"] > 0
    assert lively[1]["reverse_kl"] != pytest.approx(still[1]["reverse_kl"], rel=1e-6)


def test_an_average_follows_the_student_and_survives_a_resume(tmp_path):
    student, _ = make_pair(tmp_path)
    privileged = {"source": "rule", "rule": "Think."}
    said = local(student, follows="average", average_decay=0.5, privileged=privileged)
    job = make_job(tmp_path, pair=(student, student), teachers=[said])
    whole = losses_of(job, tmp_path / "whole")

    first = []

    def run():
        stop = lambda: len(values_of(first)) >= 2  # noqa: E731
        for event in opdcore.run(job, tmp_path / "cut", stop=stop):
            first.append(event)  # noqa: PERF402 - the list is watched while it grows

    with pytest.raises(Cancelled):
        run()
    kept = max((tmp_path / "cut" / "checkpoints").iterdir())
    assert (kept / "teacher-0.safetensors").exists()
    rest = losses_of(job.model_copy(update={"attempt": 2}), tmp_path / "cut")
    assert [v["loss"] for v in values_of(first)] + rest == whole


def test_an_average_lags_behind_by_its_decay(tmp_path):
    folder, _ = make_pair(tmp_path)
    student, average = (
        load(Participant.model_validate(local(folder)), device=CPU, field="student") for _ in "12"
    )
    said = Teacher.model_validate(local(folder, follows="average", average_decay=0.75))
    teachers = Teachers((Member(average, said),))
    before = {name: p.detach().clone() for name, p in student.model.named_parameters()}
    with torch.no_grad():
        for parameter in student.model.parameters():
            parameter.add_(1.0)
    following.follow(teachers, student)
    for name, parameter in teachers.members[0].model.model.named_parameters():
        torch.testing.assert_close(parameter, before[name] + 0.25)


def test_a_teacher_that_follows_must_be_the_student(tmp_path):
    student, other = make_pair(tmp_path)
    job = make_job(tmp_path, pair=(student, other), teachers=[local(other, follows="average")])
    with pytest.raises(BadInput) as caught:
        events_of(job, tmp_path / "run")
    assert caught.value.info.code == "teachers.follows_other"


def test_an_average_of_adapters_is_refused(tmp_path):
    student, _ = make_pair(tmp_path)
    job = make_job(
        tmp_path, pair=(student, student), recipe=make_recipe(tuning="lora"),
        teachers=[local(student, follows="average")],
    )  # fmt: skip
    with pytest.raises(BadInput) as caught:
        events_of(job, tmp_path / "run")
    assert caught.value.info.code == "teachers.average_of_adapters"


def test_alignment_is_measured_against_the_panel():
    generator = torch.Generator().manual_seed(6)
    student, first, second = (torch.randn(4, 9, generator=generator) for _ in range(3))
    together = _mean([first, second], (0.5, 0.5), Scoring(9))
    aligned = measure(compare(student.clone(), together.clone(), k=3), torch.arange(4), k=3)
    expected = (0.5 * (first + second)).log_softmax(-1).gather(1, torch.arange(4)[:, None])
    torch.testing.assert_close(aligned.teacher_logprob, expected.squeeze(1))
