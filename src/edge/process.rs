//! Running a program: arguments as a list, our secrets scrubbed from its environment, killed when dropped.

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use std::io::{self, Read};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use zeroize::Zeroizing;

/// Variables that a child never inherits: they open the repository, and the child has no use for them.
const SCRUBBED: [&str; 4] = [
    "LARDER_PASSWORD",
    "LARDER_PASSWORD_COMMAND",
    "LARDER_KEY_FILE",
    "LARDER_KEY_COMMAND",
];

/// A running program whose standard output is read.
pub struct Child {
    program: String,
    child: std::process::Child,
    stopper: Stopper,
}

/// Kills a running program from another thread, also while its output is waited for.
#[derive(Clone)]
pub struct Stopper {
    /// `None` as soon as the program is about to be reaped: after that its number may be somebody else's.
    pid: Arc<Mutex<Option<Pid>>>,
}

impl Stopper {
    /// Kills the program unless it has ended.
    pub fn stop(&self) {
        if let Some(pid) = *self.pid.lock() {
            // It may have ended by itself just now.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

impl Child {
    /// Starts a program without a shell. Standard input is empty, standard error is ours.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(program: &str, arguments: &[String]) -> io::Result<Child> {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        for name in SCRUBBED {
            command.env_remove(name);
        }
        let child = command.spawn()?;
        let pid = Pid::from_child(&child);
        Ok(Child {
            program: program.to_owned(),
            child,
            stopper: Stopper {
                pid: Arc::new(Mutex::new(Some(pid))),
            },
        })
    }

    /// Returns what kills the program.
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// Returns the program's name as it was given.
    pub fn program(&self) -> &str {
        &self.program
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// When waiting fails.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        // First only looked at: as long as it is not reaped, its number is its own and the stopper may use it.
        let pid = Pid::from_child(&self.child);
        while let Err(error) = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
            if error != rustix::io::Errno::INTR {
                break;
            }
        }
        *self.stopper.pid.lock() = None;
        self.child.wait()
    }
}

impl Read for Child {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.child.stdout {
            Some(stdout) => stdout.read(buffer),
            None => Ok(0),
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // `try_wait` reaps.
        *self.stopper.pid.lock() = None;
        if let Ok(None) = self.child.try_wait() {
            // It may have ended by itself just now.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Runs a shell command line of the local configuration and returns what it prints.
///
/// # Errors
/// When it cannot be run or does not succeed.
pub fn output_of(command_line: &str) -> io::Result<Zeroizing<Vec<u8>>> {
    let output = Command::new("/bin/sh")
        .args(["-c", command_line])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()?;
    let printed = Zeroizing::new(output.stdout);
    if !output.status.success() {
        return Err(io::Error::other(format!(
            "the command did not succeed ({})",
            output.status
        )));
    }
    Ok(printed)
}

/// The first line of [`output_of`], without the newline.
///
/// # Errors
/// As that.
pub fn first_line_of(command_line: &str) -> io::Result<Zeroizing<Vec<u8>>> {
    let printed = output_of(command_line)?;
    let line = printed.split(|byte| *byte == b'\n').next().unwrap_or_default();
    Ok(Zeroizing::new(line.strip_suffix(b"\r").unwrap_or(line).to_vec()))
}
