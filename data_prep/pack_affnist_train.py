"""Pack MNIST at all 169 positions in 40x40, to train for affNIST, as the data set `affnist_train`."""

from __future__ import annotations

from capsdist.data.sets.affnist_train import AFFNIST_TRAIN
from capsdist.data.sets.pack import run_pack

if __name__ == "__main__":
    run_pack(AFFNIST_TRAIN, "python data_prep/pack_affnist_train.py")
