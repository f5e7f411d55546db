//! Sums of a fixed order, and what follows from them: the pre-bias, clipping, idle counts.

use super::super::buffer::{Buffer, Values};
use super::super::device::{Arg, Device, Element, Launch, WARP};
use super::super::params::{ModelView, N_DEAD};
use super::super::ranks::Number;
use super::super::work::{BLOCKS, CHUNKS, Sizes, WorkBuffers};
use super::ranks::{Others, sum};
use super::{BLOCK, CarriedOver, DeviceBatch, NULL, count, grid, per_value, u};
use crate::error::Result;

/// Column sums of (n, pitch) values in runs of rows, of which there are at most `most`; returns how many. Their number follows from
/// `n` alone.
#[allow(clippy::too_many_arguments)]
pub(super) fn column_sums(
    device: &mut dyn Device,
    element: Element,
    matrix: Arg,
    n: usize,
    cols: usize,
    pitch: usize,
    most: usize,
    out: &mut Buffer<f64>,
) -> Result<usize> {
    let chunks = n.div_ceil(32).clamp(1, most);
    let args = [matrix, u(n)?, u(cols)?, u(pitch)?, out.holds(chunks * cols)?];
    let name = if element == Element::Bf16 { "column_sums_bf16" } else { "column_sums_f32" };
    let blocks = (count(cols.div_ceil(WARP as usize))?, chunks as u32);
    // SAFETY: the caller checked (n, pitch) values; the output was checked.
    unsafe { device.launch(name, Launch { grid: blocks, block: BLOCK, shared: 0 }, &args)? };
    Ok(chunks)
}

/// Sums of all runs, less those of `less`.
pub(super) fn add_chunks(
    device: &mut dyn Device,
    sums: (&Buffer<f64>, usize),
    less: Option<(&Buffer<f64>, usize)>,
    cols: usize,
    keep: bool,
    out: &mut Buffer<f32>,
) -> Result<()> {
    let runs = |(sums, chunks): (&Buffer<f64>, usize)| -> Result<[Arg; 2]> {
        Ok([sums.holds(chunks * cols)?, u(chunks)?])
    };
    let [sums, chunks] = runs(sums)?;
    let [less, fewer] = less.map_or(Ok([NULL, Arg::U32(0)]), runs)?;
    let args = [sums, chunks, less, fewer, u(cols)?, Arg::U32(u32::from(keep)), out.holds(cols)?];
    // SAFETY: all three were checked.
    unsafe { device.launch("add_chunks", per_value(cols)?, &args) }
}

/// Gradient of b_pre into `work.pre_grad`: column sums of dy' less the blocks' parts; 0 where it is not trained.
pub fn pre_bias_gradient(
    device: &mut dyn Device,
    s: &Sizes,
    n: usize,
    train: bool,
    others: Others<'_>,
    work: &mut WorkBuffers,
) -> Result<()> {
    let WorkBuffers { grad_recon, places, partial, sums, less, pre_grad, .. } = work;
    let dy = grad_recon.holds(n * s.pitch)?;
    let chunks = column_sums(device, grad_recon.element(), dy, n, s.pitch, s.pitch, CHUNKS, sums)?;
    // Latents, or the tiles of them, were shared out to this many blocks.
    let blocks = s.m.min(*places);
    let parts = partial.holds(blocks * s.pitch)?;
    // Ranks have one run each, since they may have different numbers of blocks.
    let most = if others.is_some() { 1 } else { CHUNKS };
    let fewer = column_sums(device, Element::F32, parts, blocks, s.pitch, s.pitch, most, less)?;
    if let Some(ranks) = others {
        sum(device, ranks, &[(less.holds(s.pitch)?, s.pitch, Number::F64)])?;
    }
    add_chunks(device, (sums, chunks), Some((less, fewer)), s.pitch, train, pre_grad)
}

/// The gradient norm and the factor of clipping.
pub fn clip_factor(
    device: &mut dyn Device,
    s: &Sizes,
    batch: &DeviceBatch,
    work: &WorkBuffers,
    shared: &mut CarriedOver,
) -> Result<()> {
    let args = [
        work.squares.holds(BLOCKS)?,
        u(BLOCKS)?,
        work.pre_grad.holds(s.d)?,
        u(s.d)?,
        Arg::Pointer(batch.step),
        shared.control.holds(1)?,
        shared.outcomes.holds(1)?,
    ];
    // SAFETY: the sums and the gradient were checked; the slot is below the ring's length (engine).
    unsafe { device.launch("clip_factor", Launch { grid: (1, 1), block: 1024, shared: 0 }, &args) }
}

/// The weight of the penalty that seeks k, after the step.
pub fn carry_weight(device: &mut dyn Device, carried: &Buffer<f32>, shared: &CarriedOver) -> Result<()> {
    let args = [carried.holds(1)?, shared.control.holds(1)?];
    // SAFETY: both were checked.
    unsafe { device.launch("carry_weight", Launch { grid: (1, 1), block: WARP, shared: 0 }, &args) }
}

/// Adam on b_pre.
pub fn update_pre_bias(
    device: &mut dyn Device,
    s: &Sizes,
    batch: &DeviceBatch,
    view: &Buffer<ModelView>,
    work: &WorkBuffers,
    shared: &CarriedOver,
) -> Result<()> {
    let args = [
        view.holds(1)?,
        work.pre_grad.holds(s.d)?,
        u(s.d)?,
        Arg::Pointer(batch.step),
        shared.control.holds(1)?,
    ];
    // SAFETY: the gradient was checked; b_pre and its moments hold `pitch` values (`Tensors`).
    unsafe { device.launch("update_pre_bias", per_value(s.d)?, &args) }
}

/// Idle counts after a step of `n_rows` rows, and the number of dead latents; with 0 rows the number alone.
pub fn count_idle(
    device: &mut dyn Device,
    s: &Sizes,
    n_rows: usize,
    dead_after: u32,
    others: Others<'_>,
    idle: &mut Buffer<u32>,
    shared: &mut CarriedOver,
) -> Result<()> {
    device.zero(shared.control.memory(), N_DEAD)?;
    let args = [
        idle.holds(s.m)?,
        shared.fired.holds(s.m)?,
        u(s.m)?,
        u(n_rows)?,
        Arg::U32(dead_after),
        shared.control.holds(1)?,
    ];
    // SAFETY: both counts hold M.
    unsafe { device.launch("count_idle", per_value(s.m)?, &args)? };
    let Some(ranks) = others else { return Ok(()) };
    let dead = shared.control.memory().part(N_DEAD)?;
    sum(device, ranks, &[(Arg::Pointer(dead), 1, Number::U32)])
}

/// Rounded copy of `from`.
pub fn narrow_copy(device: &mut dyn Device, from: &Buffer<f32>, to: &mut Values) -> Result<()> {
    let len = from.len();
    let args = [from.holds(len)?, to.holds(len)?, Arg::U64(len as u64)];
    let launch = Launch { grid: grid(len.div_ceil(BLOCK as usize).min(4096))?, block: BLOCK, shared: 0 };
    // SAFETY: both hold `len` values, and copies are bfloat16 (`Tensors`).
    unsafe { device.launch("narrow_copy_bf16", launch, &args) }
}
