"""Pack smallNORB for novel azimuths as the data set `smallnorb_azimuth`."""

from __future__ import annotations

from capsdist.data.sets.pack import run_pack
from capsdist.data.sets.smallnorb import SMALLNORB_AZIMUTH

if __name__ == "__main__":
    run_pack(SMALLNORB_AZIMUTH, "python data_prep/pack_smallnorb_azimuth.py")
