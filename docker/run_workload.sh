#!/usr/bin/env bash
# Run one submission on one official workload in the image, on this machine's GPUs.
#
#   docker/run_workload.sh WORKLOAD SUBMISSION [flags of scripts.run: --rng_seed=2 --max_global_steps=100 ...]
#
# From the environment:
#   DATA_DIR        folder with one folder a data set (docs/docker.md), mounted at /data           [~/data]
#   EXPERIMENT_DIR  folder for logs and checkpoints, mounted at /experiment_runs                   [./runs]
#   GPUS            all, a number of GPUs, or 0 for the CPU                                        [all]
#   IMAGE           the image                                                                      [weight-averaging]
#   REHEARSE=1      rehearse on small data instead, with flags of scripts.rehearse; the results go to EXPERIMENT_DIR
#   DRY_RUN=1       print the docker command and start nothing
set -euo pipefail

if [ $# -lt 2 ]; then
  sed -n '2,12p' "$0" >&2
  exit 2
fi
workload=$1
submission=$2
shift 2

refuse() {
  echo "error: $1" >&2
  exit 2
}
here=$(dirname "$0")/..
known=$(sed -n 's/^    "\([a-z0-9_]*\)": .*(.*/\1/p' "$here/launching/official_workloads.py" | paste -sd' ')
for one in ${workload//,/ }; do  # a variant is its workload's name with more behind
  found=
  for base in $known; do
    [[ $one == "$base" || $one == "$base"_* ]] && found=1
  done
  [ -n "$found" ] || refuse "the workload $one is unknown; choose from $known"
done
for one in ${submission//,/ }; do
  compgen -G "$here/submissions/*/$one/submission.py" >/dev/null ||
    refuse "the submission $one is unknown; it is the name of a folder in submissions/pytorch or submissions/jax"
done
[[ ${GPUS:-all} =~ ^(all|[0-9]+)$ ]] || refuse "GPUS=$GPUS: give all, a number of GPUs, or 0 for the CPU"

if [ -n "${REHEARSE:-}" ]; then
  data_dir=${DATA_DIR:-$HOME/.cache/weight_averaging_rehearsal}
  experiment_dir=${EXPERIMENT_DIR:-$PWD/runs/rehearsal}
  script=(-m scripts.rehearse --out=/experiment_runs)
else
  data_dir=${DATA_DIR:-$HOME/data}
  experiment_dir=${EXPERIMENT_DIR:-$PWD/runs}
  script=(-m scripts.run --harness=official --experiment_dir=/experiment_runs)
fi
gpus=${GPUS:-all}

command=(docker run --rm --init --ipc=host)
flags=()
case $gpus in
  all) command+=(--gpus all) ;;
  0) flags+=(--gpus=0) ;;
  *)
    command+=(--gpus "$gpus")
    flags+=("--gpus=$gpus")
    ;;
esac
command+=(
  -v "$(realpath -m "${data_dir/#\~/$HOME}"):/data"
  -v "$(realpath -m "${experiment_dir/#\~/$HOME}"):/experiment_runs"
  "${IMAGE:-weight-averaging}"
  "${script[@]}" "--workload=$workload" "--submission=$submission" --data_dir=/data "${flags[@]}" "$@"
)

if [ -n "${DRY_RUN:-}" ]; then
  printf '%q ' "${command[@]}"
  echo
  exit
fi
if ! command -v docker >/dev/null; then
  echo "error: there is no docker here" >&2
  exit 2
fi
exec "${command[@]}"
