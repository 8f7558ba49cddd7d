#!/usr/bin/env bash
# TrackEval 1.3.0 counts an interrupted track (Frag) only if something else is tracked in the meantime: it skips frames
# without any tracked box before it forgets what was tracked in the frame before.
#
# Seen with trackeval 1.3.0, SciPy 1.17.1, Python 3.11: two objects in four frames, in the third of which tracks are
# missing. If one of the two is missing, Frag is 1; if both are, it is 0. Expected: 2. The second tracker is worse, as its
# MOTA says.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check numpy==2.4.4 scipy==1.17.1 trackeval==1.3.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PY'
import numpy as np
from trackeval.metrics.clear import CLEAR

objects = [np.array([0, 1])] * 4


def measure(*tracked_in_third):
    tracks = [*objects[:2], np.array(tracked_in_third, int), objects[3]]
    similarity = [(truth[:, None] == track).astype(float) for truth, track in zip(objects, tracks)]
    result = CLEAR({'PRINT_CONFIG': False}).eval_sequence(dict(
        num_timesteps=4, num_gt_ids=2, num_tracker_ids=2, num_gt_dets=8, num_tracker_dets=sum(map(len, tracks)),
        gt_ids=objects, tracker_ids=tracks, similarity_scores=similarity))
    return int(result['Frag']), float(result['MOTA'])


outcome = dict(one_missing=measure(1), both_missing=measure())
assert outcome == dict(one_missing=(1, 0.875), both_missing=(0, 0.75)), f'changed: {outcome}'
for case, (interruptions, mota) in outcome.items():
    print(f'as described: {case}: Frag {interruptions}, MOTA {mota}')
PY
