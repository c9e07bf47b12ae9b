# What the scripts share. To be sourced, by bash, from scripts that have set -euo pipefail.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin

die() {
    echo "${0##*/}: $*" >&2
    exit 1
}

# skip REASON…: says that a check can't be made here, and counts it where scripts/check asks for that.
skip() {
    echo "SKIP: $*"
    [ -z "${UNIONMOUNT_SKIPS:-}" ] || echo "$*" >>"$UNIONMOUNT_SKIPS"
}

need() {
    local program
    for program; do
        command -v "$program" >/dev/null || die "$program is missing: run scripts/install-deps"
    done
}

# The program under test: $UNIONMOUNT_BIN, else the debug build, which the tests use too.
find_program() {
    if [ -n "${UNIONMOUNT_BIN:-}" ]; then
        program=$UNIONMOUNT_BIN
        return
    fi
    (cd "$root" && cargo build --quiet)
    program=$(cd "$root" && cd "${CARGO_TARGET_DIR:-target}" && pwd)/debug/unionmount
}

union_flags=()

# What ends before the scratch directory goes: functions, in this order. A script adds to it and sets no trap of its own.
endings=()

# A scratch directory, removed with all mounts in it when the script ends, however it ends.
make_scratch() {
    scratch=$(mktemp -d "${UNIONMOUNT_SCRATCH:-${TMPDIR:-/tmp}}/um-XXXXXX")
    chmod 755 "$scratch"
    trap clean_up EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
}

clean_up() {
    local status=$? mount ending
    # Whatever of it fails: the rest is cleaned up all the same.
    set +e
    for ending in "${endings[@]}"; do
        "$ending"
    done
    while read -r mount; do
        umount "$mount" 2>/dev/null || umount -l "$mount" || echo "left mounted: $mount" >&2
    done < <(awk -v dir="$scratch/" 'index($5, dir) == 1 { print $5 }' /proc/self/mountinfo | tac)
    if [ "$status" = 0 ] || [ -z "${UNIONMOUNT_KEEP:-}" ]; then
        rm -rf --one-file-system "$scratch"
    else
        echo "kept: $scratch" >&2
    fi
}

# mount_union DIR: mounts DIR/merged over DIR/lower with DIR/upper, all made if missing. $union_options go to -o, $union_flags
# stand before all else where the program is unionmount.
mount_union() {
    local dir=$1 options=${union_options:-}
    mkdir -p "$dir"/{lower,upper,work,merged}
    case "${program##*/}" in
    kernel)
        mount -t overlay overlay -o "lowerdir=$dir/lower,upperdir=$dir/upper,workdir=$dir/work,redirect_dir=on,index=on" \
            "$dir/merged"
        ;;
    fuse-overlayfs*)
        "$program" -o "lowerdir=$dir/lower,upperdir=$dir/upper,workdir=$dir/work${options:+,$options}" "$dir/merged"
        ;;
    *)
        "$program" "${union_flags[@]}" --lower "$dir/lower" --upper "$dir/upper" --work "$dir/work" ${options:+-o "$options"} \
            "$dir/merged"
        ;;
    esac
}

# in_user_namespace FIRST COMMAND…: runs it as root of a user namespace whose ids 0 to 65535 are the host's from FIRST on, with
# mounts of its own and a /dev/fuse that it may open. Needs root and $scratch.
in_user_namespace() {
    local first=$1 holder status=0
    shift
    # The machine's /dev/fuse may be closed to the ids of the namespace.
    [ -e "$scratch/fuse" ] || mknod -m 666 "$scratch/fuse" c 10 229
    # It ends with this script, whatever ends that.
    setpriv --pdeathsig KILL unshare --user --mount sleep infinity &
    holder=$!
    # Until the namespace is there, its ids can't be mapped.
    until [ "$(readlink "/proc/$holder/ns/user")" != "$(readlink /proc/self/ns/user)" ]; do sleep 0.01; done
    echo 0 "$first" 65536 >"/proc/$holder/uid_map"
    echo 0 "$first" 65536 >"/proc/$holder/gid_map"
    # shellcheck disable=SC2016
    nsenter --target "$holder" --user --mount --setuid 0 --setgid 0 \
        sh -c 'mount --bind "$0" /dev/fuse && exec "$@"' "$scratch/fuse" "$@" || status=$?
    kill "$holder"
    wait "$holder" 2>/dev/null || true
    return "$status"
}

# manifest DIR: a line an object: type, mode, owner, size, links, time, target or content, xattrs. For comparing trees.
manifest() (
    cd "$1"
    find . -mindepth 1 \( -type f -printf 'f %m %U:%G %s %n %T@ %P\n' \) -o \
        \( -type d -printf 'd %m %U:%G - - - %P\n' \) -o \
        \( -type l -printf 'l - %U:%G %s - %T@ %P -> %l\n' \) -o \
        -printf '%y %m %U:%G - - - %P\n' | LC_ALL=C sort -k7
    find . -type f -print0 | LC_ALL=C sort -z | xargs -0 -r sha256sum
    getfattr -R -h -d -m '^(user|security|system)\.' --absolute-names . 2>/dev/null | LC_ALL=C sort
)

# keep_row TABLE SUITE MODE CASES PASS NOT-RUN FAIL UNEXPLAINED: puts that into docs/suites.tsv or another such table, in place of
# what it had of the suite in that mode. FAIL counts what passes on the filesystem below, UNEXPLAINED those of them without a reason.
keep_row() {
    local table=$1 row new
    shift
    row=$(printf '%s\t' "$@")
    new=$(awk -F '\t' -v suite="$1" -v mode="$2" -v row="${row%$'\t'}" '
        $1 == suite && $2 == mode { if (!done) print row; done = 1; next }
        { print }
        END { if (!done) print row }' "$table")
    printf '%s\n' "$new" >"$table"
}

# try COMMAND…: runs it in a subshell that stops at the first error; $status is how it ended. A plain command: bash turns
# set -e off in all that a || or an if follows, in subshells and functions too.
try() {
    set +e
    (set -e; "$@")
    status=$?
    set -e
}

# debian_files: $debian_tar, a minimal Debian, and $debian_debs, a directory with a few packages; fetched once and kept.
# Fails where they can't be had. Needs $scratch.
debian_files() {
    local cache=${XDG_CACHE_HOME:-/root/.cache}/unionmount new
    debian_tar=$cache/minbase.tar debian_debs=$cache/debs-2
    mkdir -p "$cache"
    if [ ! -s "$debian_tar" ]; then
        need mmdebstrap
        new=$(mktemp -d "$cache/new-XXXXXX")
        # By its suffix mmdebstrap knows that it is to be a tar.
        mmdebstrap --quiet --variant=minbase bookworm "$new/minbase.tar" 2>"$scratch/mmdebstrap.log" || {
            tail -3 "$scratch/mmdebstrap.log"
            rm -rf "$new"
            return 1
        }
        mv "$new/minbase.tar" "$debian_tar"
        rm -rf "$new"
    fi
    if [ ! -d "$debian_debs" ]; then
        new=$(mktemp -d "$cache/new-XXXXXX")
        chmod 777 "$new"
        if ! (cd "$new" && apt-get download -qq hello less libcap2 libcap2-bin) >/dev/null 2>&1; then
            rm -rf "$new"
            return 1
        fi
        mv -T "$new" "$debian_debs"
    fi
}
