"""Pack the test set of affNIST (320,000 images of 40x40) from its original .mat files."""

from __future__ import annotations

from capsdist.data.sets.affnist import AFFNIST
from capsdist.data.sets.pack import run_pack

if __name__ == "__main__":
    run_pack(AFFNIST, "python data_prep/pack_affnist.py")
