# Sourced by the scripts beside it: the Python environment, and how to run a benchmark.
set -euo pipefail

ROOT=$(cd -P "$(dirname "${BASH_SOURCE[0]}")/.." && pwd) # -P: the folder may be a link, too
SCRIPT=$(basename "$0")
MVTEC_AD="carpet grid leather tile wood bottle cable capsule hazelnut metal_nut pill screw toothbrush transistor zipper"

fail() { # MESSAGE: print it in one line and exit as for wrong usage
    echo "$SCRIPT: $1" >&2
    exit 2
}

absolute() { # PATH: the same file from any folder
    case $1 in /*) echo "$1" ;; *) echo "$PWD/$1" ;; esac
}

# ensure_env FILE: make .venv and install the requirements file, again whenever it has changed.
# PYTHON=/path/to/python uses that interpreter, as it is, instead.
ensure_env() {
    if [ -n "${PYTHON:-}" ]; then
        command -v "$PYTHON" >/dev/null || fail "PYTHON=$PYTHON is not a program; name a Python interpreter, or leave it out"
        case $PYTHON in */*) PYTHON=$(absolute "$PYTHON") ;; esac
        return
    fi
    local base
    for base in python3 python3.12 python3.11 python3.13 python3.10 python; do
        if "$base" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            break
        fi
        base=
    done
    PYTHON=$ROOT/.venv/bin/python
    local stamp=$ROOT/.venv/.installed-$(basename "$1") wanted
    wanted=$(cd "$ROOT" && cat requirements*.txt requirements/*.txt | cksum)
    if [ -x "$PYTHON" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
        return
    fi
    if ! "$PYTHON" -m pip --version >/dev/null 2>&1; then # there is none, or one that was not completed
        [ -n "$base" ] || fail "Python 3.10 to 3.13 is needed and was not found; install one, or name it with PYTHON=…"
        if ! "$base" -m venv --clear "$ROOT/.venv"; then
            rm -rf "$ROOT/.venv"
            fail "cannot make $ROOT/.venv with $base (on Debian: apt install python3-venv)"
        fi
    fi
    echo "installing $1 into $ROOT/.venv (several GB the first time)" >&2
    "$PYTHON" -m pip install --disable-pip-version-check -r "$ROOT/$1" >&2
    echo "$wanted" >"$stamp"
}

need_folder() { # NAME DESCRIPTION: the variable must name a folder
    local value=${!1:-}
    [ -n "$value" ] || fail "$1 is not set: $2. Try: ${EXAMPLE:-DATAPATH=/data/… AUGPATH=/data/dtd/images} bash shell/$SCRIPT"
    [ -d "$value" ] || fail "$1=$value is not a folder: $2"
}

# class_names DATA TEXT: sets the array `names`. If TEXT has several lines, each line is a name. Otherwise TEXT holds words,
# which quotes or a backslash may join; words that are not folders of DATA alone, but one folder together, are one name:
# "metal nut".
class_names() {
    local data=$1 text=${2//$'\r'/} words=() word missing=0 longest i j
    names=()
    case $text in
        *$'\n'*)
            while read -r word; do # without blanks around it
                [ -z "$word" ] || names+=("$word")
            done <<<"$text"
            return
            ;;
    esac
    if word=$(printf '%s\n' "$text" | xargs -n 1 printf '%s\n' 2>/dev/null); then
        while IFS= read -r word; do
            [ -z "$word" ] || words+=("$word")
        done <<<"$word"
    else # a quote that is not closed is part of a name
        read -r -a words <<<"$text"
    fi
    for word in ${words[@]+"${words[@]}"}; do [ -d "$data/$word" ] || missing=1; done
    for ((i = 0; i < ${#words[@]}; i = longest)); do
        longest=$((i + 1)) word=${words[i]}
        for ((j = i + 1; missing && j < ${#words[@]}; j++)); do
            word="$word ${words[j]}"
            [ ! -d "$data/$word" ] || longest=$((j + 1))
        done
        names+=("${words[*]:i:longest-i}")
    done
}

# benchmark NAME RESULTS DATA TEST DISTRIBUTION FG DEFAULT_CLASSES [flags of main.py]
# The settings are the published ones. The backbone is left out if NET_FLAGS names one, which would otherwise be added to it.
# BACKBONE="" leaves it to the default of main.py.
benchmark() {
    local name=$1 results=$2 data=$3 test=$4 distribution=$5 fg=$6 classes=$7 class
    shift 7
    class_names "$data" "${CLASSES:-$classes}"
    local network=(-b wideresnet50) # with the default dimensions, which are those of the paper
    [ -n "${BACKBONE-published}" ] || network=()
    case " ${NET_FLAGS:-} " in *" -b "* | *" --backbone"* | *" --recipe fast "*) network=() ;; esac
    local chosen=()
    for class in ${names[@]+"${names[@]}"}; do chosen+=(-d "$class"); done
    # NET_FLAGS and DATASET_FLAGS are meant to be split into words
    # shellcheck disable=SC2086
    "$PYTHON" "$ROOT/main.py" --seed 0 --test "$test" --results_path "$results" "$@" \
        net ${network[@]+"${network[@]}"} --patchsize 3 --meta_epochs 640 \
        --eval_epochs 1 --dsc_layers 2 --dsc_hidden 1024 --pre_proj 1 --mining 1 --noise 0.015 --radius 0.75 \
        --p 0.5 --step 20 --limit 392 ${NET_FLAGS:-} \
        dataset --distribution "$distribution" --mean 0.5 --std 0.1 --fg "$fg" --rand_aug 1 --batch_size 8 \
        --resize 288 --imagesize 288 ${chosen[@]+"${chosen[@]}"} ${DATASET_FLAGS:-} "$name" "$data" "$AUGPATH"
}

# score_subsets WHAT PATTERN RESULTS DEFAULT_CLASSES [flags of main.py]
# Score every folder of that name in DATAPATH with the checkpoints of MVTec AD in MODELS; nothing is trained.
score_subsets() {
    local what=$1 pattern=$2 results=${RESULTS:-$ROOT/results/$3} classes=$4 subsets subset
    shift 4
    need_folder DATAPATH "the folder of $what with $pattern folders in it"
    MODELS=${MODELS:-$ROOT/results/mvtec/models}
    need_folder MODELS "checkpoints of a run on MVTec AD (shell/run-mvtec.sh makes them)"
    AUGPATH=${AUGPATH:-.} # no texture is read
    subsets=$(find -L "$DATAPATH" -mindepth 1 -maxdepth 2 -type d -name "$pattern" | sort)
    [ -n "$subsets" ] || fail "DATAPATH=$DATAPATH holds no folder $pattern"
    ensure_env requirements.txt
    while read -r subset; do
        echo "$(basename "$subset")" >&2
        benchmark mvtec "$results/$(basename "$subset")" "$subset" test 0 1 "$classes" --models_path "$MODELS" "$@" </dev/null
    done <<<"$subsets"
}
