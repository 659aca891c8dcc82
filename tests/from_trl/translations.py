"""What the tests of translations share."""

import yaml

from jaxpref.from_trl import command
from jaxpref.from_trl.writing import as_yaml
from jaxpref.settings import make_config


def translated(words, trainer=None):
    return as_yaml(command.translated(words, trainer))


def written(tmp_path, name, text, **options):
    path = tmp_path / name
    path.write_text(text)
    return translated([str(path)], **options)


def loaded(text):
    """The settings of a translation, which must be valid."""
    settings = yaml.safe_load(text)
    make_config(settings)
    return settings


def comments(text):
    joined = text.replace("\n#  ", "")
    return [line[2:] for line in joined.splitlines() if line.startswith("# ")]
