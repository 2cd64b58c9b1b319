"""Pack Tiny-ImageNet (100,000 + 10,000 JPEGs of 64x64), as they are, as the data set `tiny_imagenet`."""

from __future__ import annotations

from capsdist.data.sets.pack import run_pack
from capsdist.data.sets.tiny_imagenet import TINY_IMAGENET

if __name__ == "__main__":
    run_pack(TINY_IMAGENET, "python data_prep/pack_tiny_imagenet.py")
