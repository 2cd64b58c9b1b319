"""The rows of the input pipeline in the table of costs."""

from __future__ import annotations

from capsdist.bench.aims import Aim, Row, least, most

__all__ = ["PIPELINE_ROWS"]


def _ratio(label: str, aim: Aim | None, figure: str) -> Row:
    return Row(label, aim, "pipeline", figure, "", "ratio of medians", "config.repeats")


def _median(label: str, aim: Aim | None, figure: str, unit: str = "") -> Row:
    return Row(label, aim, "pipeline", figure, unit, "median", "config.repeats")


def _counted(label: str, aim: Aim, figure: str, unit: str = "") -> Row:
    return Row(label, aim, "pipeline", figure, unit, "counted")


PIPELINE_ROWS = (
    _median("input pipeline, one rank, MNIST-size images/s", None, "images_per_s"),
    _median("MNIST images/s, in turns with the baselines below", None, "local_images_per_s"),
    _ratio("MNIST, speed-up over webdataset", least(100), "speedup_vs_webdataset"),
    _ratio(
        "MNIST, speed-up over webdataset on the same shards", least(2),
        "speedup_vs_webdataset_same_shards",
    ),
    _ratio("MNIST, speed-up over LitData", None, "speedup_vs_litdata"),
    _ratio("MNIST, share of a copy in memory (memcpy)", least(0.1), "share_of_memcpy"),
    _median("MNIST, resident set, images/s", None, "resident_images_per_s"),
    _ratio("MNIST on S3, cold, speed-up over webdataset", least(30), "s3_speedup_vs_webdataset"),
    _ratio("MNIST on S3, cold, share of a plain download", least(0.6), "s3_share_of_raw_download"),
    _ratio("JPEG 64x64, share of the fastest decoder", least(0.9), "jpeg_share_of_decoder"),
    _ratio("JPEG full size, share of the fastest decoder", least(0.9), "jpeg_large_share_of_decoder"),
    _counted("MNIST, bytes an image, zstd", most(170), "bytes_per_image_zstd"),
    _counted("MNIST, bytes an image, raw", most(800), "bytes_per_image_raw"),
    _ratio("MNIST, writing, speed-up over webdataset", least(15), "write_speedup_vs_webdataset"),
    _counted("packing a folder of 100,000 images, peak memory", most(500), "folder_peak_mb", " MB"),
    _median("first batch after resume", most(0.2), "first_batch_after_resume_s", " s"),
    _median("order of 1.28 million samples", most(0.2), "order_1_28m_s", " s"),
    _counted(
        "growth of a reading process over 20 epochs", most(50), "memory_growth_20_epochs_mb", " MB"
    ),
)  # fmt: skip
