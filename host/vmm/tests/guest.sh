#!/bin/bash
# guest.sh [TEST...]: builds the VMM, its tests and their guests, and runs tests/boot.rs and tests/attack.rs
# where there is a real /dev/kvm: here, or in the lab. BULKHEAD_GUEST_KERNEL overrides the kernel, BULKHEAD_LAB the
# lab's `run`.
set -euo pipefail
root=$(cd "$(dirname "$0")/../../.." && pwd)
cd "$root"
export BULKHEAD_GUEST_KERNEL=${BULKHEAD_GUEST_KERNEL:-$("$root/guest-kernel/build")}
target=${CARGO_TARGET_DIR:-$root/target}
export BULKHEAD_TEST_INIT=$target/vmm-test-init
rustc --edition 2024 -O -C target-feature=+crt-static -C panic=abort -C strip=symbols \
    -o "$BULKHEAD_TEST_INIT" host/vmm/tests/guest/init.rs
export BULKHEAD_ATTACKER=$target/vmm-attack
rustc --edition 2024 -O -C relocation-model=static -C panic=abort -C strip=symbols \
    -C link-arg=-nostdlib -C link-arg=-static -C link-arg=-no-pie -C link-arg=-Wl,--build-id=none \
    -C link-arg=-Thost/vmm/tests/guest/attack.ld -o "$BULKHEAD_ATTACKER" host/vmm/tests/guest/attack.rs
cargo build -q --release -p bulkhead-vmm
export BULKHEAD_VMM=$target/release/bulkhead-vmm
tests=$(cargo test -q -p bulkhead-vmm --test boot --test attack --no-run --message-format=json |
    sed -n 's/.*"executable":"\([^"]*\/\(boot\|attack\)-[^"]*\)".*/\1/p')
exec "${BULKHEAD_LAB:-$root/tests/lab/run}" --timeout "${BULKHEAD_TIMEOUT:-600}" -- \
    sh -c 'tests=$1; shift; for test in $tests; do "$test" --test-threads=1 --nocapture "$@" || exit; done' \
    sh "$tests" "$@"
