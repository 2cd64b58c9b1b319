"""Pack EMNIST letters (26 classes of 28x28) from its original idx files."""

from __future__ import annotations

from capsdist.data.sets.emnist import EMNIST_LETTERS
from capsdist.data.sets.pack import run_pack

if __name__ == "__main__":
    run_pack(EMNIST_LETTERS, "python data_prep/pack_emnist_letters.py")
