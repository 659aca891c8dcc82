"""Users' own functions, imported by the name of where they are."""

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxpref.errors import InputError


def import_named(where: str) -> Any:
    """What `package.module:name` or `FILE.py:name` names.

    Errors: InputError when there is no such thing, or its module cannot be imported.
    """
    module, _, name = where.rpartition(":")
    try:
        loaded = _file(module) if module.endswith(".py") else importlib.import_module(module)
        return getattr(loaded, name)
    except (ImportError, AttributeError, OSError, SyntaxError) as error:
        raise InputError(
            "module:function of an importable module, or FILE.py:function",
            f"{where!r}: {error}",
            "check the path and the name; a module must be importable from this directory",
        ) from error
    except SystemExit as error:  # would end the command, by exit(0) as if all were done
        raise InputError(
            "a module that can be imported",
            f"{where!r}: it ends the program (SystemExit: {error.code})",
            'put what it does as a program below `if __name__ == "__main__":`',
        ) from error


def _file(path: str) -> ModuleType:
    file = Path(path).expanduser()
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
