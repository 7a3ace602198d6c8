"""What all tests share."""

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:
    # workers share the cores; with threads of their own as well they wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# a busy machine is no failure
settings.register_profile("adabet", deadline=None)
settings.load_profile("adabet")


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium; not for the whole session, since its event loop would be in the way of others."""
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data and weights, which the environment names."""
    folder = os.environ.get("ADABET_DATA")
    if not folder:
        pytest.skip("needs real data: set ADABET_DATA to its folder")
    return Path(folder)
