#!/bin/sh
# Real photographs, start to end: build Flickr8k and COCO samples, train, evaluate into runs/flickr8k_sample.
# The same head once more on stored outputs of its frozen tower, into runs/flickr8k_features.
#   sh launch/real.sh ../shared/data        (what `make real` runs)
set -eu
data=$1
[ -d "$data/flickr8k" ] || { echo "real: no photographs at $data. Say where they are: make real DATA=/path" >&2; exit 2; }
shardclip=.venv/bin/shardclip
start=$(date +%s)
part() { now=$(date +%s); echo "real: $1 took $((now - since)) s"; since=$now; }
since=$start
for split in train val; do
    $shardclip build configs/build/flickr8k_sample_$split.yaml "source.images=$data/flickr8k/Images" \
        "source.captions=$data/flickr8k/captions.txt" "source.names=$data/flickr8k/$split.txt"
    $shardclip build configs/build/coco_sample_$split.yaml "source.images=$data/coco/images" \
        "source.captions=$data/coco/annotations/captions_$split.json"
done
part "building four shard sets"
$shardclip train configs/train/flickr8k_sample.yaml --processes 2 \
    "model.weights=$data/weights/mobilenet_v2_imagenet.pth"
part "training on pictures"
$shardclip eval configs/eval/flickr8k_sample.yaml
part evaluating
weights="model.weights=$data/weights/mobilenet_v2_imagenet.pth"
$shardclip column features data/shards/flickr8k_sample-train data/shards/flickr8k_sample-val \
    recipe=configs/train/flickr8k_features.yaml "weights=$data/weights/mobilenet_v2_imagenet.pth"
part "computing the frozen tower's features"
$shardclip train configs/train/flickr8k_features.yaml "$weights"
part "training on stored features"
$shardclip eval configs/eval/flickr8k_sample.yaml checkpoint=runs/flickr8k_features
part "evaluating the second run"
echo "real: $(($(date +%s) - start)) s in all; open runs/flickr8k_sample/report.html and runs/flickr8k_features/report.html"
