#!/usr/bin/env bash
# Trains a small network in pods of the cluster that kubectl is set to, such as kind's, on masks and records that Jobs
# make there; a storage server in a pod has the bucket.
#
#     infra/kuberay/local/train.sh
#     infra/kuberay/local/train.sh --operator    # installs KubeRay's operator first, in the namespace default
#     infra/kuberay/local/train.sh --print       # prints the objects that it would apply
#
# Its nodes have the image pconv/ray:local, as ../README.md says.
#
#   PCONV_JOB            name of the RayJob, and of the run: gs://pconv/runs/NAME; default: train
#   PCONV_STEPS          default: 150
#   PCONV_GPU_WORKERS    worker pods, which have no GPU here; default: 2
#   PCONV_TRAIN_OPTIONS  more options of the training
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."

export PCONV_JOB=${PCONV_JOB:-train} PCONV_STEPS=${PCONV_STEPS:-150} PCONV_FINETUNE_STEPS=0
export PCONV_GPU_WORKERS=${PCONV_GPU_WORKERS:-2} PCONV_BATCH_SIZE=16
export PCONV_REPOSITORY=pconv PCONV_TAG=local PCONV_DATA=gs://pconv PCONV_RUNS=gs://pconv
export PCONV_TRAINER_ACCOUNT=none PCONV_INFERENCE_ACCOUNT=none
export PCONV_TRAIN_OPTIONS="--preset demo --set scaling.device=cpu --set scaling.cpus_per_worker=1 ${PCONV_TRAIN_OPTIONS-}"
here=infra/kuberay/local
for name in namespace rayjob; do
    python3 infra/fill.py infra/kuberay/$name.yaml >$here/$name.local.yaml
done

operator='https://github.com/ray-project/kuberay/ray-operator/config/default?ref=v1.5.1'
case ${1-} in
    --print) exec kubectl kustomize $here ;;
    --operator) kubectl apply --server-side --kustomize "$operator" ;;
    "") ;;
    *) echo "error: expected --operator, --print or nothing. Received '$1'." >&2; exit 2 ;;
esac

pconv() { kubectl --namespace pconv "$@"; }

kubectl apply --server-side --kustomize $here --selector app!=pconv
echo "job/data makes masks and records"
over=
until [[ $over == *Complete* || $over == *Failed* ]]; do
    sleep 2
    over=$(pconv get job data --output 'jsonpath={.status.conditions[?(@.status=="True")].type}')
done
pconv logs job/data --all-containers --tail 1
[[ $over == *Complete* ]] || exit 1

kubectl apply --server-side --kustomize $here --selector app=pconv
state=
while [[ $state != Complete/* && $state != Failed/* ]]; do
    sleep 2
    now=$(pconv get rayjob "$PCONV_JOB" --output 'jsonpath={.status.jobDeploymentStatus}/{.status.jobStatus}')
    [[ $now == "$state" ]] || echo "rayjob/$PCONV_JOB: $now"
    state=$now
done
pconv logs "job/$PCONV_JOB" --tail 20
[[ $state == Complete/SUCCEEDED ]] || exit 1
