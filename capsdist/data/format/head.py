"""What an index says at first sight, read without numpy: images, classes, sizes of shards."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from capsdist.data.format.packed import (
    ENCODED,
    FORMAT,
    IMAGE,
    INDEX_NAME,
    LABELS,
    LOCATION,
    MAX_INDEX_BYTES,
    RECIPES,
    TABLE_NAME,
    TAR_NAME,
    check_unaltered,
)
from capsdist.errors import DataError, DocumentError
from capsdist.storage import open_folder
from capsdist.storage.documents import parse_document

__all__ = ["Head", "parse_head", "read_head"]


class TableHead(BaseModel):
    """The part of an index of encoded images that says how large the table of a shard is."""

    model_config = ConfigDict(extra="ignore")

    name: Annotated[str, Field(pattern=f"^{TABLE_NAME}$")]
    size_bytes: PositiveInt


class ShardHead(BaseModel):
    """The part of an index that says how large a shard is."""

    model_config = ConfigDict(extra="ignore")

    name: Annotated[str, Field(pattern=f"^{TAR_NAME}$")]
    size_bytes: PositiveInt
    table: TableHead | None = None


class FieldHead(BaseModel):
    """The part of an index that says what a field of a sample is."""

    model_config = ConfigDict(extra="ignore")

    name: str
    shape: tuple[PositiveInt, ...]


class BaseHead(BaseModel):
    """The part of an index of recipes that names the split beside it whose images it is made of."""

    model_config = ConfigDict(extra="ignore")

    split: Annotated[str, Field(pattern="^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
    digest: str


class Head(BaseModel):
    """The part of an index that says what its samples are.

    An index of blocks has the shape of an image in `image_shape` (version 1) or `fields`; one of encoded
    images in `image_shape`, with null for the height and width of images that have different sizes, and in
    `location` the folder of its shards if they do not lie beside it.
    base: of recipes, which have no shards.
    """

    model_config = ConfigDict(extra="ignore")

    stated_shape: tuple[PositiveInt | None, ...] | None = Field(default=None, validation_alias="image_shape")
    fields: tuple[FieldHead, ...] = ()
    classes: tuple[str, ...]
    num_samples: PositiveInt
    shards: tuple[ShardHead, ...] = ()
    location: Annotated[str, Field(pattern=f"^{LOCATION}$")] = ""
    base: BaseHead | None = None
    digest: str

    @model_validator(mode="after")
    def _has_images(self) -> Head:
        if not (self.shards or self.base):
            raise ValueError("there are no shards")
        if len(self.shape(IMAGE)) != 3 or self.shape(IMAGE)[0] is None:
            raise ValueError("there is no field image of shape [C, H, W]")
        return self

    @property
    def num_channels(self) -> int:
        """Channels of an image."""
        return self.shape(IMAGE)[0] or 1

    @property
    def image_size(self) -> int | tuple[int, int] | None:
        """Height and width of an image, one number if they are equal; None if images have different sizes."""
        _, height, width = self.shape(IMAGE)
        if height is None or width is None:
            return None
        return height if height == width else (height, width)

    @property
    def num_labels(self) -> int:
        """Labels that an image has at most."""
        return (self.shape(LABELS) or (1,))[0] or 1

    def shape(self, name: str) -> tuple[int | None, ...]:
        """Return the shape of a field of one sample, () without such a field."""
        if name == IMAGE and self.stated_shape is not None:
            return self.stated_shape
        return next((field.shape for field in self.fields if field.name == name), ())


def parse_head(content: bytes) -> Head:
    """Return what the index `content` says at first sight.

    Raises:
        DocumentError: it is no index, was altered, or lacks one of these parts.
    """
    check_unaltered(content, (FORMAT, ENCODED, RECIPES))
    return parse_document(content, Head, max_bytes=MAX_INDEX_BYTES)


def read_head(place: str, remedy: str) -> Head:
    """Return what the index of the split at `place`, a path or s3:// URL, says at first sight.

    Raises:
        DataError: there is none, or it cannot be used; `remedy` ends the message.
    """
    folder = open_folder(place)
    try:
        content = folder.read(INDEX_NAME, max_bytes=MAX_INDEX_BYTES)
        if content is None:
            raise DataError(f"{place}: there is no packed split; {remedy}")
        return parse_head(content)
    except DocumentError as error:
        raise DataError(f"{folder.path(INDEX_NAME)} {error}; {remedy}") from None
