"""The form of a new run: filled in, checked while it is typed, launched whole or not at all."""

import html
import json
import shlex

import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import storages

from opdcore.contract.recipe import Recipe as RecipeDocument
from opdcore.inspection import DeclaredIds, ModelCard
from tests.webapp.rows import RECIPE, make_pair, make_prompt_set, make_recipe, make_run
from webapp.models import Recipe, Run
from webapp.services import estimates, launch_preview

TURNED = (
    "steps", "learning_rate", "prompts_per_step", "rollouts_per_prompt", "max_response_tokens", "k",
    "evaluate_steps", "checkpoint_steps",
)  # fmt: skip
NO_IDS = DeclaredIds(tokenizer=(), config=(), generation_config=())


@pytest.fixture
def parts(project):
    """A pair, two prompt sets that share one prompt, and a recipe with a verifier."""
    document = RECIPE | {"evaluation": RECIPE["evaluation"] | {"verifier": "exact"}}
    pair = make_pair(project, "Laboratory, sums", is_laboratory=True)
    return {
        "pair": pair,
        "train": stored(project, "sums train", ["1+1?", "2+2?", "3+3?"]),
        "held_out": stored(project, "sums held out", ["3+3?", "4+4?"]),
        "recipe": make_recipe(project, "Laboratory, sums", document=document),
    }


def stored(project, name, prompts):
    lines = "".join(json.dumps({"prompt": text, "answer": "1"}) + "\n" for text in prompts)
    key = storages["prompts"].save(f"{name}.jsonl", ContentFile(lines.encode()))
    return make_prompt_set(
        project,
        name,
        storage_key=key,
        rows=len(prompts),
        sha256=str(len(lines)).rjust(64, "0"),
        stats={"answers": len(prompts)},
    )


def form_of(parts, **changes):
    chosen = {name: part.public_id for name, part in parts.items()}
    return chosen | {"device": "", "threads": "", "name": ""} | changes


def knobs_of(recipe, **changes):
    """The knobs as the page shows them, with some turned."""
    stage, evaluation = recipe.document["stages"][0], recipe.document["evaluation"]
    shown = {f"stages.0.{name}": stage[name] for name in TURNED}
    shown |= {f"evaluation.{name}": evaluation[name] for name in ("prompts", "samples_per_prompt")}
    turned = {f"stages.0.{name}": value for name, value in changes.items()}
    return shown | turned | {"knobs_of": recipe.public_id}


def make_card(parameters=1000):
    return ModelCard(
        architecture="LlamaForCausalLM", model_type="llama", parameters=parameters,
        weights_bytes=4 * parameters, dtypes=("float32",), quantization=None, vocabulary=100,
        padded_vocabulary=128, context_length=512, hidden_size=8, layers=2, heads=2, kv_heads=2,
        head_dim=4, intermediate_size=16, tied_embeddings=True, chat_template_sha256=None,
        bos=NO_IDS, eos=NO_IDS, pad=NO_IDS, token_map_sha256="0" * 64, weights_fingerprint="f",
    ).model_dump(mode="json")  # fmt: skip


def test_the_laboratory_is_filled_in_and_one_press_launches_it(browse, member, parts):
    client = browse(member)
    form = client.get("/runs/new/").context["form"]
    filled = {name: form[name].value() for name in ("pair", "train", "held_out", "recipe")}
    assert filled == {name: part.public_id for name, part in parts.items()}
    answer = client.post("/runs/new/", filled)
    run = Run.objects.get()
    assert answer["Location"] == f"/runs/{run.public_id}/"
    assert (run.status, run.created_by, run.held_out_set) == ("queued", member, parts["held_out"])
    assert (run.recipe, run.resources) == (parts["recipe"], {})


def test_turned_knobs_become_a_version_of_the_recipe(browse, member, parts):
    recipe = parts["recipe"]
    browse(member).post("/runs/new/", form_of(parts, **knobs_of(recipe, steps="7")))
    run = Run.objects.get()
    assert (run.recipe.name, run.recipe.version) == ("Laboratory, sums", 2)
    assert run.recipe != recipe
    assert run.steps_total == 7
    assert run.snapshot["recipe"]["document"]["stages"][0]["steps"] == 7


def test_a_preset_stays_as_it_is(browse, member, parts):
    Recipe.objects.update(is_preset=True)
    browse(member).post("/runs/new/", form_of(parts, **knobs_of(parts["recipe"], steps="7")))
    assert Run.objects.get().recipe.name == "Laboratory, sums, adjusted"


def test_knobs_that_are_not_turned_make_no_version(browse, member, parts):
    browse(member).post("/runs/new/", form_of(parts, **knobs_of(parts["recipe"])))
    assert Run.objects.get().recipe == parts["recipe"]
    assert Recipe.objects.count() == 1


def test_knobs_of_the_recipe_chosen_before_are_left_out(browse, member, parts, project):
    other = make_recipe(project, "Other")
    form = form_of(parts, **knobs_of(parts["recipe"], steps="7")) | {"recipe": other.public_id}
    browse(member).post("/runs/new/", form | {"held_out": ""})
    assert Run.objects.get().recipe == other


@pytest.mark.parametrize(
    "case",
    [
        ("learning_rate", "0", "Give more than 0"),
        ("learning_rate", "nan", "not finite"),
        ("steps", "many", "no whole number"),
        ("steps", "", "no whole number"),
    ],
)
def test_an_unsound_knob_is_told_at_its_field_and_saves_nothing(browse, member, parts, case):
    knob, value, told = case
    form = form_of(parts, **knobs_of(parts["recipe"], **{knob: value}))
    answer = browse(member).post("/runs/new/", form)
    assert answer.status_code == 422
    assert told in str(answer.context["knobs"].errors[f"stages.0.{knob}"])
    assert (Run.objects.count(), Recipe.objects.count()) == (0, 1)


def test_a_refused_launch_leaves_no_recipe_behind(browse, member, parts):
    form = form_of(parts, **knobs_of(parts["recipe"], steps="7")) | {"held_out": ""}
    answer = browse(member).post("/runs/new/", form)
    assert answer.status_code == 422
    assert "no held-out set is chosen" in str(answer.context["form"].errors["held_out"])
    assert (Run.objects.count(), Recipe.objects.count()) == (0, 1)


def test_different_token_maps_are_told_at_the_pair(browse, member, parts):
    pair = parts["pair"]
    pair.token_map_report = {"verdict": "different", "summary": "48 ids differ.", "teachers": {}}
    pair.save()
    answer = browse(member).post("/runs/new/check/", form_of(parts))
    assert b"48 ids differ. Choose a teacher" in answer.content
    assert b"Cannot be launched yet" in answer.content


def test_the_check_warns_of_shared_prompts_and_shows_the_job(browse, member, parts):
    page = browse(member).post("/runs/new/check/", form_of(parts)).content.decode()
    assert "1 of 2 held-out prompts are also in" in page
    assert "Ready to launch" in page
    assert "python -m opdcore run job.json" in page
    assert f"&quot;pair&quot;: &quot;{parts['pair'].public_id}&quot;" in page
    assert not Run.objects.exists()


def test_a_name_cannot_leave_the_quotes_of_the_command(browse, member, parts):
    form = form_of(parts, name="it's; rm -rf ~")
    page = browse(member).post("/runs/new/check/", form).content.decode()
    command = html.unescape(page.partition("curl -X POST")[2].partition("</pre>")[0])
    body = shlex.split("curl" + command)[-1]
    assert json.loads(body)["name"] == "it's; rm -rf ~"


def test_the_check_of_an_unfinished_form_points_at_nothing(browse, member, parts):
    page = browse(member).post("/runs/new/check/", {"recipe": parts["recipe"].public_id})
    assert b"Choose a pair, prompts and a recipe" in page.content
    assert b'role="alert"' not in page.content


def test_the_needs_follow_the_recipe(project, parts):
    pair = parts["pair"]
    assert estimates.of(pair, parts["recipe"].contract) is None
    for model in (pair.student, pair.teachers.get().model):
        model.card = make_card()
        model.save()
    pair = type(pair).objects.get(pk=pair.pk)
    found = estimates.of(pair, parts["recipe"].contract)
    assert "rough" in found.basis
    made_of = {"pair": pair, "recipe": parts["recipe"], "train_set": parts["train"]}
    make_run(project, name="Before", status="succeeded", seconds=30.0, **made_of)
    measured = estimates.of(pair, parts["recipe"].contract)
    assert measured.seconds == pytest.approx(30.0)
    assert measured.basis == "at the pace of Before"


@pytest.mark.parametrize(
    "stage",
    [
        {"kind": "reinforce", "steps": 4},
        {"kind": "cold_start", "steps": 4, "prompts": 64},
    ],
)
def test_the_needs_count_every_stage_that_trains(project, parts, stage):
    pair = parts["pair"]
    for model in (pair.student, pair.teachers.get().model):
        model.card = make_card()
        model.save()
    pair = type(pair).objects.get(pk=pair.pk)
    distil = parts["recipe"].contract.stages[0].model_dump(mode="json")
    alone, both, twice = (
        estimates.of(pair, RecipeDocument.model_validate(RECIPE | {"stages": stages}))
        for stages in ([stage], [distil, stage], [distil, stage, stage])
    )
    assert alone.memory.peak_memory_bytes > 0
    assert twice.seconds - both.seconds > 0
    assert both.seconds > estimates.of(pair, parts["recipe"].contract).seconds


def test_the_teacher_scores_nothing_in_a_reinforce_stage(project, parts):
    pair = parts["pair"]
    for model in (pair.student, pair.teachers.get().model):
        model.card = make_card()
        model.save()
    pair = type(pair).objects.get(pk=pair.pk)
    for weight, scored in ((0.0, False), (0.1, True)):
        stage = {"kind": "reinforce", "steps": 4, "initial_kl_weight": weight}
        found = estimates.of(pair, RecipeDocument.model_validate(RECIPE | {"stages": [stage]}))
        seconds = {row.label: row.amount for row in found.memory.time}
        assert (seconds["teacher scoring"] > 0) is scored


def test_a_reinforce_stage_without_a_verifier_cannot_be_launched(browse, member, project, parts):
    evaluation = RECIPE["evaluation"] | {"verifier": "none"}
    document = RECIPE | {"stages": [{"kind": "reinforce"}], "evaluation": evaluation}
    recipe = make_recipe(project, "Unverified", document=document)
    page = browse(member).post("/runs/new/check/", form_of(parts | {"recipe": recipe}))
    assert "its verifier is none" in page.content.decode()
    assert "Cannot be launched yet" in page.content.decode()
    assert "The recipe has no verifier." not in page.content.decode()


def test_the_knobs_of_a_reinforcement_can_be_turned_at_launch(browse, member, project, parts):
    evaluation = RECIPE["evaluation"] | {"verifier": "exact"}
    document = RecipeDocument.model_validate(
        RECIPE | {"stages": [{"kind": "reinforce"}], "evaluation": evaluation}
    ).model_dump(mode="json")
    recipe = make_recipe(project, "Reinforced", document=document)
    form = form_of(parts | {"recipe": recipe}, **{"stages.0.steps": "5"})
    shown = {f"stages.0.{k}": v for k, v in document["stages"][0].items() if k in TURNED}
    turned = {f"evaluation.{k}": evaluation[k] for k in ("prompts", "samples_per_prompt")}
    told = shown | turned | form | {"knobs_of": recipe.public_id}
    browse(member).post("/runs/new/", told)
    assert Run.objects.get().steps_total == 5


def test_equal_sets_share_every_prompt(parts):
    assert launch_preview.shared_prompts(parts["held_out"], parts["held_out"]) == 2


def test_a_changed_copy_starts_from_its_parent(browse, member, project, parts):
    sets = {"train_set": parts["train"], "held_out_set": parts["held_out"]}
    parent = make_run(project, name="First", pair=parts["pair"], recipe=parts["recipe"], **sets)
    client = browse(member)
    form = client.get(f"/runs/new/?from={parent.public_id}").context["form"]
    assert (form["name"].value(), form["parent"].value()) == ("First again", parent.public_id)
    client.post("/runs/new/", form_of(parts, parent=parent.public_id))
    child = Run.objects.exclude(pk=parent.pk).get()
    assert (child.parent, child.relation) == (parent, "clone")


def test_devices_and_threads_reach_the_run(browse, member, parts):
    browse(member).post("/runs/new/", form_of(parts, threads="2"))
    assert Run.objects.get().resources["train"]["threads"] == 2


@pytest.fixture
def cups(project):
    """Another laboratory family, as `parts` is one."""
    return {
        "pair": make_pair(
            project, "Laboratory, cups: a teacher of another style", is_laboratory=True
        ),
        "train": make_prompt_set(project, "cups train"),
        "held_out": make_prompt_set(project, "cups held out"),
        "recipe": make_recipe(project, "Laboratory, cups"),
    }


def moved(client, parts, **changes):
    """The parts as they stand after the form was sent because its pair was changed."""
    form = form_of(parts, parts_of=parts["pair"].public_id, **changes)
    answer = client.post("/runs/new/parts/", form)
    if answer.status_code == 204:
        return None
    return {name: answer.context["form"][name].value() for name in parts}


def test_another_laboratory_pair_brings_its_prompts_and_recipe(browse, member, parts, cups):
    found = moved(browse(member), parts, pair=cups["pair"].public_id)
    assert found == {name: part.public_id for name, part in cups.items()}


def test_what_somebody_chose_stays_when_the_pair_changes(browse, member, project, parts, cups):
    mine = make_recipe(project, "Mine")
    client, pair = browse(member), cups["pair"].public_id
    found = moved(client, parts, pair=pair, recipe=mine.public_id, held_out="")
    assert found == {"pair": pair, "train": cups["train"].public_id,
                     "held_out": "", "recipe": mine.public_id}  # fmt: skip


def test_a_pair_of_ones_own_moves_nothing(browse, member, project, parts, cups):
    own = make_pair(project, "mine")
    assert moved(browse(member), parts, pair=own.public_id) is None
    assert moved(browse(member), parts) is None


def test_turned_knobs_stay_where_the_recipe_does(browse, member, parts, cups):
    form = form_of(parts, parts_of=parts["pair"].public_id, pair=cups["pair"].public_id)
    mine = make_recipe(parts["pair"].project, "Mine")
    form |= {"recipe": mine.public_id} | knobs_of(mine, steps=77)
    page = browse(member).post("/runs/new/parts/", form).content.decode()
    assert 'value="77"' in page


def test_parts_are_moved_for_members_of_the_project_alone(browse, stranger, member, parts):
    assert browse(stranger).post("/runs/new/parts/", form_of(parts)).status_code == 404
    assert browse(member).get("/runs/new/parts/").status_code == 405


def test_knobs_are_those_of_the_recipe(browse, member, parts):
    page = browse(member).get(f"/runs/new/knobs/?recipe={parts['recipe'].public_id}")
    assert page.context["knobs"]["stages.0.steps"].value() == 3
    assert page["HX-Trigger-After-Settle"] == "knobs-changed"


def test_parts_of_another_project_cannot_be_chosen(browse, member, stranger, parts):
    answer = browse(stranger).get(f"/runs/new/knobs/?recipe={parts['recipe'].public_id}")
    assert answer.status_code == 404
    assert browse(stranger).get("/runs/new/").status_code == 404


def test_a_viewer_may_look_and_not_launch(browse, viewer, parts):
    client = browse(viewer)
    assert b"you need the role Member" in client.get("/runs/new/").content
    assert client.post("/runs/new/", form_of(parts)).status_code == 403
    assert not Run.objects.exists()


def test_the_check_wants_a_post(browse, member, project):
    assert browse(member).get("/runs/new/check/").status_code == 405


def test_what_a_project_lacks_is_named(browse, member, project):
    page = browse(member).get("/runs/new/").content.decode()
    assert "has no pair yet" in page
    assert "has no recipe yet" in page
