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
pub use crate::model::shard::{GROUP, Shard};

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
