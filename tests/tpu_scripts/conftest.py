"""What the tests of tpu_scripts share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from site_of_scripts import Site


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Nothing of it runs on when the test is over."""
    (tmp_path / "site").mkdir()
    site = Site(tmp_path / "site")
    yield site
    for name in site.cloud.resources:
        site.cloud.take_away(name)
