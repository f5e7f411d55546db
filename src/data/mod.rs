//! Embeddings from HDF5: loading, and what a file holds.
//!
//! Reading order: `h5` wraps the library; `header` and `heap` go past it where it is slow (20,000
//! small datasets) or unsafe (damaged strings); `advice` is for what it cannot read; `scan` lists
//! datasets, `layout` and `ids` decide what the rows are, `read` brings the bytes, `load` checks every
//! row, `stream` does so block by block.

mod advice;
mod behind;
mod embeddings;
mod h5;
mod header;
mod heap;
mod ids;
mod inspect;
mod kind;
mod layout;
mod load;
mod read;
mod scan;
mod signature;
mod stream;
mod text;

pub use behind::files_behind;
pub use embeddings::{Embeddings, Skipped};
pub(crate) use h5::{brief, library_name};
pub(crate) use ids::first_control;
pub use inspect::{FileSummary, inspect};
pub use stream::{Blocks, DataFiles};

/// How data files are to be read.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// The matrix, or the group to look in, where the file alone does not tell.
    pub dataset: Option<String>,
    /// Drop and count rows that cannot be used instead of stopping at the first.
    pub skip_bad_rows: bool,
}
