"""Settings as people write them: read, overridden, checked for contradictions, and written."""

from jaxpref.settings.flags import (
    for_all_models,
    named,
    numbers,
    parse_policies,
    weighted_policies,
)
from jaxpref.settings.keys import keys, keys_help
from jaxpref.settings.problems import described
from jaxpref.settings.reading import (
    as_json,
    check_made,
    check_mapping,
    load_config,
    make_config,
    merged_settings,
    save_config,
    to_dict,
    with_settings,
)

__all__ = [
    "as_json",
    "check_made",
    "check_mapping",
    "described",
    "for_all_models",
    "keys",
    "keys_help",
    "load_config",
    "make_config",
    "merged_settings",
    "named",
    "numbers",
    "parse_policies",
    "save_config",
    "to_dict",
    "weighted_policies",
    "with_settings",
]
