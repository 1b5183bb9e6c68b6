#!/usr/bin/env bash
# Runs a job on Google Cloud Dataflow, in the project's container, as the job's own service account.
#
#     eval "$(terraform -chdir=infra/terraform output -raw environment)"
#     infra/beam/dataflow.sh [--dry-run] JOB [OPTION...]
#
# JOB is build_masks, build_imagenet, inpaint or evaluate; its options and Beam's follow, and the last of two wins:
# --max_num_workers 200, --worker_machine_type n2-highmem-8, --flexrs_goal COST_OPTIMIZED ...
set -euo pipefail
# shellcheck source=infra/beam/submit.sh
source "$(dirname "${BASH_SOURCE[0]}")/submit.sh"

dry_run=no
if [[ ${1-} == --dry-run ]]; then
    dry_run=yes
    shift
fi
name=$(check_job "${1-}")
job=$1
shift

for variable in PROJECT REGION SUBNETWORK REPOSITORY TAG SCRATCH; do
    variable=PCONV_$variable
    [[ -n ${!variable-} ]] || fail "$variable is not set; 'terraform output environment' gives it"
done
machine=n2-standard-4
special=()
case $job in
    build_masks) account=${PCONV_MASKS_ACCOUNT-} ;;
    build_imagenet) account=${PCONV_IMAGENET_ACCOUNT-} ;;
    *)
        if [[ $job == inpaint ]]; then account=${PCONV_INFERENCE_ACCOUNT-}; else account=${PCONV_EVALUATION_ACCOUNT-}; fi
        # One copy of the network per machine, which uses all its cores.
        machine=n2-standard-8
        special=(--experiments no_use_multiple_sdk_containers)
        ;;
esac
[[ -n $account ]] || fail "the service account of $job is not set; 'terraform output environment' gives it"

submit "$dry_run" "$job" \
    --runner DataflowRunner \
    --project "$PCONV_PROJECT" \
    --region "$PCONV_REGION" \
    --job_name "${PCONV_NAME:-pconv}-$name-$(date -u +%Y%m%d-%H%M%S)" \
    --service_account_email "$account" \
    --temp_location "$PCONV_SCRATCH/staging/temp" \
    --staging_location "$PCONV_SCRATCH/staging/files" \
    --subnetwork "$PCONV_SUBNETWORK" \
    --no_use_public_ips \
    --sdk_container_image "$PCONV_REPOSITORY/beam:$PCONV_TAG" \
    --sdk_location container \
    --worker_machine_type "$machine" \
    --autoscaling_algorithm THROUGHPUT_BASED \
    --max_num_workers 50 \
    ${special[@]+"${special[@]}"} \
    "$@"
