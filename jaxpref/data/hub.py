"""Files of data sets on the Hugging Face hub, on this host's disk.

They are read here as local files are.  `datasets` would make times of texts such as "2024-01-31",
and one type of all numbers under a key.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

_URL = re.compile("hf://datasets/(?P<id>[^/]+/[^/@]+)@(?P<revision>[^/]+)/(?P<file>.+)")


def files_by_split(config: Any) -> dict[str, list[str]]:
    """Split -> its files, as a configuration of a data set's builder names them."""
    found = config.data_files or {}
    return {str(split): [str(file) for file in files] for split, files in found.items()}


def downloaded(files: list[str]) -> Mapping[Path, str]:
    """Local copy -> what the file is called, for files named as `hf://datasets/ID@REVISION/FILE`.

    Each is downloaded once, into the directory of `huggingface_hub`.
    """
    from huggingface_hub import hf_hub_download

    copies = {}
    for url in files:
        name = _URL.fullmatch(url)
        if name is None:
            raise ValueError(f"{url} names no file of a data set")
        copy = hf_hub_download(
            name["id"], name["file"], repo_type="dataset", revision=unquote(name["revision"])
        )
        copies[Path(copy)] = f"{name['id']}/{name['file']}"
    return copies


def snapshot(name: str) -> Path | None:
    """What was downloaded of a data set before, for a host without the hub; None: nothing."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, repo_type="dataset", local_files_only=True))
    except LocalEntryNotFoundError:
        return None
