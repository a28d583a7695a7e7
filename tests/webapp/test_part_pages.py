"""Pages of models, pairs, prompt sets and recipes: what they save, and what they say."""

import json
import shutil

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connection
from django.urls import reverse

from opdcore.lab.record import shipped
from opdcore.lab.tasks import FAMILIES
from tests.webapp.rows import make_recipe, make_run
from webapp.models import ModelRoot, Pair, PromptSet, Recipe, RegisteredModel
from webapp.services import checkpoints, model_roots
from webapp.services import pairs as pair_service

LAB = {family: shipped(family) for family in FAMILIES}


@pytest.fixture
def lab(project, admin):
    """The laboratory's folders, allowed; registers one of its models."""
    model_roots.add(str(LAB["sums"].parent), project=project, actor=admin)

    def register(family, name):
        path = str(LAB[family] / name)
        return checkpoints.register_local(f"{family} {name}", path, project=project, actor=admin)

    return register


def side(model, **knobs):
    return {"model": model.public_id, "chat_template": "auto", "thinking": "", **knobs}


def pair_form(student, teacher, **fields):
    form = {"teachers": "1", "action": "save", "name": "mine", "preview_prompt": "2 + 2"}
    form |= {f"student-{name}": value for name, value in side(student).items()}
    form |= {f"teacher-0-{name}": value for name, value in side(teacher, weight="1").items()}
    return form | fields


def test_a_folder_is_inspected_and_registered(project, admin, member, browse):
    model_roots.add(str(LAB["sums"].parent), project=project, actor=admin)
    form = {"source": "local", "path": str(LAB["sums"] / "student"), "name": ""}
    answer = browse(member).post(reverse("model-new"), form, follow=True)
    model = RegisteredModel.objects.get()
    assert (model.name, model.state) == ("student", "ready")
    assert model.card["vocabulary"] > 300
    assert "student is registered" in answer.content.decode()


def test_a_folder_outside_the_roots_is_refused_links_resolved(
    project, admin, member, browse, tmp_path
):
    root = tmp_path / "models"
    root.mkdir()
    (root / "link").symlink_to(LAB["sums"] / "student")
    model_roots.add(str(root), project=project, actor=admin)
    form = {"source": "local", "path": str(root / "link")}
    answer = browse(member).post(reverse("model-new"), form)
    assert answer.status_code == 422
    assert "[model.outside_roots]" in answer.content.decode()
    assert not RegisteredModel.objects.exists()


def test_the_state_folder_is_never_a_root(project, admin, browse, settings):
    answer = browse(admin).post(
        reverse("model-root-add"), {"path": str(settings.STATE_DIR)}, follow=True
    )
    assert "own state" in answer.content.decode()
    assert not ModelRoot.objects.exists()


def test_only_an_admin_allows_a_folder(maintainer, browse, tmp_path):
    answer = browse(maintainer).post(reverse("model-root-add"), {"path": str(tmp_path)})
    assert answer.status_code == 403


def test_a_folder_without_safetensors_is_refused_with_a_remedy(
    project, admin, member, browse, tmp_path
):
    folder = tmp_path / "models" / "student"
    shutil.copytree(LAB["sums"] / "student", folder)
    (folder / "model.safetensors").unlink()
    model_roots.add(str(tmp_path / "models"), project=project, actor=admin)
    answer = browse(member).post(reverse("model-new"), {"source": "local", "path": str(folder)})
    assert answer.status_code == 422
    assert "[model." in answer.content.decode()
    assert not RegisteredModel.objects.exists()


@pytest.mark.parametrize("path", ["~nobody-of-that-name/m", "models/student"])
def test_a_path_that_leads_nowhere_is_refused_at_its_field(member, browse, path):
    answer = browse(member).post(reverse("model-new"), {"source": "local", "path": path})
    assert answer.status_code == 422
    assert "Give the" in answer.context["local"].errors["path"][0]


def test_a_root_whose_name_is_too_long_is_no_folder(admin, browse):
    form = {"path": "/" + "a" * 300}
    answer = browse(admin).post(reverse("model-root-add"), form, follow=True)
    assert "is not a folder of this server" in answer.content.decode()


def test_a_file_that_cannot_be_read_is_told_and_leaves_no_row(
    project, admin, member, browse, tmp_path
):
    folder = shutil.copytree(LAB["sums"] / "student", tmp_path / "models" / "mine")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()
    model_roots.add(str(tmp_path / "models"), project=project, actor=admin)
    answer = browse(member).post(reverse("model-new"), {"source": "local", "path": str(folder)})
    assert answer.status_code == 422
    assert "[model.unreadable]" in answer.content.decode()
    assert not RegisteredModel.objects.exists()


def test_a_hub_model_has_no_folder_to_read_again(project, member, browse):
    model = checkpoints.register_hub("", "a/b", revision="main", project=project, actor=member)
    answer = browse(member).post(reverse("model-inspect", args=[model.public_id]), follow=True)
    assert "fetched and inspected at the launch" in answer.content.decode()
    assert RegisteredModel.objects.get().state == "registered"


def test_nobodys_write_waits_while_tokenizers_are_read(member, lab, monkeypatch):
    seen = []
    real = pair_service.compare

    def watched(*folders):
        # The test's own transaction is the one that stands around it.
        seen.append(len(connection.savepoint_ids))
        return real(*folders)

    monkeypatch.setattr(pair_service, "compare", watched)
    student, teacher = lab("sums", "student"), lab("sums", "teacher")
    around = len(connection.savepoint_ids)
    pair_service.create(
        "mine",
        project=student.project,
        actor=member,
        student=student,
        teachers=[pair_service.TeacherChoice(teacher)],
    )
    assert seen == [around]


def test_a_hub_repository_is_registered_by_name(member, browse):
    form = {"source": "hub", "repo": "Qwen/Qwen3-0.6B", "revision": "main"}
    browse(member).post(reverse("model-new"), form)
    model = RegisteredModel.objects.get()
    assert (model.state, model.repo, model.revision) == ("registered", "Qwen/Qwen3-0.6B", "main")


def test_a_model_of_a_pair_is_not_removed(project, admin, lab, browse):
    student, teacher = lab("sums", "student"), lab("sums", "teacher")
    browse(admin).post(reverse("pair-new"), pair_form(student, teacher))
    answer = browse(admin).post(reverse("model-delete", args=[student.public_id]), follow=True)
    assert "part of a pair" in answer.content.decode()
    assert RegisteredModel.objects.filter(pk=student.pk).exists()


def test_a_pair_with_one_token_map_is_made(member, lab, browse):
    answer = browse(member).post(
        reverse("pair-new"), pair_form(lab("sums", "student"), lab("sums", "teacher")), follow=True
    )
    pair = Pair.objects.get()
    assert pair.token_map_report["verdict"] == "same"
    assert pair.teachers.get().model.name == "sums teacher"
    assert "its token maps were compared" in answer.content.decode()


def test_a_pair_with_different_token_maps_is_refused_and_not_saved(member, lab, browse):
    form = pair_form(lab("sums", "student"), lab("cups", "teacher"))
    answer = browse(member).post(reverse("pair-new"), form)
    assert answer.status_code == 422
    assert "[pair.token_maps_differ]" in answer.content.decode()
    assert not Pair.objects.exists()


def test_the_check_shows_the_verdict_and_both_renderings_with_ids(member, lab, browse):
    form = pair_form(lab("sums", "student"), lab("cups", "teacher"))
    page = browse(member).post(reverse("pair-check"), form).content.decode()
    assert "Token ids mean different things on the two sides" in page
    assert page.count('class="token-prompt"') == 2
    assert "<sub>" in page


def test_another_teacher_is_added_without_saving(member, lab, browse):
    form = pair_form(lab("sums", "student"), lab("sums", "teacher"), action="add_teacher")
    page = browse(member).post(reverse("pair-new"), form).content.decode()
    assert 'name="teacher-1-model"' in page
    assert not Pair.objects.exists()


def test_an_unknown_stop_id_is_told_in_the_preview(member, lab, browse):
    form = pair_form(lab("sums", "student"), lab("sums", "teacher"))
    form["student-extra_stop_ids"] = "99999"
    page = browse(member).post(reverse("pair-check"), form).content.decode()
    assert "rendering.unknown_stop_id" in page


def test_a_pairs_page_shows_how_each_side_reads_a_prompt(member, lab, browse):
    browse(member).post(
        reverse("pair-new"), pair_form(lab("sums", "student"), lab("sums", "teacher"))
    )
    address = reverse("pair", args=[Pair.objects.get().public_id])
    page = browse(member).get(address, {"preview_prompt": "Count to <b>three</b>"})
    assert page.content.decode().count("Count to &lt;b&gt;three&lt;/b&gt;") >= 2


def upload(client, content, *, file="sums.jsonl"):
    form = {"name": "sums", "file": SimpleUploadedFile(file, content)}
    return client.post(reverse("prompt-set-new"), form, follow=True)


def test_an_uploaded_set_shows_its_rows(member, browse):
    answer = upload(browse(member), b'{"question": "2 + 2 = ?", "answer": "4"}\n')
    page = answer.content.decode()
    assert PromptSet.objects.get().state == "ready"
    assert "2 + 2 = ?" in page
    assert "from <code>question</code>" in page


def test_a_bad_row_is_shown_with_its_line(member, browse):
    page = upload(browse(member), b'{"prompt": "a"}\n{"prompt": ""}\n').content.decode()
    assert "Nothing was imported" in page
    assert "The prompt is empty." in page


def test_a_file_of_another_format_is_refused_at_its_field(member, browse):
    answer = upload(browse(member), b"x", file="sums.xlsx")
    assert answer.status_code == 422
    assert "[prompt_set.format]" in answer.content.decode()


def test_a_running_import_is_polled_and_then_the_page_reloads(project, member, browse):
    row = PromptSet.objects.create(
        project=project, name="a", version=1, state="importing", format="jsonl", source_name="a",
        source_bytes=1000, done_bytes=400,
    )  # fmt: skip
    address, polled = reverse("prompt-set", args=[row.public_id]), {"HX-Request": "true"}
    page = browse(member).get(address, headers=polled).content.decode()
    assert 'value="0.4000"' in page
    assert "<html" not in page
    PromptSet.objects.update(state="failed")
    assert browse(member).get(address, headers=polled).headers["HX-Refresh"] == "true"


def test_a_download_is_the_stored_file(member, browse):
    upload(browse(member), b'{"question": "2 + 2 = ?", "answer": "4"}\n')
    address = reverse("prompt-set-download", args=[PromptSet.objects.get().public_id])
    answer = browse(member).get(address)
    assert b"".join(answer) == b'{"prompt":"2 + 2 = ?","answer":"4"}\n'
    assert 'filename="sums-v1.jsonl"' in answer.headers["Content-Disposition"]


def test_a_deleted_set_can_be_brought_back(member, browse):
    upload(browse(member), b'{"prompt": "a"}\n')
    row = PromptSet.objects.get()
    delete = reverse("prompt-set-delete", args=[row.public_id])
    page = browse(member).post(delete, follow=True).content.decode()
    assert "sums v1 is deleted." in page
    browse(member).post(reverse("prompt-set-restore", args=[row.public_id]))
    assert PromptSet.objects.present().count() == 1


def recipe_form(**fields):
    form = {"name": "Mine", "description": "", "seed": "0", "stage_kinds": ["distill"]}
    from webapp.forms.recipe import RecipeForm
    from webapp.views.recipes import STARTING

    shown = RecipeForm.of(STARTING)
    form |= {key: shown.head.data.getlist(key) for key in shown.head.data if "." in key}
    return form | fields


def test_a_typed_recipe_is_saved_as_a_version(member, browse):
    form = recipe_form(**{"stages.0.k": "8", "action": "save"})
    answer = browse(member).post(reverse("recipe-new"), form)
    recipe = Recipe.objects.get()
    assert answer.headers["Location"] == reverse("recipe", args=[recipe.public_id])
    assert (recipe.name, recipe.version, recipe.contract.stages[0].k) == ("Mine", 1, 8)


def test_an_unsound_recipe_is_shown_again_with_its_fault(member, browse):
    form = recipe_form(**{"stages.0.learning_rate": "0", "action": "save"})
    answer = browse(member).post(reverse("recipe-new"), form)
    assert answer.status_code == 422
    assert "0 is too small. Give more than 0." in answer.content.decode()
    assert not Recipe.objects.exists()


def test_a_stage_is_added_without_saving(member, browse):
    answer = browse(member).post(reverse("recipe-new"), recipe_form(action="add:evaluate"))
    assert answer.content.decode().count('name="stage_kinds"') == 2
    assert not Recipe.objects.exists()


def test_the_check_while_typing_names_each_fault(viewer, browse):
    answer = browse(viewer).post(reverse("recipe-check"), recipe_form(**{"stages.0.k": "x"}))
    assert list(json.loads(answer.content)["faults"]) == ["stages.0.k"]


def test_yaml_goes_out_and_comes_in(project, member, browse):
    recipe = make_recipe(project)
    yaml = browse(member).get(reverse("recipe-download", args=[recipe.public_id])).content
    text = yaml.decode().replace("steps: 3", "steps: 5")
    browse(member).post(reverse("recipe-import"), {"text": text})
    newest = Recipe.objects.newest().get()
    assert (newest.version, newest.contract.stages[0].steps) == (2, 5)


def test_bad_yaml_names_path_and_line(member, browse):
    text = "name: a\nstages:\n  - {kind: distill, topk: 3}\n"
    answer = browse(member).post(reverse("recipe-import"), {"text": text})
    assert answer.status_code == 422
    assert "stages.0.topk (line 3)" in answer.content.decode()


def test_a_recipes_page_shows_the_difference_to_the_version_before(project, member, browse):
    first = make_recipe(project)
    stages = [{**first.document["stages"][0], "k": 8}]
    second = make_recipe(project, version=2, document={**first.document, "stages": stages})
    page = browse(member).get(reverse("recipe", args=[second.public_id])).content.decode()
    assert "<del>16</del>" in page
    assert "<ins>8</ins>" in page


def test_lists_count_runs(project, member, browse):
    make_run(project, pair=make_run(project).pair)
    page = browse(member).get(reverse("pairs")).content.decode()
    assert '<td data-label="Runs" class="num">2</td>' in page


def test_a_student_becomes_its_own_teacher_under_a_rule(project, member, browse, lab):
    student = lab("sums", "student")
    told = {
        "source": "rule",
        "rule": "Think first.",
        "form": "{privileged} {prompt}",
        "follows": "average",
    }
    own = {f"teacher-0-{name}": value for name, value in told.items()}
    answer = browse(member).post(
        reverse("pair-new"), pair_form(student, student, **own), follow=True
    )
    teaching = Pair.objects.get().teachers.get().teaching
    assert (teaching.privileged.rule, teaching.follows) == ("Think first.", "average")
    page = answer.content.decode()
    assert "one rule: Think first." in page
    assert "a moving average of the student" in page
    # The preview shows what the teacher alone reads.
    assert page.count("Think first. What is 2 + 2?") == 1


def test_a_privileged_text_without_its_rule_is_refused_at_its_field(project, member, browse, lab):
    student = lab("sums", "student")
    form = pair_form(student, student) | {"teacher-0-source": "rule"}
    answer = browse(member).post(reverse("pair-new"), form)
    assert answer.status_code == 422
    assert "give rule with source rule" in answer.content.decode()
    assert not Pair.objects.exists()


def test_another_model_cannot_follow_the_student(project, member, browse, lab):
    form = pair_form(lab("sums", "student"), lab("sums", "teacher"))
    form |= {"teacher-0-follows": "average"}
    answer = browse(member).post(reverse("pair-new"), form)
    assert answer.status_code == 422
    assert "teachers.follows_other" in answer.content.decode()
