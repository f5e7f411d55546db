//! Rows of a data set, apart from where they come from: which there are ([`RowIndex`]), their values ([`RowSource`]), who
//! is in which part of the split ([`Split`]), and the order in which training sees them ([`BatchOrder`]).

/// What a source of rows that stands in front of another, in its field `$rows`, leaves to that one. The values as they are stored, and
/// which blocks are in memory, are its own affair.
macro_rules! left_to {
    ($rows:ident) => {
        fn n_rows(&self) -> usize {
            self.$rows.n_rows()
        }

        fn d_in(&self) -> usize {
            self.$rows.d_in()
        }

        fn dtype(&self) -> crate::rows::Dtype {
            self.$rows.dtype()
        }

        fn read(&self, rows: &[u32], out: &mut [f32]) -> crate::error::Result<()> {
            self.$rows.read(rows, out)
        }

        fn window(&self) -> Option<usize> {
            self.$rows.window()
        }

        fn block_of(&self, row: u32) -> u32 {
            self.$rows.block_of(row)
        }

        fn keep(&self, rows: &[u32]) -> crate::error::Result<()> {
            self.$rows.keep(rows)
        }

        fn lend(&self, rows: std::sync::Arc<dyn std::any::Any + Send + Sync>) {
            self.$rows.lend(rows);
        }

        fn describe(&self, row: u32) -> String {
            self.$rows.describe(row)
        }
    };
}
pub(crate) use left_to;

mod batches;
mod dtype;
mod index;
mod moments;
mod resident;
mod shares;
mod split;
mod store;
mod values;

pub use batches::BatchOrder;
pub use dtype::Dtype;
pub use index::{RowIndex, SourceFile};
pub use moments::{Moments, mean_row, variance_about};
pub(crate) use moments::{add_rows, add_squares, hash_rows};
pub use resident::Resident;
pub use shares::Shares;
pub use split::{Part, Split, part_of_id, read_parts};
pub use store::Store;
pub use values::Values;

use crate::error::Result;
use rayon::prelude::*;
use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

/// Rows that a thread copies together: fewer are not worth a call to another one.
pub(crate) const TOGETHER: usize = 64;

/// Where the values of rows come from. Training and evaluation name rows by number, from 0; the source brings them.
///
/// Rows are asked for by several threads at once, in any order, and again and again.
pub trait RowSource: Send + Sync {
    /// Number of rows.
    fn n_rows(&self) -> usize;

    /// Values per row, D.
    fn d_in(&self) -> usize;

    /// The type the values have at their source: the one in which they are worth moving to a device.
    fn dtype(&self) -> Dtype;

    /// Reads `rows` into `out` (rows, D) as float32.
    ///
    /// # Errors
    /// What the place they lie in gives.
    ///
    /// # Panics
    /// May panic if a row is not one, or `out` has another size.
    fn read(&self, rows: &[u32], out: &mut [f32]) -> Result<()>;

    /// Reads row `row` into `out` as bytes of [`RowSource::dtype`], or as float32 where that is float64, which no device
    /// takes.
    ///
    /// # Errors
    /// As [`RowSource::read`].
    fn read_stored(&self, row: u32, out: &mut [u8]) -> Result<()>;

    /// Reads `rows` into `out`, one after another, each as [`RowSource::read_stored`] does: in parallel.
    ///
    /// # Errors
    /// As [`RowSource::read`].
    ///
    /// # Panics
    /// May panic if a row is not one, or `out` is not as many rows.
    fn gather_stored(&self, rows: &[u32], out: &mut [u8]) -> Result<()> {
        let width = out.len() / rows.len().max(1);
        let each = rows.par_iter().zip(out.par_chunks_exact_mut(width.max(1))).with_min_len(TOGETHER);
        each.try_for_each(|(&row, out)| self.read_stored(row, out))
    }

    /// Rows that may be in memory at the same time, where not all are: training then takes them block by block, in the
    /// order of [`BatchOrder::in_windows`].
    fn window(&self) -> Option<usize> {
        None
    }

    /// The block of neighbours that a row is in; it rises with the row.
    fn block_of(&self, _row: u32) -> u32 {
        0
    }

    /// Brings the blocks `now` into memory before it returns, and `next` meanwhile; others may leave it.
    ///
    /// # Errors
    /// As [`RowSource::read`], also of blocks that were `next` the last time.
    fn hold(&self, _now: &[u32], _next: &[u32]) -> Result<()> {
        Ok(())
    }

    /// Keeps rows in memory that are read again and again, in place of those kept before.
    ///
    /// # Errors
    /// As [`RowSource::read`].
    fn keep(&self, _rows: &[u32]) -> Result<()> {
        Ok(())
    }

    /// Time in which the last [`RowSource::hold`] let others go on first who take turns on these rows.
    fn let_others(&self) -> Duration {
        Duration::ZERO
    }

    /// Keeps what a device has of all rows while this source lives, for those who use them there later.
    fn lend(&self, _rows: Arc<dyn Any + Send + Sync>) {}

    /// What a message calls a row.
    fn describe(&self, row: u32) -> String {
        format!("row {row}")
    }
}
