#!/bin/bash
# guest.sh [TEST...]: builds the VMM, its tests and their guest, and runs tests/boot.rs where there is
# a real /dev/kvm: here, or in the lab. BULKHEAD_GUEST_KERNEL overrides the kernel, BULKHEAD_LAB the
# lab's `run`.
set -euo pipefail
root=$(cd "$(dirname "$0")/../../.." && pwd)
cd "$root"
export BULKHEAD_GUEST_KERNEL=${BULKHEAD_GUEST_KERNEL:-$("$root/guest-kernel/build")}
target=${CARGO_TARGET_DIR:-$root/target}
export BULKHEAD_TEST_INIT=$target/vmm-test-init
rustc --edition 2024 -O -C target-feature=+crt-static -C panic=abort -C strip=symbols \
    -o "$BULKHEAD_TEST_INIT" host/vmm/tests/guest/init.rs
cargo build -q --release -p bulkhead-vmm
export BULKHEAD_VMM=$target/release/bulkhead-vmm
tests=$(cargo test -q -p bulkhead-vmm --test boot --no-run --message-format=json |
    sed -n 's/.*"executable":"\([^"]*\/boot-[^"]*\)".*/\1/p' | tail -n 1)
exec "${BULKHEAD_LAB:-$root/tests/lab/run}" --timeout "${BULKHEAD_TIMEOUT:-300}" -- \
    "$tests" --test-threads=1 --nocapture "$@"
