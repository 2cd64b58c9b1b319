"""Pack Imagewoof 2 (9,025 + 3,929 JPEGs of 10 breeds of dogs), as they are, as the data set `imagewoof`."""

from __future__ import annotations

from capsdist.data.sets.imagenette import IMAGEWOOF
from capsdist.data.sets.pack import run_pack

if __name__ == "__main__":
    run_pack(IMAGEWOOF, "python data_prep/pack_imagewoof.py")
