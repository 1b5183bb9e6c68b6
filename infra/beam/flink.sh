#!/usr/bin/env bash
# Runs a job on Apache Flink. Needs Java for Beam's job server, which Beam downloads, unless --flink_job_server_jar
# names one.
#
#     infra/beam/flink.sh [--dry-run] JOB [OPTION...]
#
# JOB is build_masks, build_imagenet, inpaint or evaluate; its options and Beam's follow, and the last of two wins.
#
#   FLINK_MASTER       host:port of the cluster's REST service; default: [local], a Flink in this machine
#   FLINK_VERSION      of the cluster: 1.19, 1.20, 2.0, 2.1 or 2.2; default: Beam's
#   FLINK_ENVIRONMENT  where the Python workers are: DOCKER, which starts $PCONV_REPOSITORY/beam:$PCONV_TAG beside
#                      each task manager, or EXTERNAL, workers that listen at localhost:50000 there already (the image
#                      run with --worker_pool); default: LOOPBACK, this process, for [local] only
set -euo pipefail
# shellcheck source=infra/beam/submit.sh
source "$(dirname "${BASH_SOURCE[0]}")/submit.sh"

dry_run=no
if [[ ${1-} == --dry-run ]]; then
    dry_run=yes
    shift
fi
check_job "${1-}" >/dev/null
master=${FLINK_MASTER:-[local]}
runner=(--runner FlinkRunner --flink_master "$master")
[[ -z ${FLINK_VERSION-} ]] || runner+=(--flink_version "$FLINK_VERSION")
case ${FLINK_ENVIRONMENT:-LOOPBACK} in
    LOOPBACK)
        [[ $master == "[local]" ]] || fail "FLINK_ENVIRONMENT: expected DOCKER or EXTERNAL for the cluster $master"
        runner+=(--environment_type LOOPBACK)
        ;;
    DOCKER)
        [[ -n ${PCONV_REPOSITORY-} && -n ${PCONV_TAG-} ]] || fail "DOCKER needs PCONV_REPOSITORY and PCONV_TAG"
        runner+=(--environment_type DOCKER --environment_config "$PCONV_REPOSITORY/beam:$PCONV_TAG")
        ;;
    EXTERNAL) runner+=(--environment_type EXTERNAL --environment_config localhost:50000) ;;
    *) fail "FLINK_ENVIRONMENT: expected LOOPBACK, DOCKER or EXTERNAL. Received '$FLINK_ENVIRONMENT'." ;;
esac
submit "$dry_run" "$1" "${runner[@]}" "${@:2}"
