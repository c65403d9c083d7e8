# What the scripts in guest/ share: paths, messages, packages, kernel modules, archives.
# shellcheck shell=bash

guest=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=$guest/out
export cache=$out/cache
export LC_ALL=C PATH=$PATH:/usr/sbin:/sbin

say() { echo "${0##*/}: $*" >&2; }
die() { say "$*"; exit 1; }

# as_root COMMAND: runs it as root, never asking for a password.
as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

# need COMMAND=PACKAGE...: installs the packages whose commands are missing. A package may take the place of one that had another of the
# commands, so it is looked at again.
need() {
    local pair missing
    for _ in 1 2 3; do
        missing=()
        for pair; do
            command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}")
        done
        [ ${#missing[@]} != 0 ] || return 0
        install_packages "${missing[@]}"
        hash -r
    done
}

install_packages() {
    say "installing $*"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" </dev/null >/dev/null 2>&1 && return
    as_root apt-get update -qq </dev/null
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" </dev/null >/dev/null
}

# atomically FILE COMMAND: FILE gets what COMMAND prints, whole or not at all.
atomically() {
    local file=$1
    shift
    "$@" >"$file.$$" || { rm -f "$file.$$"; return 1; }
    mv "$file.$$" "$file"
}

# hardware_kvm: whether Linux guests run on this machine's KVM directly. rvmm measures it; until it is built, the processor's word must do.
hardware_kvm() {
    local rvmm=$guest/../target/release/rvmm
    if [ -x "$rvmm" ]; then "$rvmm" doctor >/dev/null 2>&1; else grep -qwE 'svm|vmx' /proc/cpuinfo && [ -r /dev/kvm ] && [ -w /dev/kvm ]; fi
}

# expand FILE: prints it decompressed; its magic number says how. Trailing bytes, which kernels append, are ignored.
expand() {
    case $(head -c 6 "$1" | od -An -tx1 | tr -d ' \n') in
        fd377a585a00) xz -dc --single-stream "$1" ;;
        28b52ffd*) zstd -dcq "$1" 2>/dev/null || true ;;
        02214c18*) lz4 -dcq "$1" 2>/dev/null || true ;;
        1f8b*) gzip -dcq "$1" || true ;;
        *) cat "$1" ;;
    esac
}

# vmlinux BZIMAGE: prints the ELF kernel inside, found by the boot protocol's payload fields.
vmlinux() {
    local sectors offset length payload
    sectors=$(od -An -tu1 -j 497 -N 1 "$1")
    offset=$(od -An -tu4 -j 584 -N 4 "$1")
    length=$(od -An -tu4 -j 588 -N 4 "$1")
    payload=$(mktemp)
    tail -c +$(((sectors + 1) * 512 + offset + 1)) "$1" | head -c "$length" >"$payload" || true
    expand "$payload"
    rm -f "$payload"
}

# modules DIRECTORY NAME...: prints the paths of the named modules and all they need, in loading order, each once.
# Names that the kernel has built in, or lacks, are left out.
modules() {
    local dir=$1
    shift
    awk -v names="$*" '
        function base(p) { sub(/.*\//, "", p); sub(/\.ko.*/, "", p); gsub(/-/, "_", p); return p }
        { file = $1; sub(/:$/, "", file); path[base(file)] = file; $1 = ""; deps[file] = $0 }
        function load(file,   list, n) {
            if (file in seen) return
            seen[file] = 1
            n = split(deps[file], list, " ")
            for (; n > 0; n--) load(list[n])
            print file
        }
        END { n = split(names, want, " "); for (i = 1; i <= n; i++) if (want[i] in path) load(path[want[i]]) }
    ' "$dir/modules.dep"
}

# archive DIRECTORY: prints it as an initramfs (cpio) whose files all belong to root.
archive() {
    (cd "$1" && find . -mindepth 1 -exec touch -hd @0 {} + && find . -mindepth 1 -printf '%P\n' | sort | cpio -o -H newc -R 0:0 --reproducible --quiet)
}

# busybox_into DIRECTORY APPLET...: the static busybox with links; without names, all its applets.
busybox_into() {
    local dir=$1 applet
    shift
    need busybox=busybox-static
    mkdir -p "$dir/bin"
    cp "$(command -v busybox)" "$dir/bin/busybox"
    # shellcheck disable=SC2046
    [ $# -gt 0 ] || set -- $(busybox --list | grep -vx busybox)
    for applet; do ln -sf busybox "$dir/bin/$applet"; done
}

# agent: builds the agent and prints its path.
agent() {
    (cd "$guest/agent" && env -u RUSTFLAGS -u CARGO_BUILD_TARGET cargo build --release --quiet --target-dir target) || die "the agent does not build"
    echo "$guest/agent/target/release/rvmm-agent"
}

# system_into DIRECTORY: the user space of rvmm's guests, the same on a disk and in the initramfs.
system_into() {
    local root=$1
    mkdir -p "$root"/{sbin,etc/acpi/PWRF,root}
    busybox_into "$root"
    cc -nostdlib -static -s -Wl,--build-id=none,-z,noseparate-code -o "$root/bin/outb" "$guest/outb.S"
    install -m 755 "$guest/system" "$root/sbin/init"
    install -m 755 "$guest/udhcpc" "$root/etc/udhcpc"
    install -m 755 "$(agent)" "$root/sbin/rvmm-agent"
    printf '#!/bin/sh\nsync\nmount -o remount,ro /\npoweroff -f\n' >"$root/etc/acpi/PWRF/00000080"
    chmod 755 "$root/etc/acpi/PWRF/00000080"
    echo 'root::0:0:root:/root:/bin/sh' >"$root/etc/passwd"
    echo 'root:x:0:' >"$root/etc/group"
    echo '127.0.0.1 localhost rvmm' >"$root/etc/hosts"
    echo rvmm >"$root/etc/hostname"
    echo "export HOME=/root USER=root; cd; export PS1='root@\\h:\\w# '" >"$root/etc/profile"
    : >"$root/etc/resolv.conf"
    : >"$root/etc/machine-id"
    cat >"$root/etc/inittab" <<-'END'
		ttyS0::respawn:-/bin/sh -l
		::ctrlaltdel:/bin/reboot
		::shutdown:/bin/umount -a -r
	END
}
