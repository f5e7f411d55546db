//! Launchers: one function a kernel, which owns the kernel's grid, block size and shared memory, and checks that
//! every buffer holds what the kernel will touch.

mod above;
mod batch;
mod gates;
mod latents;
mod ranks;
mod rows;
mod sums;
mod tiles;

pub use above::{Counts, above_count, above_gradients, above_tile, row_lengths};
pub use batch::batch_topk;
pub use gates::{gate_gradients, gate_weights};
pub use latents::{Dense, Unit, Update, index, latent_update, list_runs};
pub use ranks::{
    Others, Summed, add_counts, add_gradients, add_parts, add_rows, add_squares, gather_values, is_of_all,
    reconstruct,
};
pub use rows::{decode, encode, evaluate, finish_loss, gather_norm, topk, topk_dead};
pub use sums::{carry_weight, clip_factor, count_idle, narrow_copy, pre_bias_gradient, update_pre_bias};
use tiles::tile_launch;
pub use tiles::{backward_tile, decode_tile, soft_gradients, soft_weights, tile_gradients};

use super::buffer::Buffer;
use super::device::{Arg, Device, Element, Launch};
use super::params::{Control, Outcome, QualitySums};
use super::work::{BLOCK, Sizes};
use crate::error::{Error, Result};
use crate::rows::Dtype;

/// The null pointer.
pub const NULL: Arg = Arg::Pointer(0);

/// One batch on the device: how many rows, and where its numbers, row numbers and rows lie.
#[derive(Debug, Clone, Copy)]
pub struct DeviceBatch {
    /// N.
    pub n: usize,
    /// Address of the step's numbers.
    pub step: u64,
    /// Address of N row numbers, each below the rows at `data`.
    pub rows: u64,
    /// Address of rows of D values, in the type that `Sizes::input` names.
    pub data: u64,
    /// Which place of the feed that is; 0 where all rows are on the device.
    pub slot: usize,
    /// Address of given uniform numbers (N, M), or 0.
    pub given: u64,
}

/// What steps leave for each other on the device.
#[derive(Debug)]
pub struct CarriedOver {
    /// One value.
    pub control: Buffer<Control>,
    /// A ring of outcomes.
    pub outcomes: Buffer<Outcome>,
    /// (M) whether a latent fired in this step.
    pub fired: Buffer<u32>,
    /// (M) rows on which a latent is active, in an evaluation.
    pub fired_rows: Buffer<u32>,
    /// One value: sums of an evaluation.
    pub quality: Buffer<QualitySums>,
}

impl CarriedOver {
    /// Room for `outcomes` steps of a model of `m` latents.
    ///
    /// # Errors
    /// Not enough memory.
    pub fn new(device: &mut dyn Device, m: usize, outcomes: usize) -> Result<Self> {
        Ok(Self {
            control: Buffer::zeros(device, 1, "facts of a step")?,
            outcomes: Buffer::zeros(device, outcomes, "statistics of steps")?,
            fired: Buffer::zeros(device, m, "flags of latents")?,
            fired_rows: Buffer::zeros(device, m, "counts of latents")?,
            quality: Buffer::zeros(device, 1, "sums of an evaluation")?,
        })
    }
}

fn count(n: usize) -> Result<u32> {
    u32::try_from(n)
        .map_err(|_| Error::Failed(format!("{n} is more than a kernel counts; please report this")))
}

fn u(n: usize) -> Result<Arg> {
    count(n).map(Arg::U32)
}

fn grid(blocks: usize) -> Result<(u32, u32)> {
    Ok((count(blocks.max(1))?, 1))
}

/// Blocks of [`BLOCK`] threads, one thread per value.
fn per_value(values: usize) -> Result<Launch> {
    Ok(Launch { grid: grid(values.div_ceil(BLOCK as usize))?, block: BLOCK, shared: 0 })
}

/// The first `len` values where there are any, else the null pointer.
///
/// # Errors
/// Fewer values are held.
pub fn where_any(any: bool, values: &Buffer<f32>, len: usize) -> Result<Arg> {
    if any { values.holds(len) } else { Ok(NULL) }
}

/// How kernels learn the type of the rows (`stored` in `kernels/common.cuh`).
fn kind(s: &Sizes) -> Arg {
    Arg::U32(match s.input {
        Dtype::F32 | Dtype::F64 => 0,
        Dtype::F16 => 1,
        Dtype::Bf16 => 2,
    })
}

/// The kernel's name for a type of operands.
fn by_element(s: &Sizes, names: [&'static str; 2]) -> &'static str {
    names[usize::from(s.element == Element::Bf16)]
}
