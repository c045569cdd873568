#!/bin/bash
# How a command runs on a cluster: in the container, if there is one. Sourced by job scripts and by tasks, which have
# set PORO_PYTHON, PORO_CONTAINER, PORO_BINDS (comma separated) and PORO_CHECKOUT before.

if [[ -n $PORO_CHECKOUT ]]; then # the package is not installed but run from a checkout
    export PYTHONPATH=$PORO_CHECKOUT${PYTHONPATH:+:$PYTHONPATH}
fi

# The variables of a job and of a task reach the inside as they are. WITH_CONDA is how LUMI's images say which
# environment is to be switched on; no shell stays between the caller and the command, so that signals and exit codes
# go through.
inside() {
    if [[ -z $PORO_CONTAINER ]]; then
        "$@"
        return
    fi
    local binds=()
    [[ -z $PORO_BINDS ]] || binds=(--bind "$PORO_BINDS")
    # shellcheck disable=SC2016 # to be expanded inside
    singularity exec "${binds[@]}" "$PORO_CONTAINER" bash -c 'eval "${WITH_CONDA:-}"; exec "$@"' inside "$@"
}

poro() {
    inside "$PORO_PYTHON" -m megatron_poro.cli.main "$@"
}
