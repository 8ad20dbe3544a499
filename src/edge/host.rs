//! The real clock, randomness, host name, and what the kernel says about this machine.

use crate::pure::base::Timestamp;
use std::time::{SystemTime, UNIX_EPOCH};

/// Returns the wall-clock time.
pub fn now() -> Timestamp {
    let nanos = match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_nanos()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, |nanos| -nanos),
    };
    Timestamp(nanos)
}

/// Fills an array from the operating system's random source.
///
/// # Panics
/// If the kernel has no randomness to give, which no caller could survive safely.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the kernel's random source works on every supported system");
    bytes
}

/// Returns the host name as the kernel has it.
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Returns an id that changes with every boot; 16 bytes, zero where the kernel does not tell.
pub fn boot_id() -> [u8; 16] {
    id_in("/proc/sys/kernel/random/boot_id")
}

/// Returns the id of this installation (machine-id(5)); 16 bytes, zero where there is none.
pub fn machine_id() -> [u8; 16] {
    id_in("/etc/machine-id")
}

fn id_in(path: &str) -> [u8; 16] {
    let mut out = [0; 16];
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    for (index, pair) in digits.chunks_exact(2).take(16).enumerate() {
        let digit = |byte: u8| char::from(byte).to_digit(16).unwrap_or(0) as u8;
        out[index] = digit(pair[0]) << 4 | digit(pair[1]);
    }
    out
}

/// Says whether a process with this id exists.
pub fn process_exists(pid: u32) -> bool {
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}

/// Returns the name of the user that the process runs as, or the number.
pub fn user_name() -> String {
    std::env::var("USER")
        .or_else(|_| std::env::var("LOGNAME"))
        .unwrap_or_else(|_| rustix::process::getuid().as_raw().to_string())
}

/// Returns how many threads may run at once.
pub fn cpu_count() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
