"""What an index says at first sight, read without numpy: images, classes, sizes of shards."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from capsdist.data.format.packed import (
    FORMAT,
    IMAGE,
    INDEX_NAME,
    LABELS,
    MAX_INDEX_BYTES,
    RECIPES,
    SHARD_NAME,
    check_unaltered,
)
from capsdist.errors import DataError, DocumentError
from capsdist.storage import open_folder
from capsdist.storage.documents import parse_document

__all__ = ["Head", "parse_head", "read_head"]


class ShardHead(BaseModel):
    """The part of an index that says how large a shard is."""

    model_config = ConfigDict(extra="ignore")

    name: Annotated[str, Field(pattern=f"^{SHARD_NAME}$")]
    size_bytes: PositiveInt


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
    """The part of an index that says what its samples are: in version 1 `image_shape`, later `fields`.

    base: of recipes, which have no shards.
    """

    model_config = ConfigDict(extra="ignore")

    stated_shape: tuple[PositiveInt, ...] | None = Field(default=None, validation_alias="image_shape")
    fields: tuple[FieldHead, ...] = ()
    classes: tuple[str, ...]
    num_samples: PositiveInt
    shards: tuple[ShardHead, ...] = ()
    base: BaseHead | None = None
    digest: str

    @model_validator(mode="after")
    def _has_images(self) -> Head:
        if not (self.shards or self.base):
            raise ValueError("there are no shards")
        if len(self.shape(IMAGE)) != 3:
            raise ValueError("there is no field image of shape [C, H, W]")
        return self

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of an image."""
        channels, height, width = self.shape(IMAGE)
        return channels, height, width

    @property
    def num_labels(self) -> int:
        """Labels that an image has at most."""
        return (self.shape(LABELS) or (1,))[0]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a field of one sample, () without such a field."""
        if name == IMAGE and self.stated_shape is not None:
            return self.stated_shape
        return next((field.shape for field in self.fields if field.name == name), ())


def parse_head(content: bytes) -> Head:
    """Return what the index `content` says at first sight.

    Raises:
        DocumentError: it is no index, was altered, or lacks one of these parts.
    """
    check_unaltered(content, (FORMAT, RECIPES))
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
