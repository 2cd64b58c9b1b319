"""Pack CIFAR-10 (50,000 + 10,000 colour images of 32x32) from its original python batches."""

from __future__ import annotations

from capsdist.data.sets.cifar10 import CIFAR10
from capsdist.data.sets.pack import run_pack

if __name__ == "__main__":
    run_pack(CIFAR10, "python data_prep/pack_cifar10.py")
