//! Tests that need the whole crate or a server.

mod check;
mod cli;
mod compact;
mod contract;
mod copy;
mod damage;
mod deltas;
mod doctor;
mod durable;
mod fault;
mod hostile_trees;
mod keys;
mod local_state;
mod lost_packs;
mod marks;
mod model;
mod prune;
mod reading;
mod repair;
mod replicate;
mod retention;
mod rotation;
mod story;
mod tidy;
mod vectors;
mod worlds;
