//! The protocol as state machines without IO (format-spec chapter on concurrency): `step(state, event) -> actions`.
