"""The aims of the figures that `make gpu` measures, on one H100 or H200."""

from __future__ import annotations

from capsdist.bench.aims import Row, least, most

__all__ = ["GPU_ROWS"]

GPU_ROWS = (
    Row(
        "GPU, bf16: routing, speed-up over the textbook form", least(15), "gpu", "speedup_vs_reference", "",
        headline=True,
    ),
    Row("GPU, bf16: routing, share of the roofline", least(0.4), "gpu", "share_of_roofline", ""),
    Row("GPU, bf16: MNIST training step, r=3 over r=1", most(1.05), "gpu", "step_r3_over_r1", ""),
    Row("GPU, bf16: MNIST training, B=128, images/s", least(120_000), "gpu", "mnist_b128_images_per_s", ""),
    Row("GPU, bf16: MNIST training, B=128, MFU", least(15), "gpu", "mnist_b128_mfu_percent"),
    Row(
        "GPU, bf16: MNIST training, B=1,024, images/s", least(200_000), "gpu", "mnist_b1024_images_per_s", ""
    ),
    Row("GPU, bf16: MNIST training, B=1,024, MFU", least(25), "gpu", "mnist_b1024_mfu_percent"),
    Row(
        "GPU, bf16: CIFAR-10 training, B=512, images/s", least(30_000), "gpu", "cifar10_b512_images_per_s", ""
    ),
    Row("GPU, bf16: CIFAR-10 training, B=512, MFU", least(29), "gpu", "cifar10_b512_mfu_percent"),
    Row("GPU, bf16: layer of ImageNet size, 256 images, GiB", most(80), "gpu", "imagenet_peak_gib", ""),
    Row("GPU, bf16: layer of ImageNet size, 256 images, ms", None, "gpu", "imagenet_ms", ""),
)  # fmt: skip
