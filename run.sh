#!/usr/bin/env bash
# The commands of the sequence, in order; ./run.sh help lists the rest.
set -euo pipefail
unset PYTHONSAFEPATH  # the scripts find src/rsna beside them

script=$(readlink -f "${BASH_SOURCE[0]}")
here=$(dirname "$script")
sequence="make_folds cache_images train predict ensemble evaluate make_submission report summary"

usage() {
    cat <<EOF
./run.sh demo [key=value ...]            a small synthetic competition, from nothing to a scored submission
./run.sh test [slow] [pytest arguments]  the tests; slow: all of them, also those that take long
./run.sh fold=0..4 [key=value ...]       the whole sequence on the competition's files in input/:
                                         make_folds, cache_images, train, predict, ensemble,
                                         evaluate, make_submission, report, summary
./run.sh <command> [key=value ...]       one command; what is current is not made again
./run.sh help                            this, and the settings that most people change
./run.sh help all                        this, and every setting

other commands: infer images=<file, folder or pattern> (any DICOM, PNG or JPEG by a finished run; research only),
compare (all runs side by side), tune (search for better settings),
make_kernel (dataset and notebooks for Kaggle), make_demo (the synthetic competition), find_lr (learning-rate range test),
show_model, show_batch, show_history, show_results, show_submission (images and tables)
EOF
}

# -I, here and below: a re.py or email.py in the current folder is not imported.
# Whether a Python has everything that a requirements file lists; prints nothing, changes nothing.
satisfies() {
    "$1" -I - "$2" >/dev/null 2>&1 <<'EOF'
import re, sys
from importlib.metadata import version
from pathlib import Path
try:
    from packaging.requirements import Requirement
except ImportError:
    from pip._vendor.packaging.requirements import Requirement

def unmet(path):
    for line in path.read_text().splitlines():
        line = line.split("#")[0].strip()
        if line.startswith("-r"):
            yield from unmet(path.parent / line[2:].strip())
        elif line:
            need = Requirement(line)
            if not need.specifier.contains(version(need.name), prereleases=True):
                yield line

sys.exit(sys.version_info < (3, 11) or any(unmet(Path(sys.argv[1]))))
EOF
}

# Prints the Python that has all packages: the active one, or that of .venv. Fails if there is none.
ready_python() {
    local candidate
    for candidate in python python3 "$here/.venv/bin/python"; do
        if command -v "$candidate" >/dev/null 2>&1 && satisfies "$candidate" "$1"; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

# Makes .venv with a Python and installs a requirements file there.
install() {
    echo "run.sh: installing $(basename "$2") into $here/.venv (once; takes minutes)"
    if ! "$here/.venv/bin/python" -I -m pip --version >/dev/null 2>&1; then
        "$1" -I -m venv --clear "$here/.venv" || { echo "run.sh: cannot make $here/.venv; is the folder writable?"; return 1; }
    fi
    "$here/.venv/bin/python" -I -m pip install --disable-pip-version-check -r "$2" ||
        { echo "run.sh: the installation failed, see above; fix that and run the same command again"; return 1; }
}

# Prints the Python to use; makes .venv on first use where none is ready.
find_python() {
    local needs=$1 candidate
    ready_python "$needs" && return
    for candidate in python3.11 python3.12 python3.13 python3; do
        if "$candidate" -I -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            install "$candidate" "$needs" >&2 || return 1
            echo "$here/.venv/bin/python"
            return
        fi
    done
    echo "run.sh: needs Python 3.11 or newer with venv and ensurepip (Debian: python3-venv); install it, then run the same command again" >&2
    return 1
}

run_commands() {
    local name
    for name in "$@"; do
        echo "== $name"
        "$python" "$here/src/$name.py" ${words[@]+"${words[@]}"}
    done
}

command=${1:-help}
case "$command" in
    *=*) words=("$@") ;;
    *) shift || true; words=("$@") ;;
esac

# help anywhere among the words, such as './run.sh train help'; those of pytest are its own
if [ "$command" != test ] && [[ " $* " == *" help "* ]]; then
    command=help
fi

case "$command" in
    help | -h | --help)
        usage
        if python=$(ready_python "$here/requirements.txt"); then
            "$python" "$here/src/summary.py" help ${words[@]+"${words[@]}"}
        else
            echo "the settings are listed here once the packages are installed; until then see src/rsna/core/config.py"
        fi
        ;;
    test)
        python=$(find_python "$here/requirements-dev.txt")
        cd "$here"
        # an empty -m takes back that of pyproject.toml
        if [ "${words[0]:-}" = slow ]; then words=(-m "" "${words[@]:1}"); fi
        exec "$python" -m pytest ${words[@]+"${words[@]}"}
        ;;
    demo)
        python=$(find_python "$here/requirements.txt")
        echo "run.sh: demo with $python"
        words=(preset=demo ${words[@]+"${words[@]}"})
        run_commands make_demo $sequence
        ;;
    *=*)
        python=$(find_python "$here/requirements.txt")
        echo "run.sh: with $python"
        run_commands $sequence
        ;;
    *)
        if [ ! -f "$here/src/$command.py" ] || ! grep -q '__main__' "$here/src/$command.py"; then
            echo "run.sh: there is no command '$command'" >&2
            usage >&2
            exit 2
        fi
        needs=requirements.txt
        case "$command $*" in
            show_model* | make_kernel*) needs=requirements-show.txt ;;
            infer*format=dicom-sr*) needs=requirements-infer.txt ;;
            tune*) needs=requirements-tune.txt ;;
        esac
        python=$(find_python "$here/$needs")
        echo "== $command"
        exec "$python" "$here/src/$command.py" ${words[@]+"${words[@]}"}  # so that a signal to this process reaches it
        ;;
esac
