"""Pack SVHN (73,257 + 26,032 house numbers of 32x32, extra if it is there) from its original .mat files."""

from __future__ import annotations

from capsdist.data.sets.pack import run_pack
from capsdist.data.sets.svhn import SVHN

if __name__ == "__main__":
    run_pack(SVHN, "python data_prep/pack_svhn.py")
