"""Pack smallNORB for novel elevations as the data set `smallnorb_elevation`."""

from __future__ import annotations

from capsdist.data.sets.pack import run_pack
from capsdist.data.sets.smallnorb import SMALLNORB_ELEVATION

if __name__ == "__main__":
    run_pack(SMALLNORB_ELEVATION, "python data_prep/pack_smallnorb_elevation.py")
