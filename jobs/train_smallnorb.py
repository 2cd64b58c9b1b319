"""Train capsule networks on smallNORB, by dynamic or by EM routing; also tested from novel viewpoints.

Source: "Dynamic Routing Between Capsules" (2017), section 7; smallnorb_official has the input of the authors'
released code. Novel viewpoints: Hinton, Sabour, Frosst 2018, section 5.1, where networks are compared when
they err alike on the test toys in familiar views: there a run validates and stops, at 3.7 % (elevations:
4.3 %), and prints both errors, of familiar and of novel views. smallnorb_em and smallnorb_em_small are the
matrix capsules of that paper, with EM routing.
Command: python data_prep/pack_smallnorb.py && python jobs/train_smallnorb.py
Novel azimuths or elevations: python data_prep/pack_smallnorb_azimuth.py, then
    python jobs/train_smallnorb.py --preset smallnorb_azimuth_paper (or smallnorb_azimuth_baseline, the CNN)
Expected time: not measured. --smoke needs no data.
Expected error_percent: paper 2.7; EM routing 1.8, small network 2.2; novel viewpoints have no figure for the
MNIST network. Not measured here.
"""

from __future__ import annotations

import sys

from capsdist.cli import run_job

PRESETS = (
    "smallnorb_paper",
    "smallnorb_official",
    "smallnorb_em",
    "smallnorb_em_small",
    "smallnorb_azimuth_paper",
    "smallnorb_azimuth_baseline",
    "smallnorb_elevation_paper",
    "smallnorb_elevation_baseline",
)

if __name__ == "__main__":
    sys.exit(run_job(__doc__, PRESETS))
