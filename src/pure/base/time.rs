//! Points in time as the format stores them.

/// Nanoseconds since 1970-01-01T00:00Z (format-spec chapter 1, "time").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

/// Seconds and nanoseconds of a file time; seconds may be negative or far in the future.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileTime {
    /// Seconds since 1970-01-01T00:00Z.
    pub seconds: i64,
    /// 0 … 999 999 999.
    pub nanos: u32,
}
