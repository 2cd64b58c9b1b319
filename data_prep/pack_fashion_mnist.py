"""Pack Fashion-MNIST (60,000 + 10,000 images of 28x28) from its four original idx files."""

from __future__ import annotations

from capsdist.data.sets.fashion_mnist import FASHION_MNIST
from capsdist.data.sets.pack import run_pack

if __name__ == "__main__":
    run_pack(FASHION_MNIST, "python data_prep/pack_fashion_mnist.py")
