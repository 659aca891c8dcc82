"""Objectives are many small programs: most of what their tests took was XLA optimising each."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def compiled_quickly(quick_compile):
    pass
