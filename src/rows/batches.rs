//! The order in which training rows are seen.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// An endless stream of shuffled rows, cut into batches.
///
/// Epoch e is a permutation drawn from (seed, e) alone, and batch s is the positions
/// `[s * N, (s + 1) * N)` of all epochs one after another. So a batch depends on its step only and
/// there is nothing to save; batches may cross epochs, and no row is left out.
#[derive(Clone, Debug)]
pub struct BatchOrder {
    rows: Vec<u32>,
    batch_size: usize,
    seed: u64,
    /// The last two epochs that were asked for: a batch may need two.
    cache: [(u64, Vec<u32>); 2],
    batch: Vec<u32>,
}

const NO_EPOCH: u64 = u64::MAX;

impl BatchOrder {
    /// Batches of `batch_size` of `rows`; no more than there are rows, and at least one.
    pub fn new(rows: Vec<u32>, batch_size: usize, seed: u64) -> Self {
        let batch_size = batch_size.clamp(1, rows.len().max(1));
        Self {
            rows,
            batch_size,
            seed,
            cache: [(NO_EPOCH, Vec::new()), (NO_EPOCH, Vec::new())],
            batch: Vec::with_capacity(batch_size),
        }
    }

    /// The rows of step `step` (from 0); empty only if there are no rows.
    pub fn batch(&mut self, step: u64) -> &[u32] {
        self.batch.clear();
        if self.rows.is_empty() {
            return &self.batch;
        }
        let n_rows = self.rows.len() as u128;
        let mut position = u128::from(step) * self.batch_size as u128;
        while self.batch.len() < self.batch_size {
            let epoch = (position / n_rows) as u64;
            let within = (position % n_rows) as usize;
            let slot = (epoch % 2) as usize;
            if self.cache[slot].0 != epoch {
                let reused = std::mem::take(&mut self.cache[slot].1);
                self.cache[slot] = (epoch, self.permutation(epoch, reused));
            }
            let order = &self.cache[slot].1[within..];
            let n = order.len().min(self.batch_size - self.batch.len());
            self.batch.extend_from_slice(&order[..n]);
            position += n as u128;
        }
        &self.batch
    }

    /// Epochs passed when step `step` begins.
    pub fn epoch_of(&self, step: u64) -> f64 {
        step as f64 * self.batch_size as f64 / self.rows.len().max(1) as f64
    }

    /// Fisher-Yates with ChaCha8: seed in the key, epoch in the stream number.
    fn permutation(&self, epoch: u64, mut order: Vec<u32>) -> Vec<u32> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(epoch);
        order.clear();
        order.extend_from_slice(&self.rows);
        for last in (1..order.len()).rev() {
            order.swap(last, below(&mut rng, last as u64 + 1) as usize);
        }
        order
    }
}

/// A number below `n`. Written out so that the order never changes with a library's version:
/// 64 random bits times n, upper half (Lemire); the bias is below n / 2^64.
fn below(rng: &mut ChaCha8Rng, n: u64) -> u64 {
    ((u128::from(rng.next_u64()) * u128::from(n)) >> 64) as u64
}
