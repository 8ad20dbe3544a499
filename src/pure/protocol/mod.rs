//! The protocol as state machines without IO (format-spec chapter on concurrency): `step(event) -> action`. The same code
//! runs in production, in the simulator and in the model checker.

pub mod backup;
pub mod maintain;
