"""Training batches from tar files that have no index: the library webdataset reads and shuffles them.

The library promises less than packed splits do; `WebStream.notice` says what.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count, islice

import numpy as np
import torch

from capsdist.config.steps import EpochSteps
from capsdist.data.ahead import prefetched
from capsdist.data.batch import Batch, Partner
from capsdist.data.format.order import rank_slice
from capsdist.data.format.position import Position, check_inside, check_same_order
from capsdist.data.gather import Residence
from capsdist.data.web_samples import Sample, decode_sample, read_labels, tar_samples
from capsdist.errors import DataError

__all__ = ["WebData", "WebStream"]


@dataclass(frozen=True)
class WebData:
    """What the samples of tar files are: nothing in the files says it. It is also the stream's index.

    urls: the tar files; num_samples: of an epoch; image_shape: (C, H, W) that image files are decoded to;
    classes: their names by label, as many as the network has; num_labels: most labels of an image.
    """

    urls: tuple[str, ...]
    num_samples: int
    image_shape: tuple[int, int, int]
    classes: tuple[str, ...]
    num_labels: int = 1

    @property
    def digest(self) -> str:
        """Sha256, hex, of the names of the tar files and of `num_samples`; the files are not read for it."""
        names = [url.partition("?")[0] for url in self.urls]
        return hashlib.sha256(json.dumps([names, self.num_samples]).encode()).hexdigest()

    def decode(self, sample: Sample, pixels: np.ndarray) -> list[int]:
        """Decode the image of a sample into `pixels`, uint8 [H, W, C], and return its labels.

        Raises:
            DataError: naming the sample; see `decode_sample` and `read_labels`.
        """
        labels = read_labels(sample, num_classes=len(self.classes), num_labels=self.num_labels)
        decode_sample(sample, pixels)
        return labels

    def check_first(self) -> None:
        """Decode the first sample of the first tar file.

        Raises:
            DataError: it cannot be read, or the file has no sample.
        """
        samples = tar_samples(self.urls[:1], window=1, rng=random.Random(0))
        sample = next(samples, None)
        if sample is None:
            raise _nothing(self.urls[:1])
        channels, height, width = self.image_shape
        self.decode(sample, np.empty((height, width, channels), np.uint8))


class WebStream:
    """The training batches of one rank: a `Stream` like `TrainStream`.

    In each epoch a rank reads its part of the tar files, in another order in each, and shuffles samples with
    a buffer of `window`. It takes as many samples as its steps need: if it has fewer, it begins again with
    its part of another order, if it has more, it leaves them out. So an epoch has ceil(num_samples / B) steps
    on every rank, B = `global_batch_size`, whatever the files hold. Equal seeds, files and ranks give equal
    batches. A sample id is the place of a sample in its epoch, over all ranks.

    lanes: only kept in the position. pin: decode into pinned memory. partners: for `Mixup`, the next samples
    of this rank in the step, not of all ranks.

    Raises:
        DataError: fewer tar files than ranks.
    """

    resumes_inside = False
    resident: Residence = "never"
    notice = (
        "data.reader=webdataset: inside an epoch an image may be missing or come twice, a run resumes where "
        "an epoch ended, and its order depends on train.num_workers; packed splits promise more"
    )

    def __init__(
        self,
        data: WebData,
        *,
        seed: int,
        global_batch_size: int,
        lanes: int = 8,
        window: int = 8192,
        rank: int = 0,
        world_size: int = 1,
        pin: bool = False,
        partners: bool = False,
    ) -> None:
        if len(data.urls) < world_size:
            raise DataError(
                f"data.urls names {len(data.urls)} tar files for {world_size} workers; use fewer workers, or "
                "cut the data into more files"
            )
        self.index, self.seed = data, seed
        self.steps = EpochSteps(data.num_samples, global_batch_size)
        self.lanes, self.window = lanes, window
        self.rank, self.world_size, self.pin, self.partners = rank, world_size, pin, partners

    def close(self) -> None:
        """Nothing is shared."""

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yield the rank's batches of `epoch`; a thread reads ahead.

        Raises:
            DataError: `start_step` is inside the epoch; a sample or tar file cannot be read.
        """
        self._check_start(epoch, start_step)
        return prefetched([batch] for batch in self._batches(epoch))

    def position(self, epoch: int, step: int) -> Position:
        """Return the position after `step` completed steps of `epoch`."""
        return Position(
            digest=self.index.digest,
            seed=self.seed,
            epoch=epoch,
            step=step,
            global_batch_size=self.steps.global_batch_size,
            lanes=self.lanes,
            window=self.window,
        )

    def check_position(self, position: Position) -> None:
        """Check that a run can resume at `position`.

        Raises:
            DataError: other data, seed, batch, lanes or window, named; a step inside an epoch.
        """
        check_same_order(position, self.position(position.epoch, position.step))
        check_inside(position, self.steps.inside(position.epoch))
        if position.step < self.steps.inside(position.epoch):
            self._check_start(position.epoch, position.step)

    def _check_start(self, epoch: int, step: int) -> None:
        if step:
            raise DataError(
                f"data position is step {step} of {self.steps.inside(epoch)} of epoch {epoch}, and the "
                "reader webdataset resumes only where an epoch ends; resume from an older checkpoint, or "
                "start a new run from these weights with --train.init-from"
            )

    def _batches(self, epoch: int) -> Iterator[Batch]:
        samples, batch = self._samples(epoch), self.steps.global_batch_size
        with ThreadPoolExecutor(torch.get_num_threads(), "capsdist-decode") as threads:
            for first in range(0, self.index.num_samples, batch):
                num = min(batch, self.index.num_samples - first)
                part = rank_slice(num, self.rank, self.world_size)
                taken = list(islice(samples, part.stop - part.start))
                yield self._batch(taken, first + part.start, num, epoch, threads)

    def _samples(self, epoch: int) -> Iterator[Sample]:
        """Yield samples of this rank without end: pass after pass over its part of the tar files."""
        for number in count():
            order = list(self.index.urls)
            random.Random(f"{self.seed} {epoch} {number}").shuffle(order)  # the same on every rank
            # By the ranks given here: webdataset's split_by_node takes them from the environment, which other
            # launchers set too.
            own = order[self.rank :: self.world_size]
            rng = random.Random(f"{self.seed} {epoch} {number} {self.rank}")
            some = False
            for sample in tar_samples(own, window=self.window, rng=rng):
                some = True
                yield sample
            if not some:
                raise _nothing(own)

    def _batch(
        self, samples: Sequence[Sample], first_id: int, num: int, epoch: int, threads: ThreadPoolExecutor
    ) -> Batch:
        """Return the rank's `samples` of a step of `num` samples, padded to the size that all ranks share."""
        channels, height, width = self.index.image_shape
        size, own = -(-num // self.world_size), len(samples)
        pixels = np.zeros((size, height, width, channels), np.uint8)
        labels = torch.full((size, self.index.num_labels), -1)
        labels[:, 0] = 0
        for place, found in enumerate(threads.map(self.index.decode, samples, pixels)):
            labels[place, : len(found)] = torch.tensor(found)
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
        labels = labels[:, 0].contiguous() if self.index.num_labels == 1 else labels
        ids = first_id + torch.arange(size).clamp(max=max(own - 1, 0))
        if self.pin:
            images, labels = images.pin_memory(), labels.pin_memory()
        weights = (torch.arange(size) < own).float()
        partner = None
        if self.partners:
            following = (torch.arange(size) + 1) % max(own, 1)
            partner = Partner(images[following], labels[following], ids[following], epoch)
        return Batch(images, labels, weights, ids, num, epoch, partner)


def _nothing(urls: Sequence[str]) -> DataError:
    return DataError(f"{urls[0]}: holds no image file with a label; give tar files of KEY.jpg and KEY.cls")
