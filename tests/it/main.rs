//! Tests that need the whole crate or a server.

mod cli;
mod contract;
mod damage;
mod fault;
mod local_state;
mod story;
mod tidy;
mod vectors;
