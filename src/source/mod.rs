//! Where data comes from: entries in tree order, each with its metadata and a reader.

pub mod files;
