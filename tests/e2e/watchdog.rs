//! The time that a test may take. One that takes longer is named, what our processes wait for is written
//! down, and then they are killed: the test fails by that, and the others still run.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Not by `eprintln`, whose output the test harness would keep back for the test that began this thread.
macro_rules! say {
    ($($part:tt)*) => {
        let _ = writeln!(std::io::stderr(), $($part)*);
    };
}

/// The most that one test may take, unless it says otherwise.
pub(crate) const LIMIT: Duration = Duration::from_secs(180);
/// What a test gets to fail when its processes are gone.
const GRACE: Duration = Duration::from_secs(30);

/// Begins the time of a test that may take this long.
pub(crate) fn begin(limit: Duration) {
    static CURRENT: Mutex<Option<(Instant, Duration, String)>> = Mutex::new(None);
    let name = std::thread::current().name().unwrap_or_default().to_owned();
    let before = CURRENT
        .lock()
        .unwrap()
        .replace((Instant::now(), limit, name));
    if before.is_some() {
        return;
    }
    std::thread::spawn(|| {
        let mut killed = None;
        loop {
            std::thread::sleep(Duration::from_secs(1));
            let Some((began, limit, name)) = CURRENT.lock().unwrap().clone() else {
                continue;
            };
            if killed.as_ref() == Some(&name) {
                if began.elapsed() > limit + GRACE {
                    say!("{name} has not ended although its processes were killed");
                    std::process::exit(1);
                }
            } else if began.elapsed() > limit {
                say!("{name} has not ended after {:?}", began.elapsed());
                let ours = processes();
                // Twice, to tell who runs from who waits.
                for _ in 0..2 {
                    ours.iter().for_each(|pid| describe(*pid));
                    std::thread::sleep(Duration::from_secs(1));
                }
                sockets();
                for pid in ours {
                    let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
                }
                killed = Some(name);
            }
        }
    });
}

/// The processes of the project.
fn processes() -> Vec<u32> {
    let pids = fs::read_dir("/proc").unwrap().flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| {
            let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            comm.starts_with("bulkhead") && *pid != std::process::id()
        })
        .collect()
}

/// Writes down where each thread is, and how much it has run.
fn describe(pid: u32) {
    let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
    let process = Path::new("/proc").join(pid.to_string());
    let command = read(&process.join("cmdline")).replace('\0', " ");
    say!("process {pid}: {command}");
    for task in fs::read_dir(process.join("task"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let file = |name: &str| read(&task.path().join(name)).trim().to_owned();
        let stat = file("stat");
        // After the name: state is the first, user and system time the twelfth and thirteenth (proc(5)).
        let fields: Vec<&str> = stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .split(' ')
            .collect();
        say!(
            "  {:20} state {} ticks {}+{} in {} (system call {})",
            file("comm"),
            fields.get(1).unwrap_or(&"?"),
            fields.get(12).unwrap_or(&"?"),
            fields.get(13).unwrap_or(&"?"),
            file("wchan"),
            file("syscall"),
        );
    }
}

/// Writes down what waits in their sockets.
fn sockets() {
    let Ok(output) = Command::new("ss")
        .args(["--unix", "--processes", "--no-header"])
        .output()
    else {
        return;
    };
    let text = String::from_utf8_lossy(&output.stdout);
    for line in text.lines().filter(|line| line.contains("bulkhead")) {
        say!("  {line}");
    }
}
