#!/usr/bin/env bash
# What to run on a machine with one GPU: checks, timings beside lower bounds, PyTorch, a part of a
# run of Table S2. It ends within 12 minutes. Each step has its own time limit and writes its
# results at once, so nothing is lost when the script is stopped; the most valuable come first.
#
#   benchmarks/gpu.sh                   # all steps; results in benchmarks/results/<device>/
#   benchmarks/gpu.sh --platform cpu    # all steps at tiny sizes without a GPU, to try the script
#
# Environment:
#   PYTHON  the interpreter, with JAX for its GPU; default: python3
#   WHEELS  a folder of wheels of packages that it lacks, for machines without a network, such as
#           tyro, docstring-parser, typeguard and tensorboardX
#   DATA    a TensorFlow Datasets folder with miniImageNet; default: made-up pictures of its size
#   OUT     the folder of the results
#   TIME_LIMIT  seconds of the whole script; default: 710
set -u
cd "$(dirname "$0")/.."

platform=gpu
if [ $# -eq 2 ] && [ "$1" = --platform ] && [ "$2" = cpu ]; then
    platform=cpu
elif [ $# -ne 0 ]; then
    echo "error: the only flag is --platform cpu, got $*" >&2
    exit 2
fi

limit=${TIME_LIMIT:-710}
python=${PYTHON:-python3}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
export PYTHONUNBUFFERED=1 XLA_PYTHON_CLIENT_PREALLOCATE=false
export JAX_COMPILATION_CACHE_DIR=$scratch/compiled JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.2
if [ -n "${WHEELS:-}" ]; then
    "$python" -m pip install -q --no-index --no-deps --no-compile --target "$scratch/site" \
        "$WHEELS"/*.whl || exit
    export PYTHONPATH=$PYTHONPATH:$scratch/site
fi
if [ $platform = cpu ]; then
    export JAX_PLATFORMS=cpu
fi

# step NAME LIMIT COMMAND...: run a command within its limit, and within that of the script. SIGTERM
# lets a run save its state.
step() {
    local name=$1 seconds=$2 begun=$SECONDS
    shift 2
    if [ $((limit - SECONDS)) -lt "$seconds" ]; then
        seconds=$((limit - SECONDS))
    fi
    if [ "$seconds" -lt 5 ]; then
        echo "$name: no time left" | tee -a "$out/steps.txt"
        return
    fi
    timeout --signal=TERM --kill-after=15 "$seconds" "$@" >"$out/$name.log" 2>&1
    local status=$?
    tail -n 40 "$out/$name.log"
    echo "$name: status $status after $((SECONDS - begun)) s" | tee -a "$out/steps.txt"
}

# ---- (a) the machine

"$python" -m benchmarks.machine $platform >"$scratch/machine.json" || exit
folder=$(sed -n 's/^ "folder": "\(.*\)"$/\1/p' "$scratch/machine.json")
out=${OUT:-benchmarks/results/$folder}
mkdir -p "$out" || exit
cp "$scratch/machine.json" "$out/machine.json"
: >"$out/steps.txt"
date >>"$out/steps.txt"
nvidia-smi >"$out/nvidia-smi.txt" 2>&1
"$python" -m pip list >"$out/packages.txt" 2>/dev/null
cat "$out/machine.json"

if [ $platform = cpu ]; then
    checks=(--platform cpu --tiny --checks "few-shot sparse-maml" "continual sparse")
    timing=(--platform cpu --repeats 1 --cases glance-mlp-1-seed)
    tensor=(--platform cpu --repeats 1 --cases glance-mlp-1-seed)
    large=(--platform cpu --repeats 1 --cases glance-mlp-1-seed)
    peer=(--tasks 2 --size 16 --shots 1 --width 4 --inner-steps 2 --repeats 1)
    size=16
    sizes=(--width 4 --inner-steps 2 --test-inner-steps 2 --steps-per-epoch 5 --val-tasks 20)
else
    checks=()
    timing=(--cases conv4-84-5-shot-4-tasks evaluation-84-5-shot conv4-28-5-shot-16-tasks
        resnet12 glance-mlp-1-seed glance-mlp-64-seeds cmaml-timestep)
    tensor=(--cases conv4-84-5-shot-4-tasks evaluation-84-5-shot conv4-28-5-shot-16-tasks
        resnet12)
    large=(--cases conv4-84-5-shot-16-tasks)
    peer=(--tasks 4 --size 84 --inner-steps 35 --repeats 5)
    size=84
    sizes=()
fi

# ---- (b) the same numbers as on the CPU

step checks 160 "$python" -m benchmarks.gpu_checks "${checks[@]}" --out "$out"

# ---- (c) times beside lower bounds

measure=("$python" -m benchmarks.gpu_program --measure --out "$out")
step timing 130 "${measure[@]}" "${timing[@]}"
step timing-tensorfloat32 70 "${measure[@]}" "${tensor[@]}" --precision tensorfloat32

# ---- (d) PyTorch

peers=(jaxsparse)
if "$python" -c "import torch" 2>"$scratch/torch.txt"; then
    peers=(jaxsparse loop channels_last vmap)
else
    echo "PyTorch is not installed: its columns are missing" | tee -a "$out/steps.txt"
fi
inner=("$python" -m benchmarks.inner_loop "${peer[@]}" --device $platform --no-probe)
step pytorch 70 "${inner[@]}" --forms "${peers[@]}" --out "$out/pytorch"
step pytorch-tensorfloat32 50 "${inner[@]}" --forms "${peers[@]}" --precision tensorfloat32 \
    --out "$out/pytorch-tensorfloat32"

# ---- (e) a part of a run of Table S2: started, stopped by SIGTERM, resumed

if [ -n "${DATA:-}" ]; then
    data=(--dataset mini_imagenet --data-dir "$DATA")
else
    "$python" -m benchmarks.pictures "$scratch/pictures" --size $size
    data=(--dataset folder --data-dir "$scratch/pictures" --image-size $size)
fi
fewshot=("$python" -m experiments.fewshot)
run=$out/run-$(date +%Y%m%d-%H%M%S)
step run 60 "${fewshot[@]}" --preset table-s2 --shots 5 "${data[@]}" "${sizes[@]}" --out "$run"
step run-resumed 50 "${fewshot[@]}" --resume "$run"

# ---- what else fits

for loop in scan 4; do
    step "timing-loop-$loop" 45 "${measure[@]}" "${large[@]}" --task-loop $loop
done
step timing-loop-vmap 45 "${measure[@]}" "${large[@]}" --task-loop vmap
if [ ${#peers[@]} -gt 1 ]; then
    step pytorch-compile 90 "${inner[@]}" --forms jaxsparse compile --out "$out/pytorch-compile"
fi
date >>"$out/steps.txt"
cat "$out/steps.txt"
