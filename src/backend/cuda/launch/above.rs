//! Kernels on scores above thresholds: codes without places, and their gradients.

use super::super::device::{Arg, Device, Launch};
use super::super::params::ROW_LOSS;
use super::super::tensors::{Operands, Tensors};
use super::super::work::{Sizes, Soft, WorkBuffers};
use super::{BLOCK, CarriedOver, DeviceBatch, NULL, by_element, grid, per_value, tile_launch, u};
use crate::error::Result;

/// What [`above_count`] counts beside the active latents of each row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counts {
    /// Which latents fired, and the penalty's part of each row's loss: a training step.
    Step,
    /// Rows on which each latent is active: an evaluation.
    Rows,
    /// Nothing.
    Active,
}

/// Lengths of the decoder's rows, where the penalty has them.
pub fn row_lengths(
    device: &mut dyn Device,
    s: &Sizes,
    tensors: &Tensors,
    work: &mut WorkBuffers,
) -> Result<()> {
    let decoder = tensors.dec.as_ref().unwrap_or(&tensors.enc);
    let args = [decoder.w.holds(s.m * s.pitch)?, u(s.m)?, u(s.d)?, u(s.pitch)?, work.lengths.holds(s.m)?];
    // SAFETY: the weights and the output were checked for M rows.
    unsafe { device.launch("row_lengths", per_value(s.m * 32)?, &args) }
}

fn lengths(s: &Sizes, work: &WorkBuffers) -> Result<Arg> {
    if s.has_lengths() { work.lengths.holds(s.m) } else { Ok(NULL) }
}

/// Active latents of each row into `work.main.count`, and whether its scores are finite.
pub fn above_count(
    device: &mut dyn Device,
    s: &Sizes,
    batch: &DeviceBatch,
    w: &Operands,
    counts: Counts,
    shared: &mut CarriedOver,
    work: &mut WorkBuffers,
) -> Result<()> {
    let n = batch.n;
    let step = counts == Counts::Step;
    let args = [
        work.scores.holds(n * s.score_pitch)?,
        Arg::Pointer(w.b_lat),
        Arg::Pointer(w.threshold),
        if step { lengths(s, work)? } else { NULL },
        u(s.m)?,
        u(s.score_pitch)?,
        work.main.count.holds(n)?,
        work.bad.holds(n)?,
        if step { shared.fired.holds(s.m)? } else { NULL },
        if counts == Counts::Rows { shared.fired_rows.holds(s.m)? } else { NULL },
        if step { work.loss.holds(n * ROW_LOSS)? } else { NULL },
    ];
    let name = by_element(s, ["above_count_f32", "above_count_bf16"]);
    let launch = Launch { grid: grid(n)?, block: BLOCK, shared: 0 };
    // SAFETY: scores and outputs were checked for N rows, lengths and flags for M; b_lat and the thresholds hold M
    // (`Tensors`).
    unsafe { device.launch(name, launch, &args) }
}

/// What kernels on a tile of such scores begin with.
fn tile_args(
    s: &Sizes,
    batch: &DeviceBatch,
    w: &Operands,
    lengths: Option<Arg>,
    (first, cols): (usize, usize),
    work: &WorkBuffers,
) -> Result<Vec<Arg>> {
    let mut args =
        vec![work.scores.holds(batch.n * s.score_pitch)?, Arg::Pointer(w.b_lat), Arg::Pointer(w.threshold)];
    args.extend(lengths);
    args.extend([u(s.score_pitch)?, u(first)?, u(cols)?, u(s.tile)?]);
    Ok(args)
}

/// The code of a tile into `soft.code`.
pub fn above_tile(
    device: &mut dyn Device,
    s: &Sizes,
    batch: &DeviceBatch,
    w: &Operands,
    tile: (usize, usize),
    work: &WorkBuffers,
    soft: &mut Soft,
) -> Result<()> {
    let mut args = tile_args(s, batch, w, None, tile, work)?;
    args.push(soft.code.holds(batch.n * s.tile)?);
    let name = by_element(s, ["above_tile_f32", "above_tile_bf16"]);
    // SAFETY: scores and tile were checked for N rows; the tile lies within M (`Sizes::tiles`).
    unsafe { device.launch(name, tile_launch(batch.n, tile.1)?, &args) }
}

/// dh in `soft.grad` becomes dz; the code goes to `soft.code`, parts of the thresholds' gradients to `soft.edge`.
#[allow(clippy::too_many_arguments)]
pub fn above_gradients(
    device: &mut dyn Device,
    s: &Sizes,
    batch: &DeviceBatch,
    w: &Operands,
    tile: (usize, usize),
    shared: &CarriedOver,
    work: &WorkBuffers,
    soft: &mut Soft,
) -> Result<()> {
    let (n, values) = (batch.n, batch.n * s.tile);
    let mut args = tile_args(s, batch, w, Some(lengths(s, work)?), tile, work)?;
    args.extend([
        work.active(n)?,
        Arg::Pointer(batch.step),
        shared.control.holds(1)?,
        soft.grad.holds(values)?,
        soft.code.holds(values)?,
        if s.trains_thresholds() { soft.edge.holds(values)? } else { NULL },
    ]);
    let name = by_element(s, ["above_gradients_f32", "above_gradients_bf16"]);
    // SAFETY: as in `above_tile`; lengths hold M, and counts N.
    unsafe { device.launch(name, tile_launch(n, tile.1)?, &args) }
}
