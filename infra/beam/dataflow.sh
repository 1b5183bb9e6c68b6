#!/usr/bin/env bash
# Runs a job on Google Cloud Dataflow, in the project's container, as the job's own service account.
#
#     eval "$(terraform -chdir=infra/terraform output -raw environment)"
#     infra/beam/dataflow.sh [--dry-run] [--no-wait] [--gpu l4|a100] JOB [OPTION...]
#
# JOB is build_masks, build_imagenet, inpaint or evaluate; its options and Beam's follow, and the last of two wins:
# --max_num_workers 200, --worker_machine_type n2-highmem-8, --flexrs_goal COST_OPTIMIZED ... Labels add up.
#
#   --dry-run    print the command
#   --no-wait    print the job's id and end; the job is done when its manifest.json (of evaluate, metrics.json) is there
#   --gpu l4     inpaint and evaluate on workers with one GPU, in the image beam-gpu (`make images GPU=yes`)
set -euo pipefail
# shellcheck source=infra/beam/submit.sh
source "$(dirname "${BASH_SOURCE[0]}")/submit.sh"

dry_run=no
gpu=
wait=()
while [[ ${1-} == --* ]]; do
    case $1 in
        --dry-run) dry_run=yes ;;
        --no-wait) wait=(--no-wait) ;;
        --gpu)
            gpu=${2-}
            [[ $gpu == l4 || $gpu == a100 ]] || fail "--gpu: expected l4 or a100. Received '$gpu'."
            shift
            ;;
        *) fail "unknown option $1: expected --dry-run, --no-wait or --gpu l4|a100 before JOB" ;;
    esac
    shift
done
name=$(check_job "${1-}")
job=$1
shift

for variable in PROJECT REGION SUBNETWORK REPOSITORY TAG SCRATCH; do
    variable=PCONV_$variable
    [[ -n ${!variable-} ]] || fail "$variable is not set; 'terraform output environment' gives it"
done

# Threads of one Python process. Where a machine has one process per vCPU, the 4 GB of a vCPU are what they share: a
# thread of build_imagenet holds one shard of 200 MB, its copy for the upload and the upload's buffer of 100 MB, one of
# build_masks a shard of 82 MB. Dataflow's default would be a dozen. Reading and writing overlap in pools of the jobs'
# own. The network is there once per machine, and uses all its cores; a thread holds the images of a batch, 0.1 GB.
machine=n2-standard-4 image=beam disk=50 workers=50
special=()
case $job in
    build_masks) account=${PCONV_MASKS_ACCOUNT-} threads=2 ;;
    build_imagenet) account=${PCONV_IMAGENET_ACCOUNT-} threads=1 ;;
    inpaint) account=${PCONV_INFERENCE_ACCOUNT-} threads=4 ;;
    evaluate) account=${PCONV_EVALUATION_ACCOUNT-} threads=2 ;;
esac
[[ -n $account ]] || fail "the service account of $job is not set; 'terraform output environment' gives it"
if [[ $job == inpaint || $job == evaluate ]]; then
    machine=n2-standard-8
    special=(--experiments no_use_multiple_sdk_containers)
fi
if [[ -n $gpu ]]; then
    [[ $job == inpaint || $job == evaluate ]] || fail "--gpu: expected inpaint or evaluate. Received $job."
    # The image has CUDA: 8 GB unpacked, beside its layers.
    image=beam-gpu disk=100 workers=4
    if [[ $gpu == l4 ]]; then machine=g2-standard-8 kind=nvidia-l4; else machine=a2-highgpu-1g kind=nvidia-tesla-a100; fi
    special+=(--dataflow_service_options "worker_accelerator=type:$kind;count:1;install-nvidia-driver")
    # A worker without its GPU would compute on the CPU, at the GPU's price.
    [[ $job != inpaint ]] || special+=(--device gpu)
fi

export_commit
submit "$dry_run" "$job" \
    --runner DataflowRunner \
    --project "$PCONV_PROJECT" \
    --region "$PCONV_REGION" \
    --job_name "${PCONV_NAME:-pconv}-$name-$(date -u +%Y%m%d-%H%M%S)" \
    --labels "app=${PCONV_NAME:-pconv}" \
    --labels "job=$name" \
    --service_account_email "$account" \
    --temp_location "$PCONV_SCRATCH/staging/temp" \
    --staging_location "$PCONV_SCRATCH/staging/files" \
    --subnetwork "$PCONV_SUBNETWORK" \
    --no_use_public_ips \
    --sdk_container_image "$PCONV_REPOSITORY/$image:$PCONV_TAG" \
    --sdk_location container \
    "${nothing_staged[@]}" \
    --worker_machine_type "$machine" \
    --disk_size_gb "$disk" \
    --number_of_worker_harness_threads "$threads" \
    --autoscaling_algorithm THROUGHPUT_BASED \
    --max_num_workers "$workers" \
    ${special[@]+"${special[@]}"} \
    ${wait[@]+"${wait[@]}"} \
    "$@"
