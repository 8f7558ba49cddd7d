#!/usr/bin/env bash
# From a fresh machine to a trained detector on rendered rooms:  bash tools/quickstart.sh
# Environment, MiniScanNet, conversion, training, evaluation, pictures, report. Called again after an interruption, it
# continues where it stopped; evaluation and report run each time.
# Arguments go to make_mini_scannet.py, e.g. --train 40 --val 8 for a first look in a minute or two.
#
#   DEIT_CHECKPOINT=deit-tiny.pth   pretrained weights from a file (otherwise they are downloaded, if that is possible)
set -euo pipefail
case ${1:-} in -h | --help) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
# set to nothing, as docker-compose does, is unset; mmengine would stop at it below
if [ "${DEIT_CHECKPOINT:-}" ]; then DEIT_CHECKPOINT=$(realpath "$DEIT_CHECKPOINT"); else unset DEIT_CHECKPOINT; fi
[ "${MINI_SCANNET_ROOT:-}" ] || unset MINI_SCANNET_ROOT
cd "$(dirname "$0")/.."

configs=projects/deit_detr/configs
name=ec-detr_deit-tiny_1xb4-16e_mini-scannet
data=data/mini-scannet
begin=$SECONDS
say() { printf '\n[%d:%02d] %s\n' $(((SECONDS - begin) / 60)) $(((SECONDS - begin) % 60)) "$1"; }

say '1/7 Environment'
. tools/setup_env.sh

say '2/7 MiniScanNet: rendering rooms'
python tools/dataset_converters/make_mini_scannet.py $data/frames "$@"

say '3/7 Converting to COCO-style boxes'
python tools/dataset_converters/scannet2coco.py $data/frames --out-dir $data

if [ -n "${DEIT_CHECKPOINT:-}" ]; then
    weights="DeiT-tiny pretrained on ImageNet, from $DEIT_CHECKPOINT"
elif python - $configs/$name.py <<'PY' 2>/dev/null
import sys, urllib.request
from mmengine.config import Config
url = Config.fromfile(sys.argv[1]).model.backbone.init_cfg.checkpoint
urllib.request.urlopen(urllib.request.Request(url, method='HEAD'), timeout=15)
PY
then
    weights='DeiT-tiny pretrained on ImageNet, downloaded'
else
    weights='none: the pretrained checkpoint cannot be reached, training from scratch a model made for it (set DEIT_CHECKPOINT to a file to change that)'
    name=ec-detr_ecvit-tiny_1xb4-16e_mini-scannet
fi
config=$configs/$name.py
work_dir=work_dirs/$name
say "4/7 Training, about 15 minutes on one core. Pretrained weights: $weights"
python tools/train.py $config --resume

checkpoint=$(ls $work_dir/best_coco_bbox_mAP_epoch_*.pth | sort -V | tail -n 1)
say "5/7 Evaluating $checkpoint, and drawing ground truth (left) beside predictions (right)"
python tools/test.py $config "$checkpoint" --work-dir $work_dir/test --show-dir pictures \
    --cfg-options test_evaluator.outfile_prefix=$work_dir/test/results
pictures=$(ls -d $work_dir/test/*/pictures | sort | tail -n 1)

say '6/7 Writing the report of the run'
python tools/analysis_tools/report.py $work_dir --checkpoint "$checkpoint" --predictions $work_dir/test/results.bbox.json

say '7/7 Done'
cat <<TXT

  Data          $data/{train,val}, $data/scannet_objdet_{train,val}.json
  Checkpoint    $checkpoint
  Report        $work_dir/report.html
  Pictures      $pictures
  Curves        tensorboard --logdir $work_dir
  Pretrained    $weights

  Next, on real ScanNet (data/README.md tells how to get scannet_frames_25k):
    python tools/dataset_converters/scannet2coco.py scannet_frames_25k --out-dir data/scannet-frames
    bash tools/dist_train.sh projects/deit_detr/configs/detr_deit-tiny_8xb1-150e_scannet.py 8
    bash tools/dist_test.sh projects/deit_detr/configs/detr_deit-tiny_8xb1-150e_scannet.py CHECKPOINT 8

  Without the environment active, begin with:  . .venv/bin/activate
TXT
