"""Lists of datasets in YAML, as axolotl and `trl dpo` take them: each a path with its keys."""

from collections.abc import Mapping
from typing import Any

from jaxpref.from_trl.source import Source

_DEFAULTS = {"split": "train"}
_READ = ("path", "split", "name", "ds_type", "data_files")


def add_datasets(
    source: Source, options: dict[str, Any], datasets: Any, name: str, split: str
) -> None:
    """The option `name`, with all paths, and what one split and one config are for all of them.

    Args:
        split: the option that names the split.
    """
    items = [item if isinstance(item, Mapping) else {"path": item} for item in datasets or []]
    paths: list[Any] = []
    for own in items:
        files = own.get("data_files")
        files = (files if isinstance(files, list) else [files]) if files else [own.get("path")]
        paths += files
        other = [key for key, value in own.items() if key not in _READ and value]
        if other:
            shown = own.get("path") or ", ".join(map(str, files))
            source.remarks.append(
                f"{shown}: how its rows are read ({', '.join(map(str, other))}) is told by "
                "data.format and data.columns; see `jaxpref data CONFIG.yaml`"
            )
    for key, option in (("split", split), ("name", "dataset_config")):
        values = [own.get(key) for own in items]
        if len({value or _DEFAULTS.get(key) for value in values}) > 1:
            source.remarks.append(
                f"{key} differs among the datasets ({', '.join(map(str, values))}), and there is "
                "one for all of data.train: write the rows into files"
            )
        elif values and values[0]:
            options[option] = values[0]
    if paths:
        options[name] = paths
