"""Pack KMNIST (60,000 + 10,000 Japanese characters of 28x28) from its four original idx files."""

from __future__ import annotations

from capsdist.data.sets.kmnist import KMNIST
from capsdist.data.sets.pack import run_pack

if __name__ == "__main__":
    run_pack(KMNIST, "python data_prep/pack_kmnist.py")
