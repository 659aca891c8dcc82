"""Small copies of the pictures of prompts, for pages that load nothing."""

import base64
import io

from jaxpref.data.pictures.decode import decoded, stored_bytes
from jaxpref.types import Group

_SIDE = 256
"""Pixels, at most."""


def thumbnails(prompt: Group) -> list[str]:
    """A prompt's pictures as `data:` URLs.

    Errors: RowError for a picture that cannot be decoded.
    """
    urls = []
    for picture in prompt.pictures:
        image = decoded(stored_bytes(picture, prompt.where), prompt.where)
        image.thumbnail((_SIDE, _SIDE))
        file = io.BytesIO()
        image.save(file, "PNG")
        urls.append(f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}")
    return urls
