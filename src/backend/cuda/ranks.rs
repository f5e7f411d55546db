//! Latents shared out over several devices, each the charge of one rank: who has which, and what ranks do together.
//!
//! Every rank has a run of the latents, with their rows of both matrices, moments, biases and idle counts, and all rows of a
//! batch. A step of N rows, D inputs and k places on G ranks:
//!
//! | what | how | values |
//! | --- | --- | --- |
//! | the best k of each rank | gathered, then cut to k by every rank for itself | 2 N k G |
//! | the sums that make reconstructions | added up | N D, of each prefix, and of the auxiliary loss |
//! | active latents, the sum of the code, scores that are not finite | added up | 3 N |
//! | in a warm-up by softmax: each row's largest score and total; the dense part | gathered; added up | 4 N G; N D |
//! | in a warm-up over weighed candidates: their gradients | added up | N k |
//! | in a selection over a batch: histograms; ties of each row | added up; gathered | 4 times 2048; N G |
//! | the part of b_pre's gradient through the encoder; sums of squares where the norm is clipped; dead latents | added up | D; 1024; 1 |
//!
//! Nothing of size M D, nor N M, leaves a rank. All that decides which latents are active, and all that changes b_pre, is made
//! of the same bits on every rank, because a sum over ranks gives the same bits to all.

use super::device::{Arg, Device};
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
}

impl Shard {
    /// A device that has all `latents`.
    pub fn whole(latents: usize) -> Self {
        Self { rank: 0, ranks: 1, all: latents }
    }

    /// The share of `rank` of `ranks` in `latents`.
    ///
    /// # Errors
    /// [`Error::Usage`]: a rank would have no latent.
    pub fn of(rank: usize, ranks: usize, latents: usize) -> Result<Self> {
        let shard = Self { rank, ranks, all: latents };
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

    /// True where there are other ranks.
    pub fn is_part(&self) -> bool {
        self.ranks > 1
    }
}

/// A type whose values ranks add up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Number {
    /// float32.
    F32,
    /// float64.
    F64,
    /// Unsigned, 32 bits.
    U32,
}

impl Number {
    /// Bytes of one value.
    pub fn size(self) -> usize {
        match self {
            Self::F32 | Self::U32 => 4,
            Self::F64 => 8,
        }
    }
}

/// Values in device memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Span {
    /// Where they begin.
    pub address: u64,
    /// How many.
    pub len: usize,
    /// What they are.
    pub number: Number,
}

impl Span {
    /// `len` values at a checked argument.
    ///
    /// # Errors
    /// None in practice: launchers' arguments for buffers are pointers.
    pub fn at(arg: Arg, len: usize, number: Number) -> Result<Self> {
        match arg {
            Arg::Pointer(address) => Ok(Self { address, len, number }),
            other => Err(Error::Failed(format!("{other:?} is no memory; please report this"))),
        }
    }
}

/// What a rank does together with the others. Each of them calls the same functions with spans of the same lengths in the same
/// order; work is queued on the device's stream, in turn with its other work.
pub trait Ranks: Send {
    /// This rank, from 0.
    fn rank(&self) -> usize;

    /// How many there are, G.
    fn count(&self) -> usize;

    /// Every value becomes the sum over all ranks, in the same bits on each.
    ///
    /// # Safety
    /// The spans must lie in live memory of `device` that stays so until its work is done.
    ///
    /// # Errors
    /// A rank is gone, or its device fails.
    unsafe fn sum(&mut self, device: &mut dyn Device, spans: &[Span]) -> Result<()>;

    /// The values of all ranks, those of rank 0 first, one rank's after the other's, to the address beside each span.
    ///
    /// # Safety
    /// As for [`Ranks::sum`]; each address must have room for G times the span, and not overlap it.
    ///
    /// # Errors
    /// As for [`Ranks::sum`].
    unsafe fn gather(&mut self, device: &mut dyn Device, spans: &[(Span, u64)]) -> Result<()>;
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
