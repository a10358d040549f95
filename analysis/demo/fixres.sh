#!/bin/sh
# FixRes and FixEfficientNet on the demo data: scores, fine-tunings and statistics behind analysis/demo/tables.
#
#     sh analysis/demo/fixres.sh .venv/bin/python runs/fixres
#
# About half an hour on two cores: fine-tuned on 2,000 images for 4 epochs (the papers: all of ImageNet, 60), scored on
# all 1,000 validation images. What is there is kept, so that the same command continues after it was stopped.
set -e
python=$1 out=$2
train_size=96 test_size=128 # of the demo networks in training; FixRes's 288 for 224

score() { # NAME MODEL POLICIES [options of run]
    name=$1 model=$2 policies=$3
    shift 3
    [ -d "$out/$name" ] || $python -m bench run --model "$model:demo" --policies "$policies" --no-throughput \
        --no-figures --yes --device cpu --out "$out/$name" "$@"
}
tune() { # NAME MODEL SIZE [options of finetune]; then scored at this size
    name=$1 model=$2 size=$3
    shift 3
    [ -f "$out/$name/model.safetensors" ] || $python -m bench finetune --model "$model:demo" --weights demo --limit 2000 \
        --epochs 4 -b 64 --min-area 0.25 --device cpu --img-size "$size" --out "$out/$name" "$@"
}
tune_and_score() { # scored with the ten fixed crops too at the size that counts
    tune "$@"
    policies=CC
    [ "$1" != "resnet-bn-$test_size" ] || policies=CC,5FC+5MFC
    score "$1-scored" "$2" $policies --checkpoint "$out/$1/model.safetensors" --img-size "$3"
}

score resnet-sizes resnet "CC,CC+CC@$train_size" --weights demo --img-size 64,96,128,160
for how in gaussian frechet; do
    score resnet-$how resnet CC --weights demo --adapt $how --train-size $train_size --img-size 64,128
done
for size in 128 64 160; do
    tune_and_score resnet-classifier-$size resnet $size --tune classifier
    tune_and_score resnet-bn-$size resnet $size --tune classifier+bn
done
tune_and_score resnet-smoothing resnet $test_size --tune classifier+bn --label-smoothing 0.1
tune resnet-gaussian-classifier resnet $test_size --tune classifier --adapt gaussian --train-size $train_size
score resnet-gaussian-classifier-scored resnet CC --adapt gaussian --train-size $train_size --img-size $test_size \
    --checkpoint "$out/resnet-gaussian-classifier/model.safetensors"
tune_and_score resnet-layer4 resnet $test_size --tune from:layer4
tune_and_score resnet-bn-test2 resnet $test_size --tune classifier+bn --augmentation test2
tune_and_score resnet-bn-train resnet $test_size --tune classifier+bn --augmentation train
tune_and_score resnet-classifier-train resnet $test_size --tune classifier --augmentation train

score efficientnet-sizes efficientnet CC --weights demo --img-size 96,128
tune_and_score efficientnet-bn efficientnet $test_size --tune classifier+bn
tune_and_score efficientnet-smoothing efficientnet $test_size --tune classifier+bn --label-smoothing 0.1

statistics() { # NAME [options of activations]
    name=$1
    shift
    [ -d "$out/$name" ] || $python -m bench activations --model resnet:demo --fit-images 500 --limit 500 --device cpu \
        --no-figures --out "$out/$name" "$@"
}
statistics activations --weights demo --img-size 64,96,128,160
for size in 64 128; do
    statistics activations-$size --checkpoint "$out/resnet-bn-$size/model.safetensors" --train-size $train_size \
        --img-size $size
done

folders=
for folder in "$out"/*/; do
    [ ! -f "$folder/run.json" ] && [ ! -f "$folder/finetune.json" ] && [ ! -f "$folder/activations.json" ] ||
        folders="$folders $folder"
done
$python -m bench tables $folders --out "$out/tables"
$python -m bench claims $folders --out "$out/tables" # committed as demo_claims.csv
