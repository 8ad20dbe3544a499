//! Where is chunk X: the local, disposable index (SQLite catalogue behind a filter).
