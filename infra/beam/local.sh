#!/usr/bin/env bash
# Runs a job on this machine.
#
#     infra/beam/local.sh [--dry-run] [--processes N | --portable] JOB [OPTION...]
#
# JOB is build_masks, build_imagenet, inpaint or evaluate; its options and Beam's follow. Without --processes the
# job runs in one process; --portable sends it through Beam's portable job service, as Flink does.
set -euo pipefail
# shellcheck source=infra/beam/submit.sh
source "$(dirname "${BASH_SOURCE[0]}")/submit.sh"

dry_run=no
runner=(--runner FnApiRunner)
while [[ ${1-} == --* ]]; do
    case $1 in
        --dry-run) dry_run=yes ;;
        --processes)
            [[ ${2-} =~ ^[1-9][0-9]*$ ]] || fail "--processes: expected a number. Received '${2-}'."
            runner+=(--direct_running_mode multi_processing --direct_num_workers "$2")
            shift
            ;;
        --portable) runner=(--runner PortableRunner --job_endpoint embed --environment_type LOOPBACK) ;;
        *) fail "unknown option $1: expected --dry-run, --processes N or --portable before JOB" ;;
    esac
    shift
done
check_job "${1-}" >/dev/null
submit "$dry_run" "$1" "${runner[@]}" "${@:2}"
