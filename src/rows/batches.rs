//! The order in which training rows are seen.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::ops::Range;

/// An endless stream of shuffled rows, cut into batches.
///
/// Epoch e is a permutation drawn from (seed, e) alone, and batch s is the positions
/// `[s * N, (s + 1) * N)` of all epochs one after another. So a batch depends on its step only and
/// there is nothing to save; batches may cross epochs, and no row is left out.
///
/// Rows that do not fit into memory lie in blocks of neighbours. The blocks of an epoch come in random order; those that
/// follow one another and fill a *window* are in memory together, and their rows are shuffled together. Where all rows are
/// one window, the order is that of rows in memory.
#[derive(Clone, Debug)]
pub struct BatchOrder {
    rows: Vec<u32>,
    batch_size: usize,
    seed: u64,
    /// Where each block begins in `rows`, and the number of rows; two entries where all rows are in memory.
    blocks: Vec<usize>,
    /// Blocks by the numbers that their source gives them.
    names: Vec<u32>,
    /// Rows of a window, at least.
    window: usize,
    /// Windows of the last two epochs that were asked for.
    plans: [(u64, Vec<Window>); 2],
    /// The last two windows that were asked for, by epoch and number: a batch may need two.
    cache: [((u64, usize), Vec<u32>); 2],
    batch: Vec<u32>,
}

/// Blocks whose rows are shuffled together.
#[derive(Clone, Debug, PartialEq)]
struct Window {
    /// As they are counted here, not as their source does.
    blocks: Vec<u32>,
    /// Positions within the epoch.
    positions: Range<usize>,
}

const NO_EPOCH: u64 = u64::MAX;
/// Stream of the order of blocks; epochs have those from 0 on.
const OF_BLOCKS: u64 = 1 << 63;
/// Streams of the windows of an epoch after the first: their number in these bits.
const WINDOW_SHIFT: u32 = 40;

impl BatchOrder {
    /// Batches of `batch_size` of `rows`; no more than there are rows, and at least one.
    pub fn new(rows: Vec<u32>, batch_size: usize, seed: u64) -> Self {
        let all = rows.len();
        Self::in_windows(rows, batch_size, seed, all, |_| 0)
    }

    /// The same of rows of which at most about `window` are in memory together; `block_of` gives the block of a row. `rows`
    /// must be ascending, and so must their blocks.
    pub fn in_windows(
        rows: Vec<u32>,
        batch_size: usize,
        seed: u64,
        window: usize,
        block_of: impl Fn(u32) -> u32,
    ) -> Self {
        let batch_size = batch_size.clamp(1, rows.len().max(1));
        let (mut blocks, mut names) = (vec![], vec![]);
        for (at, &row) in rows.iter().enumerate() {
            let block = block_of(row);
            if names.last() != Some(&block) {
                names.push(block);
                blocks.push(at);
            }
        }
        blocks.push(rows.len());
        Self {
            rows,
            batch_size,
            seed,
            blocks,
            names,
            window: window.max(1),
            plans: [(NO_EPOCH, vec![]), (NO_EPOCH, vec![])],
            cache: [((NO_EPOCH, 0), vec![]), ((NO_EPOCH, 0), vec![])],
            batch: Vec::with_capacity(batch_size),
        }
    }

    /// The rows of step `step` (from 0); empty only if there are no rows.
    pub fn batch(&mut self, step: u64) -> &[u32] {
        let mut batch = std::mem::take(&mut self.batch);
        batch.clear();
        let mut position = self.position(step);
        while !self.rows.is_empty() && batch.len() < self.batch_size {
            let (epoch, number, within) = self.place(position);
            let room = self.batch_size - batch.len();
            let order = &self.shuffled(epoch, number)[within..];
            let n = order.len().min(room);
            batch.extend_from_slice(&order[..n]);
            position += n as u128;
        }
        self.batch = batch;
        &self.batch
    }

    /// The blocks that step `step` of `steps` reads, and those of the window after them, if a step will read it. While a
    /// batch lies in several windows none comes, for they are as many as may be in memory.
    pub fn blocks(&mut self, step: u64, steps: u64) -> (Vec<u32>, Vec<u32>) {
        let mut now: Vec<u32> = vec![];
        if self.rows.is_empty() {
            return (now, vec![]);
        }
        let mut position = self.position(step);
        let (after, end) = (position + self.batch_size as u128, self.position(steps));
        for windows in 1.. {
            let (epoch, number, within) = self.place(position);
            let window = &self.plan(epoch)[number];
            let next = position + (window.positions.len() - within) as u128;
            let blocks = window.blocks.clone();
            now.extend(blocks.into_iter().map(|block| self.names[block as usize]));
            position = next;
            if position >= after {
                if windows > 1 || position >= end {
                    return (now, vec![]);
                }
                break;
            }
        }
        let (epoch, number, _) = self.place(position);
        let blocks = self.plan(epoch)[number].blocks.clone();
        (now, blocks.into_iter().map(|block| self.names[block as usize]).collect())
    }

    /// Number of windows of an epoch: about as many in each.
    pub fn n_windows(&mut self) -> usize {
        self.plan(0).len()
    }

    /// Epochs passed when step `step` begins.
    pub fn epoch_of(&self, step: u64) -> f64 {
        step as f64 * self.batch_size as f64 / self.rows.len().max(1) as f64
    }

    fn position(&self, step: u64) -> u128 {
        u128::from(step) * self.batch_size as u128
    }

    /// Epoch, window and place in the window of a position.
    fn place(&mut self, position: u128) -> (u64, usize, usize) {
        let n_rows = self.rows.len() as u128;
        let (epoch, at) = ((position / n_rows) as u64, (position % n_rows) as usize);
        let plan = self.plan(epoch);
        let number = plan.partition_point(|window| window.positions.end <= at);
        (epoch, number, at - plan[number].positions.start)
    }

    /// The windows of an epoch.
    fn plan(&mut self, epoch: u64) -> &[Window] {
        let slot = (epoch % 2) as usize;
        if self.plans[slot].0 != epoch {
            let mut order: Vec<u32> = (0..self.names.len() as u32).collect();
            if self.rows.len() > self.window {
                shuffle(&mut order, self.seed, OF_BLOCKS | epoch);
            }
            let mut windows: Vec<Window> = vec![];
            let mut at = 0;
            for block in order {
                let n = self.blocks[block as usize + 1] - self.blocks[block as usize];
                match windows.last_mut().filter(|window| window.positions.len() < self.window) {
                    Some(window) => {
                        window.blocks.push(block);
                        window.positions.end += n;
                    }
                    None => windows.push(Window { blocks: vec![block], positions: at..at + n }),
                }
                at += n;
            }
            self.plans[slot] = (epoch, windows);
        }
        &self.plans[slot].1
    }

    /// The rows of a window in their order.
    fn shuffled(&mut self, epoch: u64, number: usize) -> &[u32] {
        let slot = ((epoch as usize).wrapping_add(number)) % 2;
        if self.cache[slot].0 != (epoch, number) {
            let mut blocks = self.plan(epoch)[number].blocks.clone();
            blocks.sort_unstable();
            let mut order = std::mem::take(&mut self.cache[slot].1);
            order.clear();
            for block in blocks {
                let block = block as usize;
                order.extend_from_slice(&self.rows[self.blocks[block]..self.blocks[block + 1]]);
            }
            shuffle(&mut order, self.seed, epoch | (number as u64) << WINDOW_SHIFT);
            self.cache[slot] = ((epoch, number), order);
        }
        &self.cache[slot].1
    }
}

/// Fisher-Yates with ChaCha8: seed in the key, epoch and window in the stream number.
fn shuffle(order: &mut [u32], seed: u64, stream: u64) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    for last in (1..order.len()).rev() {
        order.swap(last, below(&mut rng, last as u64 + 1) as usize);
    }
}

/// A number below `n`. Written out so that the order never changes with a library's version:
/// 64 random bits times n, upper half (Lemire); the bias is below n / 2^64.
fn below(rng: &mut ChaCha8Rng, n: u64) -> u64 {
    ((u128::from(rng.next_u64()) * u128::from(n)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// 1,000 rows less every seventh, in blocks of 50 rows by their numbers.
    fn rows() -> Vec<u32> {
        (0..1000).filter(|row| row % 7 != 3).collect()
    }

    fn windowed(window: usize, batch: usize) -> BatchOrder {
        BatchOrder::in_windows(rows(), batch, 5, window, |row| row / 50)
    }

    #[test]
    fn one_window_is_the_order_of_rows_in_memory() {
        let (mut all, mut one) = (BatchOrder::new(rows(), 64, 5), windowed(rows().len(), 64));
        assert_eq!(one.n_windows(), 1);
        for step in [0, 1, 13, 14, 200, 3] {
            assert_eq!(all.batch(step), one.batch(step), "{step}");
        }
    }

    #[test]
    fn each_epoch_has_each_row_once_and_its_batches_lie_in_the_blocks_that_are_named() {
        let n = rows().len();
        let mut order = windowed(170, 32);
        let mut seen: Vec<u32> = vec![];
        let mut together = 0;
        let steps = 3 * n as u64 / 32 + 1;
        for step in 0..steps {
            let (now, next) = order.blocks(step, steps);
            assert!(now.len() + next.len() <= 10, "{now:?} {next:?}");
            together = together.max(now.len());
            let batch = order.batch(step).to_vec();
            let blocks: HashSet<u32> = now.iter().copied().collect();
            assert!(batch.iter().all(|row| blocks.contains(&(row / 50))), "{step}: {now:?} {batch:?}");
            seen.extend(batch);
        }
        for epoch in seen.chunks(n).take(3) {
            let mut sorted = epoch.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, rows());
        }
        assert_ne!(seen[..n], seen[n..2 * n]);
        // Four blocks of 43 rows fill a window, and a batch lies in two at most.
        assert_eq!((together, order.n_windows()), (8, 5));
    }

    #[test]
    fn the_window_after_is_the_one_that_comes_while_a_step_will_read_it() {
        let mut order = windowed(170, 32);
        let mut coming = order.blocks(0, 200).1;
        let mut windows = 1;
        for step in 1..200 {
            let (now, next) = order.blocks(step, 200);
            if !next.is_empty() && next != coming {
                assert!(now == coming, "{step}: {now:?} after {coming:?}");
                (coming, windows) = (next, windows + 1);
            }
        }
        assert!(windows > 30);
        assert!(order.blocks(199, 200).1.is_empty());
    }

    #[test]
    fn a_batch_depends_on_its_step_alone() {
        let mut forward = windowed(100, 48);
        let batches: Vec<Vec<u32>> = (0..60).map(|step| forward.batch(step).to_vec()).collect();
        let mut back = windowed(100, 48);
        for step in (0..60).rev() {
            assert_eq!(back.batch(step), batches[step as usize], "{step}");
        }
        let mut other = BatchOrder::in_windows(rows(), 48, 6, 100, |row| row / 50);
        assert_ne!(other.batch(0), batches[0]);
    }

    #[test]
    fn a_batch_may_be_larger_than_a_window() {
        let mut order = windowed(43, 500);
        assert_eq!(order.batch(0).len(), 500);
        let (now, _) = order.blocks(0, 1);
        let blocks: HashSet<u32> = now.into_iter().collect();
        assert!(order.batch(0).iter().all(|row| blocks.contains(&(row / 50))));
    }
}
