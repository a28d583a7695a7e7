"""The first visit: seeded once, with a log-in that is said until its password is changed."""

import re
import stat

from webapp.models import Pair, Project, PromptSet, Recipe, RegisteredModel, User
from webapp.services import demo

SEEDED = (Project, RegisteredModel, Pair, PromptSet, Recipe, User)


def counts():
    return {model.__name__: model.objects.count() for model in SEEDED}


def test_seeding_again_changes_nothing(db):
    demo.seed(tell=lambda text: None)
    first = counts()
    assert (first["Project"], first["User"]) == (1, 1)
    assert first["Recipe"] >= 4
    demo.seed(tell=lambda text: None)
    assert counts() == first


def test_the_first_password_logs_in_and_is_kept_secret(db, client, settings):
    lines = demo.seed(tell=lambda text: None)
    password = re.search(r"password (\S+)", lines[0])[1]
    assert client.login(username="admin", password=password)
    mode = (settings.STATE_DIR / "first_password").stat().st_mode
    assert stat.S_IMODE(mode) == 0o600


def test_a_changed_password_is_no_longer_said(db, settings):
    demo.seed(tell=lambda text: None)
    admin = User.objects.get()
    admin.set_password("another one, mine")
    admin.save()
    assert "with your password" in demo.seed(tell=lambda text: None)[0]
    assert not (settings.STATE_DIR / "first_password").exists()


def test_the_laboratorys_pairs_share_their_tokens(db):
    demo.seed(tell=lambda text: None)
    for pair in Pair.objects.all():
        assert pair.is_laboratory
        assert pair.token_map_report["verdict"] != "different"
    assert set(PromptSet.objects.values_list("state", flat=True)) <= {"ready"}
