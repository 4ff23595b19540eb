from __future__ import annotations

from pathlib import Path

import pytest

from tests.fleet.real.models import make_models


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with all six models."""
    return make_models(tmp_path_factory.mktemp("models"))
