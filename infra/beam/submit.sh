# shellcheck shell=bash
# Shared by the scripts beside it: submit [--dry-run] JOB [OPTION...] runs or prints one job's command.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
command -v "$python" >/dev/null || python=python3

# Nothing is staged beside the pipeline itself: everything that workers import is in their image, and two files that
# Beam would otherwise stage need a folder that they may not be able to write, or to read.
# shellcheck disable=SC2034  # the scripts use it
nothing_staged=(--no_save_main_session --experiments disable_logging_submission_environment)

fail() {
    echo "error: $*" >&2
    exit 2
}

# Prints the job's name with hyphens, or fails.
check_job() {
    case ${1-} in
        build_masks | build_imagenet | inpaint | evaluate) echo "${1//_/-}" ;;
        *) fail "JOB: expected build_masks, build_imagenet, inpaint or evaluate. Received '${1-}'." ;;
    esac
}

# Records this checkout's commit in what the job writes, as images record theirs.
export_commit() {
    [[ -z ${PCONV_COMMIT-} ]] || return 0
    PCONV_COMMIT=$(git -C "$root" describe --always --exclude '*' --abbrev=12 --dirty=.changed 2>/dev/null) || return 0
    export PCONV_COMMIT
}

submit() {
    local dry_run=$1 job=$2
    shift 2
    set -- "$python" -m "pipelines.$job" "$@"
    if [[ $dry_run == yes ]]; then
        printf '%q ' "$@"
        printf '\n'
    else
        exec "$@"
    fi
}
