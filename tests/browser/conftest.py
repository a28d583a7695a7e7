"""What all tests in a real browser share."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def rows_beside_playwright():
    """Playwright's loop runs in this thread, and Django takes every loop for its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
        yield
