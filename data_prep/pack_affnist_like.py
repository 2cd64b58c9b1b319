"""Pack 320,000 images that are GENERATED from MNIST like affNIST as the data set `affnist_like`."""

from __future__ import annotations

from capsdist.data.sets.affnist_like import AFFNIST_LIKE
from capsdist.data.sets.pack import run_pack

if __name__ == "__main__":
    run_pack(AFFNIST_LIKE, "python data_prep/pack_affnist_like.py")
