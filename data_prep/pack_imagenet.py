"""Pack ImageNet-1k (1,281,167 + 50,000 JPEGs), as they are, as the data set `imagenet`, in parallel."""

from __future__ import annotations

from capsdist.data.sets.pack import run_pack
from capsdist.launch.packing import IMAGENET

if __name__ == "__main__":
    run_pack(IMAGENET, "python data_prep/pack_imagenet.py")
