"""Pack Imagenette 2 (9,469 + 3,925 JPEGs of 10 classes), as they are, as the data set `imagenette`."""

from __future__ import annotations

from capsdist.data.sets.imagenette import IMAGENETTE
from capsdist.data.sets.pack import run_pack

if __name__ == "__main__":
    run_pack(IMAGENETTE, "python data_prep/pack_imagenette.py")
