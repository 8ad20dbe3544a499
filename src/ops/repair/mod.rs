//! Mending a damaged repository (format-spec chapter 16.8). Where there is parity, it comes first ([`heal`]). Repair only adds
//! (invariant I-11): what can be read before it can be read afterwards, wherever it stops, and running it again completes it.
//!
//! * [`index`]: runs are missing or damaged; the packs say themselves what is in them.
//! * [`snapshots`]: outcomes do not open; what is lost of the others is named.
//! * [`packs`]: packs are missing or damaged; what can be read of them is copied, and what is lost is declared.

mod declare;
mod frames;
mod heal;
pub mod index;
pub mod packs;
pub mod snapshots;

pub use declare::{Bad, Loss, Why, accept, loss};
