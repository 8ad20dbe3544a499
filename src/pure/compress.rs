//! zstd with early detection of data that will not shrink (format-spec chapter on blobs; performance notes in ADR-0008).

/// Reusable compression state: one per worker thread.
pub struct Compressor { _private: () }

impl Compressor {
    /// Makes a compressor for a zstd level (1 … 19).
    pub fn new(_level: i32) -> Compressor { todo!() }

    /// Appends one zstd frame holding `raw` to `out` and returns true, or leaves `out` as it was and returns false when the
    /// sampled entropy or the result says that less than 3 % would be saved. No checksum, content size in the frame.
    pub fn compress(&mut self, _raw: &[u8], _out: &mut Vec<u8>) -> bool { todo!() }

    /// Appends a frame made with `base` as reference prefix (format-spec chapter on deltas).
    pub fn compress_delta(&mut self, _raw: &[u8], _base: &[u8], _out: &mut Vec<u8>) -> bool { todo!() }
}

/// Reusable decompression state: one per worker thread.
pub struct Decompressor { _private: () }

/// Stored bytes do not decode to what they declare.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("compressed data does not decode to the {declared} bytes that it declares")]
pub struct Undecodable { pub declared: usize }

impl Decompressor {
    /// Makes a decompressor; its window is limited to 2^27 bytes.
    pub fn new() -> Decompressor { todo!() }

    /// Decodes exactly one frame of exactly `raw_len` bytes into `out` (cleared first; never grows past `raw_len`).
    pub fn decompress(&mut self, _frame: &[u8], _raw_len: usize, _out: &mut Vec<u8>) -> Result<(), Undecodable> { todo!() }

    /// As [`Self::decompress`], for a frame made with `base` as reference prefix.
    pub fn decompress_delta(&mut self, _frame: &[u8], _base: &[u8], _raw_len: usize, _out: &mut Vec<u8>) -> Result<(), Undecodable> { todo!() }
}
