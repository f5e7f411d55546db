//! How values lie in a file.

use crate::rows::Dtype;

/// A type as it lies in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub dtype: Dtype,
    pub big_endian: bool,
}
