# shellcheck shell=bash
# Shared by the scripts beside it: submit [--dry-run] JOB [OPTION...] runs or prints one job's command.

python=${PYTHON:-$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)/.venv/bin/python}
command -v "$python" >/dev/null || python=python3

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
