"""Pack smallNORB (24,300 + 24,300 stereo pairs of 96x96) from its six original files."""

from __future__ import annotations

from capsdist.data.sets.pack import run_pack
from capsdist.data.sets.smallnorb import SMALLNORB

if __name__ == "__main__":
    run_pack(SMALLNORB, "python data_prep/pack_smallnorb.py")
