"""Files of pictures, one row each."""

from __future__ import annotations

from types import MappingProxyType

from integrand.workers.data.formats.base import SourceFormat


class Images(SourceFormat):
    """Asked for by name alone: beside tables, pictures are no data."""

    name = "images"
    title = "pictures"
    extensions = ()
    endings = (".png", ".jpg", ".jpeg", ".webp")
    """What its files' names end in, in lower case; others in the folder are no rows."""
    near = MappingProxyType(
        dict.fromkeys(endings, "for a row of each picture: source.format: images")
    )
