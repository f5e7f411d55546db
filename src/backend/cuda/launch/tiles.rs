//! Dense codes, tile of latents by tile: the softmax of the warm-up, and the products of all of them.

use super::super::buffer::Buffer;
use super::super::device::{Arg, Device, Element, Launch, Matrix, Product};
use super::super::work::{CHUNKS, Sizes, Soft, WorkBuffers};
use super::sums::{add_chunks, column_sums};
use super::{BLOCK, DeviceBatch, by_element, count, u};
use crate::error::Result;

/// The arguments that all kernels on a tile of scores begin with.
fn tile_args(
    s: &Sizes,
    batch: &DeviceBatch,
    b_lat: u64,
    tile: (usize, usize),
    work: &WorkBuffers,
) -> Result<Vec<Arg>> {
    Ok(vec![
        work.scores.holds(batch.n * s.score_pitch)?,
        Arg::Pointer(b_lat),
        u(s.m)?,
        u(s.score_pitch)?,
        u(tile.0)?,
        u(tile.1)?,
        u(s.tile)?,
    ])
}

/// Four latents a thread, for all rows.
pub(super) fn tile_launch(n: usize, cols: usize) -> Result<Launch> {
    Ok(Launch { grid: (count(n)?, count(cols.div_ceil(1024))?), block: BLOCK, shared: 0 })
}

/// Softmax weights of a tile into `soft.code`.
pub fn soft_weights(
    device: &mut dyn Device,
    s: &Sizes,
    batch: &DeviceBatch,
    b_lat: u64,
    tile: (usize, usize),
    work: &WorkBuffers,
    soft: &mut Soft,
) -> Result<()> {
    let mut args = tile_args(s, batch, b_lat, tile, work)?;
    args.extend([
        Arg::Pointer(batch.step),
        soft.rows.holds(batch.n)?,
        Arg::Pointer(batch.given),
        soft.code.holds(batch.n * s.tile)?,
    ]);
    let name = by_element(s, ["soft_weights_f32", "soft_weights_bf16"]);
    // SAFETY: scores and tile were checked for N rows; the tile lies within M (`Sizes::tiles`).
    unsafe { device.launch(name, tile_launch(batch.n, tile.1)?, &args) }
}

/// dh in `soft.grad` becomes dz; the code goes to `soft.code`.
pub fn soft_gradients(
    device: &mut dyn Device,
    s: &Sizes,
    batch: &DeviceBatch,
    b_lat: u64,
    tile: (usize, usize),
    work: &WorkBuffers,
    soft: &mut Soft,
) -> Result<()> {
    let mut args = tile_args(s, batch, b_lat, tile, work)?;
    args.extend([
        Arg::Pointer(batch.step),
        soft.rows.holds(batch.n)?,
        soft.kth.holds(batch.n)?,
        Arg::Pointer(batch.given),
        soft.grad.holds(batch.n * s.tile)?,
        soft.code.holds(batch.n * s.tile)?,
    ]);
    let name = by_element(s, ["soft_gradients_f32", "soft_gradients_bf16"]);
    // SAFETY: as in `soft_weights`.
    unsafe { device.launch(name, tile_launch(batch.n, tile.1)?, &args) }
}

/// `soft.recon = code W_dec` of a tile, added to the tiles before of its segment.
pub fn decode_tile(
    device: &mut dyn Device,
    s: &Sizes,
    n: usize,
    dec: Matrix,
    tile: (usize, usize),
    soft: &mut Soft,
) -> Result<()> {
    let segment = s.segment(tile.0);
    let product = Product {
        a: soft.code.matrix(0, n, tile.1, s.tile)?,
        a_transposed: false,
        b: rows_of(dec, tile),
        b_transposed: false,
        out: soft.recon.matrix(segment * n, n, s.pitch, s.pitch)?,
        add: s.segments().iter().all(|segment| segment.start != tile.0),
    };
    // SAFETY: `matrix` checked the buffers; the tile's rows lie within the decoder (`Sizes::tiles`).
    unsafe { device.product(&product) }
}

/// Rows `tile.0 .. tile.0 + tile.1` of a matrix.
fn rows_of(m: Matrix, tile: (usize, usize)) -> Matrix {
    let address = m.address + (tile.0 * m.stride * m.element.size()) as u64;
    Matrix { address, rows: tile.1, ..m }
}

/// `soft.grad = dy' W_dec^T` of a tile.
pub fn backward_tile(
    device: &mut dyn Device,
    s: &Sizes,
    n: usize,
    dec: Matrix,
    tile: (usize, usize),
    work: &WorkBuffers,
    soft: &mut Soft,
) -> Result<()> {
    let product = Product {
        a: work.grad_recon.matrix(s.segment(tile.0) * n, n, s.pitch, s.pitch)?,
        a_transposed: false,
        b: rows_of(dec, tile),
        b_transposed: true,
        out: soft.grad.matrix(0, n, tile.1, s.tile)?,
        add: false,
    };
    // SAFETY: as in `decode_tile`.
    unsafe { device.product(&product) }
}

/// Gradients of a tile of latents: `enc = dz^T input`, `dec = code^T dy'` (added to `enc` when tied), and the sums
/// of dz into `bias`; those of the thresholds' gradients into `threshold`, and of the code into `code_sums`, where there are any.
pub fn tile_gradients(
    device: &mut dyn Device,
    s: &Sizes,
    n: usize,
    tile: (usize, usize),
    work: &WorkBuffers,
    soft: &mut Soft,
) -> Result<()> {
    let grad = soft.grad.matrix(0, n, tile.1, s.tile)?;
    let encoder = Product {
        a: grad,
        a_transposed: true,
        b: work.input.matrix(0, n, s.pitch, s.pitch)?,
        b_transposed: false,
        out: soft.enc.matrix(0, tile.1, s.pitch, s.pitch)?,
        add: false,
    };
    let out = if s.tied { &soft.enc } else { &soft.dec };
    let decoder = Product {
        a: soft.code.matrix(0, n, tile.1, s.tile)?,
        b: work.grad_recon.matrix(s.segment(tile.0) * n, n, s.pitch, s.pitch)?,
        out: out.matrix(0, tile.1, s.pitch, s.pitch)?,
        add: s.tied,
        ..encoder
    };
    // SAFETY: `matrix` checked all buffers; outputs are different memory from the operands.
    unsafe {
        device.product(&encoder)?;
        device.product(&decoder)?;
    }
    let Soft { grad, code, edge, sums, bias, threshold, code_sums, .. } = soft;
    let values = n * s.tile;
    let mut sum = |element, matrix, out: &mut Buffer<f32>| {
        let chunks = column_sums(device, element, matrix, n, tile.1, s.tile, CHUNKS, sums)?;
        add_chunks(device, (sums, chunks), None, tile.1, true, out)
    };
    sum(grad.element(), grad.holds(values)?, bias)?;
    if s.trains_thresholds() {
        sum(Element::F32, edge.holds(values)?, threshold)?;
    }
    if s.has_lengths() {
        sum(code.element(), code.holds(values)?, code_sums)?;
    }
    Ok(())
}
