//! Latents shared out over several ranks: who has which.

use crate::error::{Error, Result};
use std::ops::Range;

/// Latents that ranks have together at least: as many as the noise makes at a time (`GROUP` in `kernels/common.cuh`).
pub const GROUP: usize = 128;

/// Which latents a rank has: rank r of G has groups `r U / G` to `(r + 1) U / G` of the U groups of [`GROUP`] latents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// This rank, from 0.
    pub rank: usize,
    /// Ranks, G.
    pub ranks: usize,
    /// Latents of the whole model.
    pub all: usize,
    /// Whether there are ranks at all, of which one may be all there are.
    pub is_part: bool,
}

impl Shard {
    /// A device that has all `latents`.
    pub fn whole(latents: usize) -> Self {
        Self { rank: 0, ranks: 1, all: latents, is_part: false }
    }

    /// The share of `rank` of `ranks` in `latents`.
    ///
    /// # Errors
    /// [`Error::Usage`]: a rank would have no latent.
    pub fn of(rank: usize, ranks: usize, latents: usize) -> Result<Self> {
        let shard = Self { rank, ranks, all: latents, is_part: true };
        if rank >= ranks {
            return Err(Error::Failed(format!("rank {rank} is not one of {ranks}; please report this")));
        }
        if shard.groups() < ranks {
            return Err(Error::Usage(format!(
                "--latents {latents} are too few for {ranks} ranks, which have {GROUP} each at least: start at most {} ranks",
                shard.groups()
            )));
        }
        Ok(shard)
    }

    /// Groups of latents, U.
    pub fn groups(&self) -> usize {
        self.all.div_ceil(GROUP)
    }

    /// The first latent of a rank; that of rank G is M, or what fills the last group.
    pub fn start(&self, rank: usize) -> usize {
        rank * self.groups() / self.ranks * GROUP
    }

    /// The rank's latents.
    pub fn latents(&self) -> Range<usize> {
        self.start(self.rank)..self.start(self.rank + 1).min(self.all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::unwrap_used)]
    fn shares_cover_all_latents_once_in_whole_groups() {
        for (all, ranks) in [(128, 1), (129, 2), (1000, 3), (1000, 8), (1 << 20, 7), (16_777_216, 64)] {
            let mut next = 0;
            for rank in 0..ranks {
                let latents = Shard::of(rank, ranks, all).unwrap().latents();
                assert!(
                    latents.start == next
                        && latents.start.is_multiple_of(GROUP)
                        && latents.end > latents.start
                );
                next = latents.end;
            }
            assert_eq!(next, all);
        }
        let refused = Shard::of(0, 3, 256).unwrap_err().to_string();
        assert!(refused.contains("--latents 256") && refused.contains("at most 2 ranks"), "{refused}");
    }
}
