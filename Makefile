# Everything that is done with this repository. `make` lists it.

export PATH := $(HOME)/.cargo/bin:$(PATH)
out := guest/out

.PHONY: help
help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' Makefile | expand -t 16

.PHONY: setup
setup: ## install what is missing (Debian or Ubuntu; asks nothing)
	guest/setup $(also)

.PHONY: build
build: setup ## build target/release/rvmm and rvmm-registry
	cargo build --release

.PHONY: guest
guest: setup $(out)/initrd.img $(out)/initrd-6.12.img $(out)/rootfs.ext4 ## fetch a stock kernel, build an initramfs and a root disk for it

system := guest/lib.sh guest/system guest/udhcpc guest/outb.S guest/agent/Cargo.toml $(wildcard guest/agent/src/*.rs)

$(out)/fetched: guest/fetch
	guest/fetch
	touch $@

$(out)/initrd.img: $(out)/fetched guest/initramfs guest/init $(system)
	guest/initramfs

# Empty where the distribution has no such kernel.
$(out)/initrd-6.12.img: $(out)/initrd.img
	if [ -d $(out)/modules-6.12 ]; then guest/initramfs $(out)/modules-6.12 $@; else : >$@; fi

$(out)/rootfs.ext4: guest/rootfs $(system)
	guest/rootfs

# Empty where the distribution's tools do not work.
$(out)/initrd-stock.img: $(out)/fetched guest/mkinitramfs
	guest/mkinitramfs

$(out)/lab-vmlinux: guest/fetch
	guest/fetch lab

.PHONY: run
run: build guest ## boot a stock kernel under rvmm to a login shell (without a terminal: to a demonstration)
	@guest/run

.PHONY: kernel
kernel: ## build a trimmed guest kernel from the distribution's source (about 7 minutes on 2 cores)
	guest/kernel/build

.PHONY: test
test: setup guest $(out)/initrd-stock.img $(out)/lab-vmlinux ## run every check and test; those with a Linux guest run in the lab where KVM has no hardware
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	shellcheck -x guest/setup guest/fetch guest/rootfs guest/initramfs guest/mkinitramfs guest/lab guest/run guest/test-linux guest/lib.sh guest/kernel/build tests/all
	@tests/all

.PHONY: bench
bench: also := bench
bench: setup guest ## measure
	cargo bench --features registry

.PHONY: clean
clean: ## remove what was built (guest/out/cache, the downloaded packages, stays)
	cargo clean
	find $(out) -mindepth 1 -maxdepth 1 ! -name cache -exec rm -rf {} +
