# What scripts/engines and scripts/bench-engines share: container engines with stores and settings of their own. To be
# sourced after lib.sh.
#
# WHO is `kernel` (root, on the kernel's overlayfs), `root` or `user` (a mount program, $mount_program), or
# `kernel-user` (rootless, on the kernel's overlayfs); others are told by the same beginning and end. Each has its stores,
# settings and results in $scratch/WHO.

export LC_ALL=C
user=unionmount-test

# start_engines WHO…: makes ready what these need.
start_engines() {
    local who
    # A user with 65536 subordinate ids.
    id "$user" >/dev/null 2>&1 || useradd --create-home "$user"
    grep -q "^$user:" /etc/subuid || usermod --add-subuids 100000-165535 "$user"
    grep -q "^$user:" /etc/subgid || usermod --add-subgids 100000-165535 "$user"
    setfacl -m "u:$user:rw" /dev/fuse
    mount_program=$program
    if ! setpriv --reuid="$user" --regid="$user" --init-groups test -x "$program"; then
        mkdir "$scratch/bin"
        cp "$program" "$scratch/bin/"
        mount_program=$scratch/bin/${program##*/}
    fi
    endings+=(end_engines)
    for who; do
        settings "$who"
    done
}

# The containers go, and the pause process of the rootless engine, which keeps the namespace with its mounts alive.
end_engines() {
    local who conf
    for who in "$scratch"/*/containers.conf; do
        [ -e "$who" ] || continue
        who=${who%/containers.conf} who=${who##*/}
        for conf in "$scratch/$who"/*.conf; do
            conf=${conf##*/} conf=${conf%.conf}
            [ "$conf" = containers ] || store=$conf podman_ "$who" rm -fa -t 0 >/dev/null 2>&1 || true
        done
        [[ $who != *user ]] || podman_ "$who" system migrate >/dev/null 2>&1 || true
    done
}

# settings WHO [STORE [LINE…]]: a store and the settings that name it; the lines go to [storage.options.overlay].
settings() {
    local who=$1 store=${2:-store} dir=$scratch/$1
    shift $(($# < 2 ? $# : 2))
    mkdir -p "$dir"/{home,xdg,out,tmp}
    cat >"$dir/$store.conf" <<END
[storage]
driver = "overlay"
runroot = "$dir/xdg/$store"
graphroot = "$dir/$store"
rootless_storage_path = "$dir/$store"
[storage.options.overlay]
END
    case $who in
    kernel*) [ -z "${kernel_options:-}" ] || echo "mountopt = \"$kernel_options\"" ;;
    *) echo "mount_program = \"$mount_program\"" ;;
    esac >>"$dir/$store.conf"
    [ $# = 0 ] || printf '%s\n' "$@" >>"$dir/$store.conf"
    cat >"$dir/containers.conf" <<END
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=30000:30000"]
netns = "none"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
END
    if [[ $who = *user ]]; then
        chown "$user:" "$dir" "$dir"/{home,xdg,out,tmp}
        chmod 700 "$dir/xdg"
    fi
}

# as WHO COMMAND…: with the settings of WHO, and as that user. $store names another store than the usual one.
as() {
    local who=$1 dir=$scratch/$1
    shift
    local run=(env HOME="$dir/home" XDG_RUNTIME_DIR="$dir/xdg" TMPDIR="$dir/tmp" CONTAINERS_CONF="$dir/containers.conf"
        CONTAINERS_STORAGE_CONF="$dir/${store:-store}.conf" BUILDAH_ISOLATION=chroot "$@")
    if [[ $who = *user ]]; then
        (cd "$dir/home" && setpriv --reuid="$user" --regid="$user" --init-groups "${run[@]}")
    else
        (cd "$dir/home" && "${run[@]}")
    fi
}

podman_() {
    local who=$1
    shift
    as "$who" podman --log-level=error "$@"
}

buildah_() {
    local who=$1
    shift
    as "$who" buildah --log-level=error "$@"
}

# inside WHO SCRIPT ARGUMENT…: runs a script of bash where the engine's mounts and owners are seen as it sees them; for a
# rootless one that is in its user namespace.
inside() {
    local who=$1 script="$(declare -f manifest); set -euo pipefail; $2"
    shift 2
    if [[ $who = *user ]]; then
        podman_ "$who" unshare bash -c "$script" bash "$@"
    else
        as "$who" bash -c "$script" bash "$@"
    fi
}

# The daemons of WHO's mounts, told by the mount points that they were given.
daemons() {
    local pid
    for pid in $(pgrep -x "$(cut -c1-15 <<<"${program##*/}")"); do
        # It may have ended since.
        if { tr '\0' '\n' <"/proc/$pid/cmdline" | grep -q "^$scratch/$1/"; } 2>/dev/null; then echo "$pid"; fi
    done
}

# No daemon and no mount of WHO's is left; a daemon may take a moment for its end.
nothing_left() {
    local who=$1 tries=0 mounts
    [[ $who != kernel* ]] || return 0
    while [ -n "$(daemons "$who")" ]; do
        tries=$((tries + 1))
        [ "$tries" -lt 100 ] || { echo "$who: daemons left: $(daemons "$who" | xargs)" && return 1; }
        sleep 0.1
    done
    mounts=$(inside "$who" 'grep -F "$1/" /proc/self/mountinfo | grep " fuse" || true' "$scratch/$who")
    [ -z "$mounts" ] || { echo "$who: mounts left: $mounts" && return 1; }
}

# --- Images.

has_image() {
    podman_ "$1" image exists "$2"
}

# A small image: busybox, and something for every kind of change. `nofifo` is the same without that.
with_small() {
    local name=${2:-small}
    [ -s "$scratch/small.tar" ] || small_tar
    has_image "$1" "$name" || podman_ "$1" import -q - "$name" <"$scratch/$name.tar" >/dev/null
}

small_tar() {
    local dir=$scratch/small name
    mkdir -p "$dir"/{bin,etc,tmp,proc,sys,dev,run,root,data/{dir/sub,opaque,keep,other}}
    cp "$(command -v busybox)" "$dir/bin/busybox"
    for name in sh ls cat rm mv ln mkdir rmdir chmod chown touch sleep sync true echo cp dd find stat id seq wc mkfifo test; do
        ln -s busybox "$dir/bin/$name"
    done
    chmod 1777 "$dir/tmp"
    echo root:x:0:0:root:/root:/bin/sh >"$dir/etc/passwd"
    echo root:x:0: >"$dir/etc/group"
    for name in $(seq 20); do
        seq "$name" $((name * 50)) >"$dir/data/keep/$name"
    done
    echo one >"$dir/data/one"
    echo linked >"$dir/data/linked"
    ln "$dir/data/linked" "$dir/data/also-linked"
    ln -s one "$dir/data/soft"
    mkfifo "$dir/data/fifo"
    echo sub >"$dir/data/dir/sub/file"
    echo old >"$dir/data/opaque/old"
    echo suid >"$dir/data/suid" && chmod 4755 "$dir/data/suid"
    echo owned >"$dir/data/owned" && chown 12:34 "$dir/data/owned"
    echo other >"$dir/data/other/file" && chmod 2750 "$dir/data/other"
    setfattr -n user.mark -v kept "$dir/data/owned"
    find "$dir" -exec touch -h -d '2010-01-01T00:00:00.5Z' {} +
    tar -C "$dir" --xattrs --numeric-owner --exclude=./data/fifo -cf "$scratch/nofifo.tar" .
    tar -C "$dir" --xattrs --numeric-owner -cf "$scratch/small.tar" .
}

# A minimal Debian; fails where there is none to be had.
with_debian() {
    debian_files || return 1
    has_image "$1" debian || podman_ "$1" import -q - debian <"$debian_tar" >/dev/null
}

# $scratch/context: the build of an image in six RUN layers.
six_layers() {
    local context=$scratch/context
    [ ! -d "$context" ] || return 0
    mkdir "$context"
    cp "$debian_debs"/{hello,libcap2,libcap2-bin}_*.deb "$context/"
    cat >"$context/Containerfile" <<'END'
FROM debian
COPY *.deb /debs/
RUN dpkg -i /debs/libcap2_*.deb /debs/libcap2-bin_*.deb /debs/hello_*.deb && hello
RUN cp /usr/bin/hello /usr/bin/raw && setcap cap_net_raw+ep /usr/bin/raw && getcap /usr/bin/raw && chmod u+s /usr/bin/hello
RUN rm -rf /usr/share/doc /usr/share/locale /debs && rm /etc/motd /etc/issue; mkdir /usr/share/doc && echo new >/usr/share/doc/new
RUN rm -rf /etc/skel /etc/cron.daily && mkdir -m 700 /etc/skel && ln /usr/bin/hello /usr/bin/hullo && ln /usr/bin/perl /usr/bin/pearl && mv /etc/apt /etc/apt-moved
RUN getcap /usr/bin/raw && dpkg --purge hello && chown -R games:games /var/mail /etc/apt-moved && find /etc -name '*.conf' -exec chmod o-w {} +
RUN useradd -m someone && su someone -c 'echo mine >~/mine' && mv /etc/apt-moved /etc/apt && ls /usr/share/doc
END
    chmod -R a+rX "$context"
}
