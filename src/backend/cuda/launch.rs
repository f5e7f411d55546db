//! Launchers: one function a kernel, which owns the kernel's grid, block size and shared memory, and checks that
//! every buffer holds what the kernel will touch.

use super::buffer::{Buffer, Values};
use super::device::{Arg, Device, Element, Launch, Matrix, Product, WARP};
use super::params::{Control, ModelView, Outcome, Quality, ROW_LOSS, ROW_QUALITY};
use super::tensors::{Operands, Tensors};
use super::work::{BLOCKS, CHUNKS, Entries, Kept, Sizes, Soft, Work};
use crate::data::Dtype;
use crate::error::{Error, Result};

const BLOCK: u32 = 256;
const NULL: Arg = Arg::Pointer(0);

/// One batch on the device: how many rows, and where its numbers, row numbers and rows lie.
#[derive(Debug, Clone, Copy)]
pub struct Batch {
    /// N.
    pub n: usize,
    /// Address of the step's numbers.
    pub step: u64,
    /// Address of N row numbers, each below the rows at `data`.
    pub rows: u64,
    /// Address of rows of D values, in the type that `Sizes::input` names.
    pub data: u64,
    /// Address of given uniform numbers (N, M), or 0.
    pub given: u64,
}

/// What steps leave for each other on the device.
#[derive(Debug)]
pub struct Shared {
    /// One value.
    pub control: Buffer<Control>,
    /// A ring of outcomes.
    pub outcomes: Buffer<Outcome>,
    /// (M) whether a latent fired in this step.
    pub fired: Buffer<u32>,
    /// (M) rows on which a latent is active, in an evaluation.
    pub fired_rows: Buffer<u32>,
    /// One value: sums of an evaluation.
    pub quality: Buffer<Quality>,
}

impl Shared {
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

/// Blocks of [`BLOCK`] threads, one thread a value.
fn per_value(values: usize) -> Result<Launch> {
    Ok(Launch { grid: grid(values.div_ceil(BLOCK as usize))?, block: BLOCK, shared: 0 })
}

/// Threads that own a pack of 16 bytes of a row each.
fn row_block(s: &Sizes) -> u32 {
    let packs = (s.pitch * s.element.size()).div_ceil(16) as u32;
    packs.next_multiple_of(WARP).clamp(WARP, BLOCK)
}

/// The kernel's name for a type of rows and of operands.
fn by_types(s: &Sizes, names: [&'static str; 6]) -> &'static str {
    let input = match s.input {
        Dtype::F32 | Dtype::F64 => 0,
        Dtype::F16 => 1,
        Dtype::Bf16 => 2,
    };
    names[input + 3 * usize::from(s.element == Element::Bf16)]
}

fn by_element(s: &Sizes, names: [&'static str; 2]) -> &'static str {
    names[usize::from(s.element == Element::Bf16)]
}

/// Normalised rows into `work.input`, with their means and deviations.
pub fn gather_norm(
    device: &mut dyn Device,
    s: &Sizes,
    batch: &Batch,
    normalize: bool,
    b_pre: u64,
    work: &mut Work,
) -> Result<()> {
    let names = [
        "gather_norm_f32_f32",
        "gather_norm_f16_f32",
        "gather_norm_bf16_f32",
        "gather_norm_f32_bf16",
        "gather_norm_f16_bf16",
        "gather_norm_bf16_bf16",
    ];
    let args = [
        Arg::Pointer(batch.data),
        Arg::Pointer(batch.rows),
        Arg::Pointer(b_pre),
        u(s.d)?,
        u(s.pitch)?,
        Arg::U32(u32::from(normalize)),
        work.input.holds(batch.n * s.pitch)?,
        work.mean.holds(batch.n)?,
        work.std.holds(batch.n)?,
    ];
    let launch = Launch { grid: grid(batch.n)?, block: BLOCK, shared: 0 };
    // SAFETY: outputs were checked for N rows; b_pre holds `pitch` values (`Tensors`); row numbers were checked
    // against the data by the engine.
    unsafe { device.launch(by_types(s, names), launch, &args) }
}

/// `scores = input W_enc^T`.
pub fn encode(device: &mut dyn Device, s: &Sizes, n: usize, enc: Matrix, work: &mut Work) -> Result<()> {
    let a = work.input.matrix(n, s.pitch, s.pitch)?;
    let out = work.scores.matrix(n, s.m, s.score_pitch)?;
    // SAFETY: `matrix` checked both buffers; `enc` comes from `Tensors::operands`; they are different memory.
    unsafe {
        device.product(&Product { a, a_transposed: false, b: enc, b_transposed: true, out, add: false })
    }
}

/// The top k of each row into `work.main`; with the softmax of each row where `soft`.
#[allow(clippy::too_many_arguments)]
pub fn topk(
    device: &mut dyn Device,
    s: &Sizes,
    batch: &Batch,
    b_lat: u64,
    shared: &mut Shared,
    count_fired: bool,
    soft: bool,
    work: &mut Work,
) -> Result<()> {
    let n = batch.n;
    let e = &work.main;
    let scores = work.scores.holds(n * s.score_pitch)?;
    let fired = if count_fired { shared.fired.holds(s.m)? } else { NULL };
    let mut args = vec![scores, Arg::Pointer(b_lat), u(s.m)?, u(s.score_pitch)?, u(s.k)?];
    let name = if soft {
        by_element(s, ["topk_softmax_f32", "topk_softmax_bf16"])
    } else {
        args.push(NULL);
        by_element(s, ["topk_stream_f32", "topk_stream_bf16"])
    };
    args.extend([
        Arg::Pointer(batch.step),
        shared.control.holds(1)?,
        e.index.holds(n * s.k)?,
        e.value.holds(n * s.k)?,
        e.count.holds(n)?,
    ]);
    match (&work.soft, soft) {
        (Some(half), true) => args.extend([
            half.kth.holds(n)?,
            work.bad.holds(n)?,
            fired,
            Arg::Pointer(batch.given),
            half.rows.holds(n)?,
        ]),
        _ => args.extend([work.bad.holds(n)?, fired]),
    }
    let launch = Launch { grid: grid(n)?, block: BLOCK, shared: 0 };
    // SAFETY: scores and outputs were checked for N rows, flags for M; b_lat holds M (`Tensors`); k is at most
    // `MOST_ACTIVE` (`Sizes::new`); `given` holds N M where it is not null (engine).
    unsafe { device.launch(name, launch, &args) }
}

/// The top `aux_k` of dead latents into `work.aux`.
pub fn topk_dead(
    device: &mut dyn Device,
    s: &Sizes,
    batch: &Batch,
    tensors: &Tensors,
    shared: &Shared,
    work: &mut Work,
) -> Result<()> {
    let Some(e) = &work.aux else { return Ok(()) };
    let n = batch.n;
    let args = [
        work.scores.holds(n * s.score_pitch)?,
        Arg::Pointer(tensors.lat.w.address()),
        u(s.m)?,
        u(s.score_pitch)?,
        u(s.aux_k)?,
        tensors.idle.holds(s.m)?,
        Arg::Pointer(batch.step),
        shared.control.holds(1)?,
        e.index.holds(n * s.aux_k)?,
        e.value.holds(n * s.aux_k)?,
        e.count.holds(n)?,
        NULL,
        NULL,
    ];
    let launch = Launch { grid: grid(n)?, block: BLOCK, shared: 0 };
    // SAFETY: as in `topk`; idle counts hold M.
    unsafe { device.launch(by_element(s, ["topk_stream_f32", "topk_stream_bf16"]), launch, &args) }
}

/// The arguments that all kernels on a tile of scores begin with.
fn tile_args(s: &Sizes, batch: &Batch, b_lat: u64, tile: (usize, usize), work: &Work) -> Result<Vec<Arg>> {
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

fn tile_launch(n: usize, cols: usize) -> Result<Launch> {
    Ok(Launch { grid: (count(n)?, count(cols.div_ceil(1024))?), block: BLOCK, shared: 0 })
}

/// Softmax weights of a tile into `soft.code`.
pub fn soft_weights(
    device: &mut dyn Device,
    s: &Sizes,
    batch: &Batch,
    b_lat: u64,
    tile: (usize, usize),
    work: &Work,
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
    batch: &Batch,
    b_lat: u64,
    tile: (usize, usize),
    work: &Work,
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

/// `relu(z)` of a tile into `soft.code`; active latents of a row are counted into `work.main.count`, active rows of a
/// latent into `shared.fired_rows`.
#[allow(clippy::too_many_arguments)]
pub fn relu_tile(
    device: &mut dyn Device,
    s: &Sizes,
    batch: &Batch,
    b_lat: u64,
    tile: (usize, usize),
    work: &Work,
    soft: &mut Soft,
    shared: &mut Shared,
) -> Result<()> {
    let mut args = tile_args(s, batch, b_lat, tile, work)?;
    args.extend([
        work.main.count.holds(batch.n)?,
        shared.fired_rows.holds(s.m)?,
        soft.code.holds(batch.n * s.tile)?,
    ]);
    let name = by_element(s, ["relu_tile_f32", "relu_tile_bf16"]);
    // SAFETY: as in `soft_weights`; the counts hold N and M.
    unsafe { device.launch(name, tile_launch(batch.n, tile.1)?, &args) }
}

/// `soft.recon = code W_dec` of a tile, added to the tiles before.
pub fn decode_tile(
    device: &mut dyn Device,
    s: &Sizes,
    n: usize,
    dec: Matrix,
    tile: (usize, usize),
    soft: &mut Soft,
) -> Result<()> {
    let product = Product {
        a: soft.code.matrix(n, tile.1, s.tile)?,
        a_transposed: false,
        b: rows_of(dec, tile),
        b_transposed: false,
        out: soft.recon.matrix(0, n, s.pitch, s.pitch)?,
        add: tile.0 > 0,
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
    work: &Work,
    soft: &mut Soft,
) -> Result<()> {
    let product = Product {
        a: work.grad_recon.matrix(n, s.pitch, s.pitch)?,
        a_transposed: false,
        b: rows_of(dec, tile),
        b_transposed: true,
        out: soft.grad.matrix(n, tile.1, s.tile)?,
        add: false,
    };
    // SAFETY: as in `decode_tile`.
    unsafe { device.product(&product) }
}

/// Gradients of a tile of latents: `enc = dz^T input`, `dec = code^T dy'` (added to `enc` when tied), and the sums
/// of dz into `bias`.
pub fn tile_gradients(
    device: &mut dyn Device,
    s: &Sizes,
    n: usize,
    tile: (usize, usize),
    work: &Work,
    soft: &mut Soft,
) -> Result<()> {
    let grad = soft.grad.matrix(n, tile.1, s.tile)?;
    let encoder = Product {
        a: grad,
        a_transposed: true,
        b: work.input.matrix(n, s.pitch, s.pitch)?,
        b_transposed: false,
        out: soft.enc.matrix(0, tile.1, s.pitch, s.pitch)?,
        add: false,
    };
    let out = if s.tied { &soft.enc } else { &soft.dec };
    let decoder = Product {
        a: soft.code.matrix(n, tile.1, s.tile)?,
        b: work.grad_recon.matrix(n, s.pitch, s.pitch)?,
        out: out.matrix(0, tile.1, s.pitch, s.pitch)?,
        add: s.tied,
        ..encoder
    };
    // SAFETY: `matrix` checked all buffers; outputs are different memory from the operands.
    unsafe {
        device.product(&encoder)?;
        device.product(&decoder)?;
    }
    let Soft { grad, sums, bias, .. } = soft;
    let chunks = column_sums(device, grad.element(), grad.holds(n * s.tile)?, n, tile.1, s.tile, sums)?;
    add_chunks(device, (sums, chunks), None, tile.1, true, bias)
}

/// Column sums of (n, pitch) values in runs of rows; returns how many runs. Their number follows from `n` alone.
fn column_sums(
    device: &mut dyn Device,
    element: Element,
    matrix: Arg,
    n: usize,
    cols: usize,
    pitch: usize,
    out: &mut Buffer<f64>,
) -> Result<usize> {
    let chunks = n.div_ceil(32).clamp(1, CHUNKS);
    let args = [matrix, u(n)?, u(cols)?, u(pitch)?, out.holds(chunks * cols)?];
    let name = if element == Element::Bf16 { "column_sums_bf16" } else { "column_sums_f32" };
    let blocks = (count(cols.div_ceil(WARP as usize))?, chunks as u32);
    // SAFETY: the caller checked (n, pitch) values; the output was checked.
    unsafe { device.launch(name, Launch { grid: blocks, block: BLOCK, shared: 0 }, &args)? };
    Ok(chunks)
}

/// Sums of all runs, less those of `less`.
fn add_chunks(
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

/// Reconstruction, loss, dy', and the gradients of sparse entries.
pub fn decode(
    device: &mut dyn Device,
    s: &Sizes,
    batch: &Batch,
    w: &Operands,
    shared: &Shared,
    soft: bool,
    work: &mut Work,
) -> Result<()> {
    let n = batch.n;
    let names = [
        "decode_f32_f32",
        "decode_f16_f32",
        "decode_bf16_f32",
        "decode_f32_bf16",
        "decode_f16_bf16",
        "decode_bf16_bf16",
    ];
    let (soft_recon, soft_rows) = match (&work.soft, soft) {
        (Some(half), true) => (half.recon.holds(n * s.pitch)?, half.rows.holds(n)?),
        _ => (NULL, NULL),
    };
    let (aux, aux_recon, aux_grad) = match (&work.aux, &work.aux_recon) {
        (Some(e), Some(recon)) => {
            let k = s.aux_k;
            let entries = [e.index.holds(n * k)?, e.value.holds(n * k)?, e.count.holds(n)?, u(k)?];
            (entries, recon.holds(n * s.pitch)?, e.grad.holds(n * k)?)
        }
        _ => ([NULL, NULL, NULL, Arg::U32(0)], NULL, NULL),
    };
    let e = &work.main;
    let recon = work.recon.as_ref().map_or(Ok(NULL), |recon| recon.holds(n * s.pitch))?;
    let mut args = vec![
        Arg::Pointer(batch.data),
        Arg::Pointer(batch.rows),
        u(s.d)?,
        work.mean.holds(n)?,
        work.std.holds(n)?,
        Arg::Pointer(w.dec.address),
        Arg::Pointer(w.b_pre),
        u(s.pitch)?,
        e.index.holds(n * s.k)?,
        e.value.holds(n * s.k)?,
        e.count.holds(n)?,
        u(s.k)?,
        soft_recon,
        soft_rows,
    ];
    args.extend(aux);
    args.extend([
        Arg::Pointer(batch.step),
        shared.control.holds(1)?,
        work.grad_recon.holds(n * s.pitch)?,
        e.grad.holds(n * s.k)?,
        aux_recon,
        aux_grad,
        recon,
        work.loss.holds(n * ROW_LOSS)?,
    ]);
    let rows = if s.aux_k > 0 { 2 } else { 1 };
    let bytes = 4 * rows * s.pitch + 8 * s.k.max(s.aux_k);
    let launch = Launch { grid: grid(n)?, block: row_block(s), shared: count(bytes)? };
    // SAFETY: every buffer was checked for N rows; the decoder holds (M, pitch) and b_pre (pitch) (`Tensors`);
    // indices are below M (`topk`); row numbers were checked against the data by the engine.
    unsafe { device.launch(by_types(s, names), launch, &args) }
}

/// Loss of the step from its rows, into the ring of outcomes.
pub fn finish_loss(
    device: &mut dyn Device,
    s: &Sizes,
    batch: &Batch,
    work: &Work,
    shared: &mut Shared,
) -> Result<()> {
    let args = [
        work.loss.holds(batch.n * ROW_LOSS)?,
        work.bad.holds(batch.n)?,
        u(s.d)?,
        u(s.m)?,
        Arg::Pointer(batch.step),
        shared.control.holds(1)?,
        shared.outcomes.holds(1)?,
    ];
    let launch = Launch { grid: (1, 1), block: 1024, shared: 0 };
    // SAFETY: rows were checked; the slot in the step's numbers is below the ring's length (engine).
    unsafe { device.launch("finish_loss", launch, &args) }
}

/// The inverted index of `entries`.
pub fn index(
    device: &mut dyn Device,
    s: &Sizes,
    n: usize,
    entries: &mut Entries,
    totals: &mut Buffer<u32>,
    cursor: &mut Buffer<u32>,
    unordered: &mut Buffer<u32>,
) -> Result<()> {
    let k = entries.k;
    let (rows, width) = (u(n)?, u(k)?);
    let (index, held) = (entries.index.holds(n * k)?, entries.count.holds(n)?);
    let offsets = entries.offsets.holds(s.m + 1)?;
    totals.zero(device, s.m)?;
    let (totals, cursor) = (totals.holds(s.m)?, cursor.holds(s.m)?);
    let (unordered, slots) = (unordered.holds(n * k)?, entries.slots.holds(n * k)?);
    let per_entry = per_value(n * k)?;
    // SAFETY: all buffers were checked for N k entries and M latents; indices are below M (`topk`), and N k fits
    // in 32 bits (`Work::new`).
    unsafe {
        device.launch("index_count", per_entry, &[index, held, rows, width, totals])?;
        let one = Launch { grid: (1, 1), block: 1024, shared: 0 };
        device.launch("index_scan", one, &[totals, u(s.m)?, offsets, cursor])?;
        device.launch("index_fill", per_entry, &[index, held, rows, width, cursor, unordered])?;
        let latents = Launch { grid: grid(s.m)?, block: WARP, shared: 0 };
        device.launch("index_order", latents, &[offsets, unordered, rows, width, slots])
    }
}

/// What [`latent_update`] does so that rows of the decoder keep length 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Nothing.
    Free = 0,
    /// Frees the gradient of its part along the row, and scales the row after the step.
    Both = 1,
    /// Scales the row after the step.
    Scale = 2,
}

/// Where [`latent_update`] finds its parts.
#[derive(Debug, Clone, Copy)]
pub struct Update<'a> {
    /// First latent and count.
    pub latents: (usize, usize),
    /// The top k, in the hard phase.
    pub main: Option<&'a Entries>,
    /// Entries of the auxiliary loss and its gradient of the reconstruction.
    pub aux: Option<(&'a Entries, &'a Values)>,
    /// Dense gradients of these latents: encoder, decoder (unused when tied), biases.
    pub dense: Option<(Arg, Arg, Arg)>,
    /// Keep the gradients instead of using them.
    pub kept: Option<&'a Kept>,
    /// What keeps rows of the decoder at length 1.
    pub unit: Unit,
    /// Add to `partial`.
    pub partial: bool,
}

/// Gradient and Adam (or the gradient alone) of a run of latents.
pub fn latent_update(
    device: &mut dyn Device,
    s: &Sizes,
    batch: &Batch,
    view: &Buffer<ModelView>,
    shared: &Shared,
    work: &Work,
    up: &Update<'_>,
) -> Result<()> {
    let n = batch.n;
    let (first, latents) = up.latents;
    let lists = |e: Option<&Entries>| -> Result<[Arg; 5]> {
        let Some(e) = e else { return Ok([NULL, NULL, NULL, NULL, Arg::U32(0)]) };
        let all = n * e.k;
        Ok([e.offsets.holds(s.m + 1)?, e.slots.holds(all)?, e.value.holds(all)?, e.grad.holds(all)?, u(e.k)?])
    };
    let rows = n * s.pitch;
    let mut args = vec![
        u(first)?,
        u(latents)?,
        u(s.d)?,
        u(s.pitch)?,
        work.input.holds(rows)?,
        work.grad_recon.holds(rows)?,
        up.aux.map_or(Ok(NULL), |(_, recon)| recon.holds(rows))?,
    ];
    args.extend(lists(up.main)?);
    args.extend(lists(up.aux.map(|(e, _)| e))?);
    let (enc, dec, bias) = up.dense.unwrap_or((NULL, NULL, NULL));
    args.extend([enc, if s.tied { NULL } else { dec }, bias]);
    let (at, size) = (first * s.pitch, latents * s.pitch);
    match up.kept {
        Some(kept) => args.extend([
            kept.enc.part(at, size)?,
            if s.tied { NULL } else { kept.dec.part(at, size)? },
            kept.bias.part(first, latents)?,
            work.squares.holds(BLOCKS)?,
        ]),
        None => args.extend([NULL, NULL, NULL, NULL]),
    }
    args.extend([
        Arg::U32(up.unit as u32),
        view.holds(1)?,
        Arg::Pointer(batch.step),
        shared.control.holds(1)?,
        if up.partial { work.partial.holds(BLOCKS * s.pitch)? } else { NULL },
    ]);
    let name = match (s.element, s.tied) {
        (Element::F32, true) => "latent_update_f32_tied",
        (Element::F32, false) => "latent_update_f32_untied",
        (Element::Bf16, true) => "latent_update_bf16_tied",
        (Element::Bf16, false) => "latent_update_bf16_untied",
    };
    let launch =
        Launch { grid: grid(latents.min(BLOCKS))?, block: row_block(s), shared: count(12 * s.pitch)? };
    // SAFETY: operands were checked for N rows, lists for N k entries and M latents, kept gradients for these
    // latents; `dense` was checked by who made it; the model's addresses stay valid while `Tensors` lives.
    unsafe { device.launch(name, launch, &args) }
}

/// Gradient of b_pre into `work.pre_grad`: column sums of dy' less the blocks' parts; 0 where it is not trained.
pub fn pre_bias_gradient(
    device: &mut dyn Device,
    s: &Sizes,
    n: usize,
    train: bool,
    work: &mut Work,
) -> Result<()> {
    let Work { grad_recon, partial, sums, less, pre_grad, .. } = work;
    let dy = grad_recon.holds(n * s.pitch)?;
    let chunks = column_sums(device, grad_recon.element(), dy, n, s.pitch, s.pitch, sums)?;
    // Latents, or the tiles of them, were shared out to this many blocks.
    let blocks = s.m.min(BLOCKS);
    let parts = partial.holds(blocks * s.pitch)?;
    let fewer = column_sums(device, Element::F32, parts, blocks, s.pitch, s.pitch, less)?;
    add_chunks(device, (sums, chunks), Some((less, fewer)), s.pitch, train, pre_grad)
}

/// The gradient norm and the factor of clipping.
pub fn clip_factor(
    device: &mut dyn Device,
    s: &Sizes,
    batch: &Batch,
    work: &Work,
    shared: &mut Shared,
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

/// Adam on b_pre.
pub fn update_pre_bias(
    device: &mut dyn Device,
    s: &Sizes,
    batch: &Batch,
    view: &Buffer<ModelView>,
    work: &Work,
    shared: &Shared,
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
    idle: &mut Buffer<u32>,
    shared: &mut Shared,
) -> Result<()> {
    device.zero(shared.control.memory(), super::params::N_DEAD)?;
    let args = [
        idle.holds(s.m)?,
        shared.fired.holds(s.m)?,
        u(s.m)?,
        u(n_rows)?,
        Arg::U32(dead_after),
        shared.control.holds(1)?,
    ];
    // SAFETY: both counts hold M.
    unsafe { device.launch("count_idle", per_value(s.m)?, &args) }
}

/// Quality of the rows of a batch, added to the running sums. `dense` where `soft.recon` holds the code's part.
pub fn evaluate(
    device: &mut dyn Device,
    s: &Sizes,
    batch: &Batch,
    w: &Operands,
    dense: bool,
    work: &mut Work,
    shared: &mut Shared,
) -> Result<()> {
    let n = batch.n;
    let names = [
        "evaluate_f32_f32",
        "evaluate_f16_f32",
        "evaluate_bf16_f32",
        "evaluate_f32_bf16",
        "evaluate_f16_bf16",
        "evaluate_bf16_bf16",
    ];
    let recon = match (&work.soft, dense) {
        (Some(half), true) => half.recon.holds(n * s.pitch)?,
        _ => NULL,
    };
    let e = &work.main;
    let quality = work.quality.holds(n * ROW_QUALITY)?;
    let args = [
        Arg::Pointer(batch.data),
        Arg::Pointer(batch.rows),
        u(s.d)?,
        work.mean.holds(n)?,
        work.std.holds(n)?,
        Arg::Pointer(w.dec.address),
        Arg::Pointer(w.b_pre),
        u(s.pitch)?,
        e.index.holds(n * s.k)?,
        e.value.holds(n * s.k)?,
        e.count.holds(n)?,
        u(s.k)?,
        recon,
        e.count.holds(n)?,
        work.bad.holds(n)?,
        shared.fired_rows.holds(s.m)?,
        quality,
    ];
    let launch = Launch { grid: grid(n)?, block: row_block(s), shared: count(8 * s.k)? };
    // SAFETY: as in `decode`; counts of latents hold M.
    unsafe {
        device.launch(by_types(s, names), launch, &args)?;
        let sum = Launch { grid: (1, 1), block: 1024, shared: 0 };
        device.launch("add_quality", sum, &[quality, u(n)?, shared.quality.holds(1)?])
    }
}

/// Rounded copy of `from`.
pub fn narrow_copy(device: &mut dyn Device, from: &Buffer<f32>, to: &mut Values) -> Result<()> {
    let len = from.len();
    let args = [from.holds(len)?, to.holds(len)?, Arg::U64(len as u64)];
    let launch = Launch { grid: grid(len.div_ceil(BLOCK as usize).min(4096))?, block: BLOCK, shared: 0 };
    // SAFETY: both hold `len` values, and copies are bfloat16 (`Tensors`).
    unsafe { device.launch("narrow_copy_bf16", launch, &args) }
}
