//! One stream of bytes: standard input, or the output of a command that must succeed.

use crate::edge::host;
use crate::edge::process::{Child, Stopper};
use crate::pure::base::time::FileTime;
use crate::pure::base::{Explain, Kind};
use crate::pure::format::entry::{Attributes, Content, Entry, EntryKind};
use std::io::{self, Read};

/// Why a stream did not become a snapshot.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error("cannot read {name}")]
    Read {
        name: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot start {program}")]
    Start {
        program: String,
        #[source]
        source: io::Error,
    },
    #[error("{program} did not succeed ({status}), so no snapshot was made")]
    Failed { program: String, status: String },
    #[error("{program} wrote nothing, so no snapshot was made")]
    Empty { program: String },
}

impl Explain for StreamError {
    fn kind(&self) -> Kind {
        Kind::Incomplete
    }

    fn hint(&self) -> Option<String> {
        match self {
            StreamError::Failed { .. } => Some("see what the command wrote to standard error; run it by hand".into()),
            StreamError::Start { .. } => Some("check the name and that it is in PATH".into()),
            StreamError::Empty { .. } => Some("if an empty stream is right, pipe it to `larder backup --stdin`".into()),
            StreamError::Read { .. } => None,
        }
    }
}

enum From {
    Stdin(io::Stdin),
    Command(Child),
}

/// A stream that is being backed up.
pub struct Stream {
    name: Vec<u8>,
    from: From,
    bytes: u64,
}

impl Stream {
    /// Reads standard input.
    pub fn stdin(name: &[u8]) -> Stream {
        Stream {
            name: name.to_vec(),
            from: From::Stdin(io::stdin()),
            bytes: 0,
        }
    }

    /// Starts a command and reads its output. Its standard error goes where ours goes.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn command(name: &[u8], program: &str, arguments: &[String]) -> Result<Stream, StreamError> {
        let child = Child::start(program, arguments).map_err(|source| StreamError::Start {
            program: program.to_owned(),
            source,
        })?;
        Ok(Stream {
            name: name.to_vec(),
            from: From::Command(child),
            bytes: 0,
        })
    }

    /// Returns what ends the command, so that nobody waits for its output any more. Standard input cannot be ended from
    /// here.
    pub fn stopper(&self) -> Option<Stopper> {
        match &self.from {
            From::Stdin(_) => None,
            From::Command(child) => Some(child.stopper()),
        }
    }

    /// Returns the name of the entry.
    pub fn name(&self) -> &[u8] {
        &self.name
    }

    /// Reads some bytes; 0 at the end.
    ///
    /// # Errors
    /// When reading fails.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, StreamError> {
        loop {
            let result = match &mut self.from {
                From::Stdin(stdin) => stdin.lock().read(buffer),
                From::Command(child) => child.read(buffer),
            };
            match result {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(StreamError::Read {
                        name: self.name.escape_ascii().to_string(),
                        source,
                    });
                }
                Ok(count) => {
                    self.bytes += count as u64;
                    return Ok(count);
                }
            }
        }
    }

    /// Ends the stream: a command must have exited with 0 and written something.
    ///
    /// # Errors
    /// When it has not.
    pub fn finish(&mut self) -> Result<(), StreamError> {
        let From::Command(child) = &mut self.from else {
            return Ok(());
        };
        let program = child.program().to_owned();
        let status = child.wait().map_err(|source| StreamError::Read {
            name: program.clone(),
            source,
        })?;
        if !status.success() {
            return Err(StreamError::Failed {
                program,
                status: status.to_string(),
            });
        }
        // A dump that is empty is a dump that went wrong somewhere else.
        if self.bytes == 0 {
            return Err(StreamError::Empty { program });
        }
        Ok(())
    }

    /// Returns the entry for the stream, without content.
    pub fn entry(&self) -> Entry {
        let now = host::now().0;
        let time = FileTime {
            seconds: now.div_euclid(1_000_000_000),
            nanos: u32::try_from(now.rem_euclid(1_000_000_000)).unwrap_or(0),
        };
        Entry {
            kind: EntryKind::Stream {
                size: 0,
                content: Content::Inline(Vec::new()),
            },
            mode: 0o600,
            uid: 0,
            gid: 0,
            mtime: time,
            ctime: time,
            ino: 0,
            attributes: Attributes::default(),
        }
    }
}
