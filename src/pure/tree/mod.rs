//! The prolly tree of a root: keys, building, walking, comparing (format-spec chapter on trees).

pub mod build;
pub mod key;
pub mod list;
pub mod parents;
pub mod rules;
pub mod walk;
