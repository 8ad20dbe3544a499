//! What to do about what is there, decided without doing it: values in, a plan with reasons out. `ops` reads what a plan is
//! made from, shows it, and carries it out.

pub mod compact;
pub mod lifecycle;
pub mod lock;
pub mod policy;
pub mod prune;
pub mod reason;
pub mod retention;
pub mod times;

#[cfg(test)]
mod tests;
