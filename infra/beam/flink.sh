#!/usr/bin/env bash
# Runs a job on Apache Flink. Needs Java 11 or 17 for Beam's job server, which Beam downloads, unless
# --flink_job_server_jar names one. The cluster's own Java is that of its version: 11 or 17 for 1.19, 1.20 and 2.x.
#
#     infra/beam/flink.sh [--dry-run] JOB [OPTION...]
#
# JOB is build_masks, build_imagenet, inpaint or evaluate; its options and Beam's follow, and the last of two wins.
#
#   FLINK_MASTER       host:port of the cluster's REST service; default: [local], a Flink in this machine
#   FLINK_VERSION      of the cluster: 1.19, 1.20, 2.0, 2.1 or 2.2; default: Beam's
#   FLINK_PARALLELISM  slots to use: task managers times the slots of each; a cluster's own default would be 1
#   FLINK_ENVIRONMENT  where the Python workers are: EXTERNAL, beside each task manager, where a pool of them listens at
#                      localhost:50000 (the image run with --worker_pool; ../flink has it for Kubernetes), or DOCKER,
#                      which each task manager starts itself from $PCONV_REPOSITORY/beam:$PCONV_TAG, with a Docker client
#                      and daemon of its own; default: LOOPBACK, this process, for [local] only
#
# Nothing is staged, so task managers need not see a folder of this machine.
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
runner=(--runner FlinkRunner --flink_master "$master" "${nothing_staged[@]}")
[[ -z ${FLINK_VERSION-} ]] || runner+=(--flink_version "$FLINK_VERSION")
if [[ -n ${FLINK_PARALLELISM-} ]]; then
    [[ $FLINK_PARALLELISM =~ ^[1-9][0-9]*$ ]] || fail "FLINK_PARALLELISM: expected a number. Received '$FLINK_PARALLELISM'."
    runner+=(--parallelism "$FLINK_PARALLELISM")
elif [[ $master != "[local]" ]]; then
    fail "FLINK_PARALLELISM: expected how many slots of $master to use, for a cluster's own default is 1"
fi
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
# One Python process would serve all slots of a task manager; with 0 Flink starts as many as there are cores.
[[ ${FLINK_ENVIRONMENT:-LOOPBACK} == LOOPBACK ]] || runner+=(--sdk_worker_parallelism 0)
if [[ $master == "[local]" ]]; then
    # A Flink inside the job server opens what Java 17 keeps closed; a cluster's own configuration has these.
    for package in lang lang.reflect net nio text time util util.concurrent; do
        runner+=("--job_server_jvm_properties=--add-opens=java.base/java.$package=ALL-UNNAMED")
    done
fi
export_commit
submit "$dry_run" "$1" "${runner[@]}" "${@:2}"
