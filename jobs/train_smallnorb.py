"""Train the MNIST capsule network on smallNORB: stereo pairs of toys, also tested from novel viewpoints.

Source: "Dynamic Routing Between Capsules" (2017), section 7; smallnorb_official has the input of the authors'
released code. Novel viewpoints: Hinton, Sabour, Frosst 2018, section 5.1.
Command: python data_prep/pack_smallnorb.py && python jobs/train_smallnorb.py
Novel azimuths or elevations: python data_prep/pack_smallnorb_azimuth.py, then
    python jobs/train_smallnorb.py --preset smallnorb_azimuth_paper
Expected time: not measured.
Expected error_percent: paper 2.7; novel viewpoints have no figure for this network. Not measured here.
"""

from __future__ import annotations

import sys

from capsdist.cli import run_job

PRESETS = ("smallnorb_paper", "smallnorb_official", "smallnorb_azimuth_paper", "smallnorb_elevation_paper")

if __name__ == "__main__":
    sys.exit(run_job(__doc__, PRESETS))
