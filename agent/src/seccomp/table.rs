//! Numbers of system calls by name.

/// A way to call the kernel on x86-64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Abi {
    /// 64-bit programs.
    X86_64,
    /// 32-bit programs.
    X86,
    /// 64-bit programs with 32-bit pointers.
    X32,
}

/// The bit that marks a number as one of x32 (`__X32_SYSCALL_BIT`).
pub(super) const X32_BIT: u32 = 0x4000_0000;

const TABLE: &str = include_str!("syscalls.txt");

/// Whether there is a system call of this name on any of them.
pub(super) fn is_known(name: &str) -> bool {
    row(name).is_some()
}

/// The number of a system call, without [`X32_BIT`].
pub(super) fn number(name: &str, abi: Abi) -> Option<u32> {
    let column = match abi {
        Abi::X86_64 => 0,
        Abi::X86 => 1,
        Abi::X32 => 2,
    };
    row(name)?.split(' ').nth(column)?.parse().ok()
}

/// The numbers of a name.
fn row(name: &str) -> Option<&'static str> {
    let rows = &rows()[..];
    let index = rows.binary_search_by(|(known, _)| (*known).cmp(name));
    rows.get(index.ok()?).map(|(_, numbers)| *numbers)
}

fn rows() -> &'static Vec<(&'static str, &'static str)> {
    static ROWS: std::sync::OnceLock<Vec<(&str, &str)>> = std::sync::OnceLock::new();
    ROWS.get_or_init(|| {
        let lines = TABLE.lines().filter(|line| !line.starts_with('#'));
        lines.filter_map(|line| line.split_once(' ')).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::{Abi, number, rows};

    #[test]
    fn the_table_is_sorted_and_complete() {
        assert!(rows().is_sorted());
        assert!(rows().len() > 450);
        for (name, numbers) in rows() {
            let fields: Vec<_> = numbers.split(' ').collect();
            let fine = |field: &&str| *field == "-" || field.parse::<u32>().is_ok();
            assert!(fields.len() == 3 && fields.iter().all(fine), "{name}");
        }
    }

    #[test]
    fn numbers_are_the_kernels() {
        let of = |name| [Abi::X86_64, Abi::X86, Abi::X32].map(|abi| number(name, abi));
        assert_eq!(of("read"), [Some(0), Some(3), Some(0)]);
        assert_eq!(of("ioctl"), [Some(16), Some(54), Some(514)]);
        assert_eq!(of("socketcall"), [None, Some(102), None]);
        assert_eq!(of("no_such_call"), [None; 3]);
        assert_eq!(
            number("openat2", Abi::X86_64),
            Some(libc::SYS_openat2 as u32)
        );
    }
}
