//! Tests that need the whole crate or a server.

mod check;
mod cli;
mod contract;
mod damage;
mod fault;
mod story;
mod tidy;
mod vectors;
