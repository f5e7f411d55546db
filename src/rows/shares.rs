//! Rows in files that several ranks read together.

use super::{RowSource, TOGETHER};
use crate::error::Result;
use rayon::prelude::*;
use std::sync::Arc;
use std::time::Duration;

/// Rows of which each of several ranks brings a part: block b of the source is the charge of rank `b mod G`, which alone reads it
/// into memory. Every rank asks for the same batches, and has zeros in place of rows that are not its charge: the sum over ranks,
/// taken of their bits, is the batch.
///
/// Rows that are kept, or read as float32, are those of one process: each rank reads them for itself.
pub struct Shares {
    rows: Arc<dyn RowSource>,
    rank: u32,
    ranks: u32,
}

impl Shares {
    /// The part of `rank` of `ranks`; `None` where there is one rank, or the rows are in memory.
    pub fn of(rows: &Arc<dyn RowSource>, rank: usize, ranks: usize) -> Option<Self> {
        rows.window().filter(|_| ranks > 1)?;
        Some(Self { rows: rows.clone(), rank: rank as u32, ranks: ranks as u32 })
    }

    fn own(&self, block: u32) -> bool {
        block % self.ranks == self.rank
    }

    fn own_of(&self, blocks: &[u32]) -> Vec<u32> {
        blocks.iter().copied().filter(|&block| self.own(block)).collect()
    }
}

impl RowSource for Shares {
    left_to!(rows);

    /// Zeros, where the row is the charge of another rank.
    fn read_stored(&self, row: u32, out: &mut [u8]) -> Result<()> {
        self.gather_stored(&[row], out)
    }

    /// Zeros in place of rows that are the charge of other ranks.
    fn gather_stored(&self, rows: &[u32], out: &mut [u8]) -> Result<()> {
        let width = out.len() / rows.len().max(1);
        let own: Vec<bool> = rows.iter().map(|&row| self.own(self.block_of(row))).collect();
        let charge: Vec<u32> = rows.iter().zip(&own).filter(|(_, own)| **own).map(|(&row, _)| row).collect();
        let mut brought = vec![0; charge.len() * width];
        self.rows.gather_stored(&charge, &mut brought)?;
        let mut brought = brought.chunks_exact(width.max(1));
        let each = out.chunks_exact_mut(width.max(1)).zip(own);
        let each: Vec<_> = each.map(|(out, own)| (out, if own { brought.next() } else { None })).collect();
        each.into_par_iter().with_min_len(TOGETHER).for_each(|(out, row)| match row {
            Some(row) => out.copy_from_slice(row),
            None => out.fill(0),
        });
        Ok(())
    }

    fn hold(&self, now: &[u32], next: &[u32]) -> Result<()> {
        self.rows.hold(&self.own_of(now), &self.own_of(next))
    }

    fn let_others(&self) -> Duration {
        self.rows.let_others()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::rows::Dtype;
    use std::sync::Mutex;

    /// Twenty rows of three bytes, five to a block, and what was asked for.
    #[derive(Default)]
    struct Blocks {
        held: Mutex<Vec<(Vec<u32>, Vec<u32>)>>,
        gathered: Mutex<Vec<u32>>,
    }

    impl RowSource for Blocks {
        fn n_rows(&self) -> usize {
            20
        }

        fn d_in(&self) -> usize {
            3
        }

        fn dtype(&self) -> Dtype {
            Dtype::F32
        }

        fn read(&self, _: &[u32], out: &mut [f32]) -> Result<()> {
            out.fill(1.0);
            Ok(())
        }

        fn read_stored(&self, row: u32, out: &mut [u8]) -> Result<()> {
            self.gathered.lock().unwrap().push(row);
            out.iter_mut().zip(1..).for_each(|(out, i)| *out = 100 + row as u8 * i);
            Ok(())
        }

        fn window(&self) -> Option<usize> {
            Some(10)
        }

        fn block_of(&self, row: u32) -> u32 {
            row / 5
        }

        fn hold(&self, now: &[u32], next: &[u32]) -> Result<()> {
            self.held.lock().unwrap().push((now.to_vec(), next.to_vec()));
            Ok(())
        }
    }

    #[test]
    fn each_row_of_a_batch_is_read_by_one_rank_and_is_a_part_of_the_sum() {
        let rows = [19, 0, 7, 7, 12, 4];
        let mut whole = vec![0; 3 * rows.len()];
        Blocks::default().gather_stored(&rows, &mut whole).unwrap();
        let blocks: Arc<dyn RowSource> = Arc::new(Blocks::default());
        assert!(Shares::of(&blocks, 0, 1).is_none());
        for ranks in [2, 3, 7] {
            let (mut sum, mut read) = (vec![0u8; whole.len()], vec![]);
            for rank in 0..ranks {
                let source = Arc::new(Blocks::default());
                let share = Shares::of(&(source.clone() as Arc<dyn RowSource>), rank, ranks).unwrap();
                // Whatever was in the buffer before.
                let mut out = vec![77; whole.len()];
                share.gather_stored(&rows, &mut out).unwrap();
                sum.iter_mut().zip(out).for_each(|(sum, byte)| *sum += byte);
                read.extend(source.gathered.lock().unwrap().iter().copied());
                share.hold(&[3, 0, 1], &[2]).unwrap();
                let (now, next) = source.held.lock().unwrap()[0].clone();
                assert!([&now, &next].into_iter().flatten().all(|b| *b as usize % ranks == rank));
                assert!(now.iter().all(|b| [3, 0, 1].contains(b)));
            }
            read.sort_unstable();
            assert_eq!((sum, read), (whole.clone(), vec![0, 4, 7, 7, 12, 19]), "{ranks} ranks");
        }
    }
}
