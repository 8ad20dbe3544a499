//! What tests, benches and fuzz targets share: stores that fail on purpose, repositories that are small on purpose.

pub mod fault_store;
pub mod small;
