"""Pack MultiMNIST (60 + 10 million pairs of overlaid MNIST digits) as the data set `multimnist`."""

from __future__ import annotations

from capsdist.data.sets.multimnist import MULTIMNIST
from capsdist.data.sets.pack import run_pack

if __name__ == "__main__":
    run_pack(MULTIMNIST, "python data_prep/pack_multimnist.py")
