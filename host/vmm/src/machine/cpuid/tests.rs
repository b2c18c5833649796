use super::of_vcpu;
use kvm_bindings::{CpuId, kvm_cpuid_entry2};

fn entry(function: u32, index: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
    let [eax, ebx, ecx, edx] = registers;
    kvm_cpuid_entry2 {
        function,
        index,
        eax,
        ebx,
        ecx,
        edx,
        ..kvm_cpuid_entry2::default()
    }
}

fn everything() -> CpuId {
    CpuId::from_entries(&[
        entry(0, 0, [0x1f, 0, 0, 0]),
        entry(1, 0, [!0; 4]),
        entry(4, 0, [0x7c00_4121, 0, 0, 0]),
        entry(4, 3, [0x7c00_4163, 0, 0, 0]),
        entry(4, 4, [0; 4]),
        entry(6, 0, [!0; 4]),
        entry(7, 0, [!0; 4]),
        entry(0xa, 0, [!0; 4]),
        entry(0xb, 0, [!0; 4]),
        entry(0x8000_0001, 0, [!0; 4]),
        entry(0x8000_0008, 0, [!0; 4]),
        entry(0x8000_000a, 0, [!0; 4]),
    ])
    .unwrap()
}

fn find(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
    *cpuid
        .as_slice()
        .iter()
        .find(|entry| entry.function == function && entry.index == index)
        .unwrap()
}

#[test]
fn each_vcpu_is_a_core_of_one_socket() {
    for count in [1, 2, 3, 32] {
        for id in 0..count {
            let cpuid = of_vcpu(&everything(), id, count).unwrap();
            assert_eq!(find(&cpuid, 1, 0).ebx >> 24, u32::from(id));
            let (threads, cores) = (find(&cpuid, 0xb, 0), find(&cpuid, 0xb, 1));
            assert_eq!((threads.eax, threads.ebx, threads.ecx), (0, 1, 0x100));
            assert_eq!((cores.ebx, cores.ecx), (u32::from(count), 0x201));
            assert_eq!(cores.edx, u32::from(id));
            assert!(1 << cores.eax >= u32::from(count));
            assert_eq!(find(&cpuid, 0x1f, 1).edx, u32::from(id));
            // The last cache level is shared by all, the first by none.
            assert_eq!(find(&cpuid, 4, 0).eax >> 14 & 0xfff, 0);
            let sharing = find(&cpuid, 4, 3).eax >> 14 & 0xfff;
            assert!(sharing + 1 >= u32::from(count));
            assert_eq!(find(&cpuid, 4, 4).eax, 0);
        }
    }
}

#[test]
fn what_a_guest_must_not_have_is_hidden() {
    let cpuid = of_vcpu(&everything(), 0, 2).unwrap();
    let one = find(&cpuid, 1, 0);
    assert_eq!(one.ecx & (1 << 3 | 1 << 5), 0, "MONITOR, VMX");
    assert_ne!(one.ecx & 1 << 31, 0, "hypervisor");
    assert_ne!(one.ecx & 1 << 24, 0, "TSC deadline");
    assert_eq!(find(&cpuid, 7, 0).ebx & (1 << 2 | 1 << 25), 0, "SGX, PT");
    assert_eq!(find(&cpuid, 0x8000_0001, 0).ecx & 1 << 2, 0, "SVM");
    for leaf in [0xa, 0x8000_000a] {
        let entry = find(&cpuid, leaf, 0);
        assert_eq!((entry.eax, entry.ebx, entry.ecx, entry.edx), (0, 0, 0, 0));
    }
}
