"""Pack MNIST (60,000 + 10,000 digits of 28x28) from its four original idx files as the data set `mnist`."""

from __future__ import annotations

from capsdist.data.sets.mnist import MNIST
from capsdist.data.sets.pack import run_pack

if __name__ == "__main__":
    run_pack(MNIST, "python data_prep/pack_mnist.py")
