"""What a run says when its input, its machine or its disk does not allow it: always a code."""

import errno
import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from opdcore.contract.errors import BadInput
from opdcore.contract.job import PromptFile
from opdcore.contract.serving import ServedTeacher
from opdcore.device import is_out_of_memory
from opdcore.execution import _failure
from tests.opdcore.jobs import events_of, make_job, make_recipe, write_prompts
from tests.opdcore.model_folders import make_folder, make_pair


def refused(tmp_path, **changes):
    with pytest.raises(BadInput) as refusal:
        events_of(make_job(tmp_path, **changes), tmp_path / "run")
    assert not list((tmp_path / "run").glob("*")), "nothing is half-saved"
    return refusal.value.info


def with_config(pair, **changes):
    file = pair[0] / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return pair


def test_a_student_that_lacks_a_tensor_is_refused_and_not_drawn_at_random(tmp_path):
    student, teacher = make_pair(tmp_path)
    tensors = load_file(student / "model.safetensors")
    lost = next(name for name in tensors if "mlp" in name)
    del tensors[lost]
    save_file(tensors, student / "model.safetensors", metadata={"format": "pt"})
    info = refused(tmp_path, pair=(student, teacher))
    assert (info.code, info.field) == ("model.missing_tensor", "student")
    assert lost in info.message


def test_a_quantised_student_is_refused(tmp_path):
    pair = with_config(make_pair(tmp_path), quantization_config={"quant_method": "gptq", "bits": 4})
    info = refused(tmp_path, pair=pair)
    assert (info.code, info.field) == ("model.quantised", "student")


@pytest.mark.parametrize(
    "changes",
    [{"model_type": "nosuch"}, {"rms_norm_eps": "x"}, {"hidden_act": "nosuch"},
     {"num_attention_heads": 3}],
)  # fmt: skip
def test_a_configuration_that_transformers_refuses_is_refused_with_its_words(tmp_path, changes):
    info = refused(tmp_path, pair=with_config(make_pair(tmp_path), **changes))
    assert (info.code, info.field) == ("model.unloadable", "student")


@pytest.mark.parametrize("name", ["gpu0", "meta", f"cuda:{torch.cuda.device_count()}"])
def test_a_device_that_the_machine_lacks_is_refused(tmp_path, name):
    info = refused(tmp_path, resources={"train": {"devices": [name]}})
    assert (info.code, info.field) == ("device.missing", "resources.train.devices")


def test_a_run_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("taken")
    with pytest.raises(BadInput) as refusal:
        events_of(make_job(tmp_path), tmp_path / "file")
    assert refusal.value.info.code == "run.folder"


def test_memory_that_a_gpu_or_the_cpu_refuses_is_known_as_such():
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    with pytest.raises(RuntimeError) as refusal:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(refusal.value)
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))


def test_a_full_disk_is_a_failure_with_a_code_and_another_error_stays_as_it_is():
    assert _failure(OSError(errno.ENOSPC, "full")).info.code == "run.disk_full"
    assert _failure(OSError(errno.EIO, "broken")) is None
    assert _failure(torch.OutOfMemoryError("CUDA out of memory")).info.code == "run.out_of_memory"


def command(tmp_path, job, *options, **streams):
    (tmp_path / "job.json").write_text(json.dumps(job.model_dump(mode="json")))
    line = [sys.executable, "-m", "opdcore", "run", str(tmp_path / "job.json")]
    line += ["--run-dir", str(tmp_path / "run"), *options]
    return subprocess.Popen(line, stderr=subprocess.PIPE, text=True, **streams)


def test_a_run_whose_events_nobody_reads_any_more_fails(tmp_path):
    job = make_job(tmp_path, recipe=make_recipe(steps=300, evaluate_steps=0))
    with command(tmp_path, job, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.wait() == 1
        told = process.stderr.read()
    assert "[run.events_lost]" in told
    assert "Traceback" not in told


@pytest.mark.parametrize("target", ["99", "/nowhere/events.jsonl"])
def test_events_that_have_nowhere_to_go_are_bad_usage(tmp_path, target):
    with command(tmp_path, make_job(tmp_path), "--events", target) as process:
        assert process.wait() == 2
        assert "[run.events]" in process.stderr.read()
    assert not (tmp_path / "run").exists()


def test_a_job_in_json_may_escape_what_lies_beyond_ascii(tmp_path):
    pair = make_pair(tmp_path)
    recipe = make_recipe().model_copy(update={"name": "distil \N{ALEMBIC}\N{THINKING FACE}"})
    job = make_job(tmp_path, pair=pair, recipe=recipe)
    with command(tmp_path, job, "--events", "/dev/full") as process:
        assert process.wait() == 1
        assert "[run.events_lost]" in process.stderr.read()


def with_stage(recipe, **knobs):
    """The recipe and one more stage like its first."""
    document = recipe.model_dump()
    document["stages"] += (document["stages"][0] | knobs,)
    return type(recipe).model_validate(document)


def test_a_prompt_too_long_for_a_later_stage_is_refused_before_anything_is_measured(tmp_path):
    recipe = with_stage(make_recipe(), max_prompt_tokens=4)
    info = refused(tmp_path, recipe=recipe)
    assert (info.code, info.field.startswith("prompt_sets.")) == ("prompt_set.too_long", True)


def test_a_long_train_prompt_is_refused_before_the_baseline_is_measured(tmp_path):
    job = make_job(tmp_path, recipe=make_recipe(steps=8))
    rows = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    rows[3]["prompt"] = "word " * 400
    train = write_prompts(tmp_path / "train.jsonl", rows)
    sets = job.prompt_sets.model_copy(update={"train": PromptFile(path=train)})
    with pytest.raises(BadInput) as refusal:
        events_of(job.model_copy(update={"prompt_sets": sets}), tmp_path / "run")
    assert refusal.value.info.field == "prompt_sets.train, row 4"
    assert not list((tmp_path / "run").glob("*"))


def test_a_template_that_renders_nothing_is_refused(tmp_path):
    student, teacher = make_pair(tmp_path)
    (student / "chat_template.jinja").write_text("{{ '' }}")
    info = refused(tmp_path, pair=(student, teacher))
    assert info.code == "prompt_set.renders_empty"


@pytest.mark.parametrize("role", ["teacher_content", "outside"])
def test_what_this_version_does_not_use_is_refused_and_not_passed_over(tmp_path, role):
    job = make_job(tmp_path)
    sets = job.prompt_sets.model_copy(update={role: job.prompt_sets.train})
    with pytest.raises(BadInput) as refusal:
        events_of(job.model_copy(update={"prompt_sets": sets}), tmp_path / "run")
    info = refusal.value.info
    assert (info.code, info.field) == ("job.unheeded", f"prompt_sets.{role}")


def test_a_start_that_is_not_there_is_refused(tmp_path):
    info = refused(tmp_path, start={"path": str(tmp_path / "nowhere")})
    assert (info.code, info.field) == ("start.unreadable", "start")


def test_what_the_student_cannot_do_is_refused_before_the_baseline_is_measured(tmp_path):
    pair = [make_folder(tmp_path / side, "gemma") for side in ("student", "teacher")]
    recipe = make_recipe(sampling_precision="bfloat16")
    info = refused(tmp_path, pair=pair, recipe=recipe)
    assert (info.code, info.field) == (
        "recipe.sampling_precision", "recipe.stages.0.sampling_precision"
    )  # fmt: skip


def test_several_devices_are_refused_and_not_passed_over(tmp_path):
    resources = {"train": {"devices": ["cpu"]}, "teacher": {"devices": ["cuda:1"]}}
    info = refused(tmp_path, resources=resources)
    assert (info.code, info.field) == ("resources.several", "resources")


@pytest.mark.parametrize(
    ("devices", "code"),
    [(["cpu:0", "cuda:9"], "device.missing"), (["cpu:0", "meta"], "device.missing")],
)
def test_devices_that_cannot_train_together_are_refused(tmp_path, devices, code):
    info = refused(tmp_path, resources={"train": {"devices": devices}})
    assert (info.code, info.field) == (code, "resources.train.devices")


def test_a_server_of_the_jobs_own_is_refused_to_several_processes(tmp_path):
    student, teacher = make_pair(tmp_path)
    served = {"model": {"kind": "local", "path": str(teacher)}, "served": {}}
    info = refused(
        tmp_path,
        pair=(student, teacher),
        teachers=[served],
        resources={"train": {"devices": ["cpu:0", "cpu:1"]}},
    )
    assert (info.code, info.field) == ("teachers.own_server", "teachers.0.served")
    assert not ServedTeacher(shared="servers/one").is_the_jobs_alone


def test_a_start_with_adapters_that_are_not_merged_is_refused(tmp_path):
    start = tmp_path / "start"
    start.mkdir()
    save_file({"q_proj.base_layer.weight": torch.zeros(2, 2)}, start / "model.safetensors")
    info = refused(tmp_path, start={"path": str(start)})
    assert (info.code, info.field) == ("start.adapters", "start")
