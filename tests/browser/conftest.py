"""What all tests in a real browser share."""

import pytest

from tests.browser.application import running


@pytest.fixture(scope="session", autouse=True)
def rows_beside_playwright():
    """Playwright's loop runs in this thread, and Django takes every loop for its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
        yield


@pytest.fixture(scope="session")
def application(tmp_path_factory):
    """The whole application, as `make demo` starts it; journeys share it, each with runs of its own."""
    with running(tmp_path_factory.mktemp("state")) as started:
        yield started
