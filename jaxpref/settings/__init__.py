"""Settings as people write them: read, overridden, checked for contradictions, and written."""

from jaxpref.settings.flags import for_all_models, named, numbers
from jaxpref.settings.reading import (
    keys,
    load_config,
    make_config,
    merged_settings,
    save_config,
    to_dict,
)

__all__ = [
    "for_all_models",
    "keys",
    "load_config",
    "make_config",
    "merged_settings",
    "named",
    "numbers",
    "save_config",
    "to_dict",
]
