//! Decisions as functions: what there is and what is wanted go in, what to do comes out.

pub mod prune;
