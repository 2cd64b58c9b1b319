"""Pack CIFAR-100 (50,000 + 10,000 colour images of 32x32) from its original python batches."""

from __future__ import annotations

from capsdist.data.sets.cifar100 import CIFAR100
from capsdist.data.sets.pack import run_pack

if __name__ == "__main__":
    run_pack(CIFAR100, "python data_prep/pack_cifar100.py")
