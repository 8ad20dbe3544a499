//! Opening SQLite our way: bundled, checked version, pragmas, numbered schema.
