"""Foreign tar files on S3 are read as local ones are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from foreign_tars import write_tars
from places import Place

from capsdist.data.web_stream import WebData, WebStream
from capsdist.errors import DataError

pytestmark = pytest.mark.s3


def pixels(*urls: str) -> np.ndarray:
    data = WebData(urls, 20, (1, 9, 9), ("a", "b", "c"))
    data.check_first()
    batches = WebStream(data, seed=1, global_batch_size=10, window=5).epoch(0)
    return np.concatenate([batch.images.numpy() for batch in batches])


def test_the_samples_are_those_of_local_files(place: Place, tmp_path: Path) -> None:
    write_tars(tmp_path, 20, tars=2)
    for name in ("0.tar", "1.tar"):
        place.put(name, (tmp_path / name).read_bytes())
    here, there = (pixels(*(f"{root}/{n}.tar" for n in (0, 1))) for root in (tmp_path, place.url))
    np.testing.assert_array_equal(there, here)


def test_a_missing_object_is_one_line(place: Place) -> None:
    with pytest.raises(DataError, match=r"5.tar: is not there; correct data\.urls"):
        pixels(f"{place.url}/5.tar")
