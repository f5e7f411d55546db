//! Rows and latents whose values begin beyond 2^32 of a buffer: a kernel does there what it does at the front.
//!
//! No memory holds such a batch whole. The emulation reserves the addresses, runs the block of the last row (or latent)
//! alone, and only the pages that it touches come into being.

use crate::common::device::emulation_only;
use crate::common::emulator::Emulator;
use crate::common::values;
use bytemuck::{Pod, Zeroable};
use cuda_on_cpu::sanitizer;
use half::{bf16, f16};
use std::panic::{AssertUnwindSafe, catch_unwind};
use topk_sae::backend::cuda::device::{Arg, Device, Launch, Memory};
use topk_sae::backend::cuda::params::{
    Control, ModelView, ROW_LOSS, ROW_QUALITY, SoftRow, StepParams, TensorView,
};
use topk_sae::backend::cuda::sources::SOURCES;

/// Values of a row.
const D: usize = 4096;
/// The first rows of D values that begin beyond 2^32 values are those from 2^20 on. Of the 1024 blocks that share out the
/// latents this one belongs to the last.
const FAR: usize = (1 << 20) + 1023;
const U32_D: Arg = Arg::U32(D as u32);
/// Entries of a row at most, in what decodes.
const MOST: u32 = 3;
const NULL: Arg = Arg::Pointer(0);

/// A device, and the memory of one launch.
struct Place {
    device: Emulator,
    memory: Vec<Memory>,
    /// The row (and latent) that all is about; those before it hold zeros.
    at: usize,
}

impl Place {
    fn new<N: AsRef<str>, T: AsRef<str>>(sources: &[(N, T)], at: usize) -> Self {
        Self { device: Emulator::with_sources(sources), memory: vec![], at }
    }

    /// `len` bytes of zeros, but for `bytes` from `offset` on; the place in `memory`.
    fn block(&mut self, len: usize, offset: usize, bytes: &[u8]) -> usize {
        let mut memory = self.device.allocate(len, "a block of a test").unwrap();
        self.device.write(&mut memory, offset, bytes).unwrap();
        self.memory.push(memory);
        self.memory.len() - 1
    }

    fn arg(&self, block: usize) -> Arg {
        Arg::Pointer(self.memory[block].address())
    }

    /// Values at the front.
    fn front<T: Pod>(&mut self, values: &[T]) -> Arg {
        let bytes = bytemuck::cast_slice(values);
        let block = self.block(bytes.len(), 0, bytes);
        self.arg(block)
    }

    /// Rows as wide as `row`, which is the one at `at`.
    fn rows<T: Pod>(&mut self, row: &[T]) -> Arg {
        let block = self.rows_to_read(row);
        self.arg(block)
    }

    fn rows_to_read<T: Pod>(&mut self, row: &[T]) -> usize {
        let bytes: &[u8] = bytemuck::cast_slice(row);
        self.block((self.at + 1) * bytes.len(), self.at * bytes.len(), bytes)
    }

    /// The bytes of the row at `at`.
    fn row(&mut self, block: usize) -> Vec<u8> {
        let width = self.memory[block].bytes() / (self.at + 1);
        let mut bytes = vec![0; width];
        self.device.read(&self.memory[block], self.at * width, &mut bytes).unwrap();
        bytes
    }

    /// Runs the last block in x of a grid of `at + 1` by `y`.
    fn launch(&mut self, kernel: &'static str, y: u32, shared: usize, args: &[Arg]) {
        self.launch_of(kernel, y, 256, shared, args);
    }

    /// The same with blocks of so many threads.
    fn launch_of(&mut self, kernel: &'static str, y: u32, block: u32, shared: usize, args: &[Arg]) {
        let launch = Launch { grid: (self.at as u32 + 1, y), block, shared: shared as u32 };
        self.device.first_block = self.at as u32;
        self.launch_as(kernel, launch, args);
    }

    fn launch_as(&mut self, kernel: &'static str, launch: Launch, args: &[Arg]) {
        // SAFETY: the emulation checks number and types of the arguments; each test gives blocks of `at + 1` rows.
        unsafe { self.device.launch(kernel, launch, args) }.unwrap();
    }

    /// Rows of a batch that the row is in, a power of two: as a factor of gradients it changes no bit of what it is the
    /// inverse of.
    fn n_rows(&self) -> u32 {
        if self.at == 0 { 1 } else { 1 << 21 }
    }

    /// Rows as wide as `row`, of two planes of `n_rows` rows: the one at `at` of the second plane, and the other rows are
    /// zeros.
    fn planes<T: Pod>(&mut self, n_rows: usize, row: &[T]) -> usize {
        let bytes: &[u8] = bytemuck::cast_slice(row);
        self.block(2 * n_rows * bytes.len(), (n_rows + self.at) * bytes.len(), bytes)
    }

    /// The bytes of the rows at `at` of two planes of `n_rows` rows of `width` bytes.
    fn both(&mut self, block: usize, n_rows: usize, width: usize) -> [Vec<u8>; 2] {
        [0, n_rows].map(|plane| {
            let mut bytes = vec![0; width];
            self.device.read(&self.memory[block], (plane + self.at) * width, &mut bytes).unwrap();
            bytes
        })
    }

    /// Step numbers that do not depend on the place.
    fn step(&mut self) -> Arg {
        self.step_of(7, 1.0)
    }

    fn step_of(&mut self, n_rows: u32, loss_scale: f64) -> Arg {
        let step = StepParams {
            alpha: 0.4,
            rest: 0.6,
            tau: 0.5,
            inv_tau: 2.0,
            n_rows,
            dead_after: 10,
            active: 1024,
            aux_coef: 0.1,
            loss_scale,
            reach: 0.2,
            inv_bandwidth: 2.5,
            beta1: 0.9,
            beta2: 0.99,
            one_minus_beta1: 0.1,
            one_minus_beta2: 0.01,
            rate: 0.1,
            fix2: 100.0,
            adam_eps: 1e-3,
            keep: 0.99,
            ema_keep: 0.5,
            ..StepParams::zeroed()
        };
        self.front(&[step])
    }

    fn control(&mut self) -> Arg {
        self.front(&[Control { n_dead: 1, clip: 1.0, ..Control::zeroed() }])
    }
}

fn narrow(seed: u32) -> Vec<bf16> {
    values(D, seed).iter().map(|&v| bf16::from_f32(v)).collect()
}

/// Data, row numbers, D, mean, deviation, decoder, b_pre, pitch, and one entry: latent `at` with value 0.5. It has place
/// `at` of the lists, and not the first of the [`MOST`] that a row may have.
fn decoder_args(place: &mut Place) -> Vec<Arg> {
    let at = place.at as u32;
    vec![
        place.rows(&values(D, 1)),
        Arg::U32(0),
        place.rows(&[at]),
        U32_D,
        place.rows(&[0.01f64]),
        place.rows(&[1.5f32]),
        place.rows(&narrow(2)),
        place.front(&values(D, 3)),
        U32_D,
        place.rows(&[at]),
        place.rows(&[0.5f32]),
        place.rows(&[at]),
        place.rows(&[1u32]),
        Arg::U32(MOST),
        NULL,
        Arg::U32(1),
    ]
}

/// The same with two prefixes, of which the second alone has the entry.
fn prefixed_args(place: &mut Place) -> Vec<Arg> {
    let at = place.at as u32;
    let mut args = decoder_args(place);
    let parts = args.len() - 2;
    args.truncate(parts);
    args.extend([place.front(&[at, at + 1]), Arg::U32(2)]);
    args
}

fn soft_row() -> SoftRow {
    SoftRow { max: 1.5, inv_total: 0.01, sum: 300.0, c: 0.2 }
}

fn gather_norm(place: &mut Place) -> Vec<Vec<u8>> {
    let x: Vec<f16> = values(D, 1).iter().map(|&v| f16::from_f32(v)).collect();
    let out = [place.rows_to_read(&narrow(9)), place.rows_to_read(&[9f64]), place.rows_to_read(&[9f32])];
    let mut args =
        vec![place.rows(&x), Arg::U32(1), place.rows(&[place.at as u32]), Arg::U32(place.at as u32 + 1)];
    args.extend([place.front(&values(D, 2)), U32_D, U32_D, Arg::U32(1), Arg::F32(1e-5)]);
    args.extend(out.map(|block| place.arg(block)));
    place.launch_of("gather_norm_bf16", 1, 32, 0, &args);
    out.map(|block| place.row(block)).into()
}

fn topk(place: &mut Place) -> Vec<Vec<u8>> {
    let k = 5;
    let out = [
        place.rows_to_read(&vec![0u32; k]),
        place.rows_to_read(&vec![0f32; k]),
        place.rows_to_read(&[0u32]),
        place.rows_to_read(&[0u32]),
        place.rows_to_read(&[0u64]),
        place.rows_to_read(&[7u32]),
        place.rows_to_read(&[SoftRow::default()]),
    ];
    let uniform: Vec<f32> = values(D, 4).iter().map(|v| v.abs()).collect();
    let mut args = vec![place.rows(&narrow(1)), place.front(&values(D, 2)), U32_D, U32_D, Arg::U32(k as u32)];
    args.extend([place.step(), place.control()]);
    args.extend(out[..6].iter().map(|&block| place.arg(block)));
    args.extend([NULL, place.rows(&uniform), place.arg(out[6])]);
    place.launch("topk_softmax_bf16", 1, 0, &args);
    // Where the row's entries start tells the rows apart.
    assert_eq!(place.row(out[2]), (place.at * k).to_le_bytes()[..4]);
    [0, 1, 3, 4, 5, 6].map(|i| place.row(out[i])).into()
}

fn decode(place: &mut Place) -> Vec<Vec<u8>> {
    let mut all = vec![];
    for soft in [false, true] {
        let rows = place.rows_to_read(&[soft_row()]);
        let out = [
            place.rows_to_read(&narrow(9)),
            place.rows_to_read(&[0f32]),
            place.rows_to_read(&narrow(9)),
            place.rows_to_read(&[0f32]),
            place.rows_to_read(&values(D, 9)),
            place.rows_to_read(&[0u8; ROW_LOSS]),
        ];
        let mut args = decoder_args(place);
        let entry = args[9..13].to_vec();
        args.extend(if soft { [place.rows(&values(D, 5)), place.arg(rows)] } else { [NULL, NULL] });
        args.extend(entry);
        args.extend([Arg::U32(MOST), place.step(), place.control()]);
        args.extend(out.map(|block| place.arg(block)));
        place.launch("decode_bf16", 1, 8192 + 2 * 4 * D + 8 * MOST as usize, &args);
        all.extend(out.map(|block| place.row(block)));
        all.push(place.row(rows));
    }
    all
}

fn decode_by_prefix(place: &mut Place) -> Vec<Vec<u8>> {
    let mut all = vec![];
    let n_rows = place.n_rows();
    for dense in [false, true] {
        let out = place.planes(n_rows as usize, &narrow(9));
        let loss = place.rows_to_read(&[0u8; ROW_LOSS]);
        let mut args = prefixed_args(place);
        let recon = place.planes(n_rows as usize, &values(D, 5));
        args.extend([if dense { place.arg(recon) } else { NULL }, NULL, NULL, NULL, NULL, NULL, Arg::U32(0)]);
        args.extend([place.step_of(n_rows, f64::from(n_rows)), place.control(), place.arg(out)]);
        args.extend([place.rows(&[0f32]), NULL, NULL, NULL, place.arg(loss)]);
        place.launch("decode_parts_bf16", 1, 8192 + 2 * 4 * D + 8 * MOST as usize, &args);
        all.extend(place.both(out, n_rows as usize, 2 * D));
        all.push(place.row(loss));
    }
    all
}

fn evaluate_by_prefix(place: &mut Place) -> Vec<Vec<u8>> {
    // A dense code has as many rows as the grid.
    let recon = place.planes(place.at + 1, &values(D, 5));
    let mut all = vec![];
    for dense in [false, true] {
        let out = [place.rows_to_read(&[0u8; ROW_QUALITY]), place.rows_to_read(&[0f64; 2])];
        let mut args = prefixed_args(place);
        args.push(if dense { place.arg(recon) } else { NULL });
        args.extend([place.rows(&[3u32]), place.rows(&[0u32]), place.rows(&[0u32])]);
        args.extend(out.map(|block| place.arg(block)));
        place.launch("evaluate_bf16", 1, 4 * D + 8 * MOST as usize, &args);
        all.extend(out.map(|block| place.row(block)));
    }
    all
}

/// The selection over a batch in which the row alone has scores.
fn batch_topk(place: &mut Place) -> Vec<Vec<u8>> {
    let n_rows = Arg::U32(place.at as u32 + 1);
    let runs = D / 32;
    let scores = [place.rows(&narrow(1)), place.front(&values(D, 2)), U32_D, U32_D, Arg::U32(runs as u32)];
    let (maxima, bad) = (place.rows_to_read(&vec![0u32; runs]), place.rows_to_read(&[9u32]));
    let (histogram, found) = (place.front(&[0u32; 2048]), place.front(&[0u32; 4]));
    let (above, equal) = (place.rows_to_read(&[0u32]), place.rows_to_read(&[0u32]));
    let (first, count) = (place.rows_to_read(&[0u32]), place.rows_to_read(&[0u32]));
    // Room for what a planted defect writes.
    let (index, value) = (place.block(4 * D, 0, &[]), place.block(4 * D, 0, &[]));
    let step = place.step();
    place.launch(
        "batch_maxima_bf16",
        1,
        0,
        &[&scores[..], &[place.arg(maxima), histogram, place.arg(bad)]].concat(),
    );
    let one = Launch { grid: (1, 1), block: 1024, shared: 0 };
    let find = |place: &mut Place, shift: u32, bits: u32| {
        place.device.first_block = 0;
        let args = [histogram, Arg::U32(shift), Arg::U32(bits), Arg::U32(5), Arg::U32(1), step, found];
        place.launch_as("batch_find", one, &args);
    };
    let warps = |place: &mut Place, kernel: &'static str, more: &[Arg]| {
        let rows = [&scores[..], &[n_rows, place.arg(maxima), found], more].concat();
        place.device.first_block = place.at as u32 / 8;
        let launch = Launch { grid: (place.at as u32 / 8 + 1, 1), block: 256, shared: 0 };
        place.launch_as(kernel, launch, &rows);
    };
    find(place, 0, 0);
    for (shift, bits) in [(20, 11), (10, 10), (0, 10)] {
        warps(place, "batch_digits_bf16", &[Arg::U32(shift), Arg::U32(bits), histogram]);
        find(place, shift, bits);
    }
    let counts = [place.arg(above), place.arg(equal)];
    warps(place, "batch_count_bf16", &counts);
    place.device.first_block = 0;
    let alone = [NULL, Arg::U32(1), Arg::U32(0)];
    let places =
        [&[counts[0], counts[1], n_rows, found], &alone[..], &[place.arg(first), place.arg(count)]].concat();
    place.launch_as("batch_places", one, &places);
    let fill = [counts[1], place.arg(first), Arg::U32(0), place.arg(index), place.arg(value), NULL];
    warps(place, "batch_fill_bf16", &fill);
    assert_eq!(place.row(count), 35u32.to_le_bytes());
    let mut all: Vec<Vec<u8>> = [maxima, bad, above, equal].map(|block| place.row(block)).into();
    for list in [index, value] {
        let mut bytes = vec![0; 35 * 4];
        place.device.read(&place.memory[list], 0, &mut bytes).unwrap();
        all.push(bytes);
    }
    all
}

fn evaluate(place: &mut Place) -> Vec<Vec<u8>> {
    let mut all = vec![];
    for dense in [false, true] {
        let out = [place.rows_to_read(&[0u32]), place.rows_to_read(&[0u8; ROW_QUALITY])];
        let mut args = decoder_args(place);
        args.push(if dense { place.rows(&values(D, 5)) } else { NULL });
        args.extend([place.rows(&[3u32]), place.rows(&[0u32])]);
        args.extend(out.map(|block| place.arg(block)));
        args.push(NULL);
        place.launch("evaluate_bf16", 1, 8 * MOST as usize, &args);
        all.extend(out.map(|block| place.row(block)));
    }
    all
}

fn soft_tiles(place: &mut Place) -> Vec<Vec<u8>> {
    let uniform: Vec<f32> = values(D, 4).iter().map(|v| v.abs()).collect();
    let (grad, code) = (place.rows_to_read(&narrow(6)), place.rows_to_read(&narrow(9)));
    // All latents are one tile.
    let mut tile = vec![place.rows(&narrow(1)), place.front(&values(D, 2)), U32_D, U32_D, Arg::U32(0)];
    tile.extend([U32_D, U32_D]);
    let (step, soft, given) = (place.step(), place.rows(&[soft_row()]), place.rows(&uniform));
    let y = (D / 1024) as u32;
    let mut all = vec![];
    place.launch("soft_weights_bf16", y, 0, &[&tile[..], &[step, soft, given, place.arg(code)]].concat());
    all.push(place.row(code));
    let kth = place.rows(&[u64::from(0.5f32.to_bits()) << 32]);
    let rest = [step, soft, kth, given, place.arg(grad), place.arg(code)];
    place.launch("soft_gradients_bf16", y, 0, &[&tile[..], &rest].concat());
    all.extend([place.row(grad), place.row(code)]);
    all
}

fn above(place: &mut Place) -> Vec<Vec<u8>> {
    let thresholds: Vec<f32> = values(D, 3).iter().map(|v| v.abs()).collect();
    let start = [place.rows(&narrow(1)), place.front(&values(D, 2)), place.front(&thresholds)];
    let lengths = place.front(&values(D, 4));
    let (active, bad) = (place.rows_to_read(&[9u32]), place.rows_to_read(&[9u32]));
    let (fired, loss) = (place.front(&vec![0u32; D]), place.rows_to_read(&[0u8; ROW_LOSS]));
    let counts = [lengths, U32_D, U32_D, place.arg(active), place.arg(bad), fired, NULL, place.arg(loss)];
    place.launch("above_count_bf16", 1, 0, &[&start[..], &counts].concat());
    let y = (D / 1024) as u32;
    // All latents are one tile.
    let tile = [U32_D, Arg::U32(0), U32_D, U32_D];
    let code = place.rows_to_read(&narrow(9));
    place.launch("above_tile_bf16", y, 0, &[&start[..], &tile, &[place.arg(code)]].concat());
    let mut all: Vec<Vec<u8>> = [active, bad, loss, code].map(|block| place.row(block)).into();
    let out =
        [place.rows_to_read(&narrow(6)), place.rows_to_read(&narrow(9)), place.rows_to_read(&values(D, 9))];
    let rest = [place.arg(active), place.step(), place.control()];
    let args = [&start[..], &[lengths], &tile, &rest, &out.map(|block| place.arg(block))].concat();
    place.launch("above_gradients_bf16", y, 0, &args);
    all.extend(out.map(|block| place.row(block)));
    all
}

/// One latent's update; or its gradients to memory, among those of all latents before it.
fn latent_update(place: &mut Place) -> Vec<Vec<u8>> {
    let at = place.at as u32;
    let mut all = vec![];
    for keep in [false, true] {
        let mut out = vec![];
        let mut tensor = |place: &mut Place, seed: u32| {
            let blocks = [0, 1, 2, 3].map(|i| {
                let row: Vec<f32> = values(D, seed + i).iter().map(|v| v.abs()).collect();
                place.rows_to_read(&row)
            });
            out.extend(blocks);
            let [w, m, v, e] = blocks.map(|block| place.memory[block].address());
            TensorView { w, m, v, e }
        };
        let (enc, dec) = (tensor(place, 10), tensor(place, 20));
        let copies = [place.rows_to_read(&narrow(9)), place.rows_to_read(&narrow(9))];
        let [w, m, v] = [0.1f32, 0.2, 0.3].map(|value| {
            let block = place.rows_to_read(&[value]);
            place.memory[block].address()
        });
        let [enc_copy, dec_copy] = copies.map(|block| place.memory[block].address());
        let lat = TensorView { w, m, v, e: 0 };
        let model = place.front(&[ModelView { enc, dec, lat, enc_copy, dec_copy, ..ModelView::default() }]);
        out.extend(copies);

        let (first, latents) = if keep { (0, at + 1) } else { (at, 1) };
        let mut offsets = vec![0u32; place.at + 2];
        offsets[place.at + 1] = 1;
        // One entry: of row `at`.
        let lists =
            [place.front(&offsets), place.front(&[at]), place.rows(&[0.5f32]), place.rows(&[0.25f32])];
        // The second of two prefixes has the latent.
        let n_rows = place.n_rows();
        let recon = place.planes(n_rows as usize, &narrow(31));
        let mut args =
            vec![Arg::U32(first), Arg::U32(latents), NULL, U32_D, U32_D, place.front(&[at]), Arg::U32(2)];
        args.extend([place.rows(&narrow(30)), place.arg(recon), place.rows(&narrow(32))]);
        for _ in 0..2 {
            args.extend(lists);
            args.push(place.rows(&[at]));
            args.extend([Arg::U32(u32::MAX), Arg::U32(0)]);
            args.extend([NULL; 5]);
        }
        if keep {
            args.extend([place.rows(&values(D, 40)), place.rows(&values(D, 41)), place.rows(&[0.125f32])]);
            args.extend([NULL; 2]);
            let kept = [place.rows_to_read(&values(D, 9)), place.rows_to_read(&values(D, 9))];
            args.extend(kept.map(|block| place.arg(block)));
            args.extend([place.rows(&[0f32]), NULL, place.front(&[0f64; 1024])]);
            out.extend(kept);
        } else {
            args.extend([NULL; 10]);
        }
        args.push(NULL);
        let partial = place.block(1024 * D * 4, 0, &[]);
        args.extend([Arg::U32(0), model, place.step_of(n_rows, 1.0), place.control(), place.arg(partial)]);
        // The last of the blocks that share out the latents.
        let blocks = latents.min(1024);
        place.device.first_block = (latents - 1) % blocks;
        let launch = Launch { grid: (blocks, 1), block: 256, shared: (3 * 4 * D) as u32 };
        place.launch_as("latent_update_bf16_untied", launch, &args);
        all.extend(out.into_iter().map(|block| place.row(block)));
    }
    all
}

/// One run of a list that is cut into many: the last, of the latent of the second of two prefixes. The runs before it are of
/// a latent without entries.
fn list_runs(place: &mut Place) -> Vec<Vec<u8>> {
    let at = place.at as u32;
    let mut offsets = vec![0u32; 3];
    offsets[2] = 1;
    let out =
        [place.rows_to_read(&values(D, 9)), place.rows_to_read(&values(D, 9)), place.rows_to_read(&[9f32])];
    let n_rows = place.n_rows();
    let recon = place.planes(n_rows as usize, &narrow(31));
    let mut args = vec![Arg::U32(2), U32_D, place.front(&[1u32]), Arg::U32(2)];
    args.extend([place.rows(&narrow(30)), place.arg(recon), place.front(&offsets), place.front(&[at])]);
    args.extend([place.rows(&[0.5f32]), place.rows(&[0.25f32]), place.rows(&[at])]);
    args.extend([Arg::U32(128), Arg::U32(at + 1), place.front(&[0, at, at + 1]), place.rows(&[1u32])]);
    args.extend(out.map(|block| place.arg(block)));
    args.extend([place.step_of(n_rows, 1.0), place.control()]);
    // A block takes every 1024th run.
    let blocks = (at + 1).min(1024);
    place.device.first_block = blocks - 1;
    place.launch_as("list_runs_bf16_untied", Launch { grid: (blocks, 1), block: 256, shared: 0 }, &args);
    out.map(|block| place.row(block)).into()
}

fn column_sums(place: &mut Place) -> Vec<Vec<u8>> {
    let matrix = place.rows(&narrow(1));
    let out = place.block(D * 8, 0, &[]);
    place.device.first_block = (D / 32 - 1) as u32;
    let launch = Launch { grid: ((D / 32) as u32, 1), block: 256, shared: 0 };
    let args = [matrix, Arg::U32(place.at as u32 + 1), U32_D, U32_D, place.arg(out)];
    place.launch_as("column_sums_bf16", launch, &args);
    let mut sums = vec![0; D * 8];
    place.device.read(&place.memory[out], 0, &mut sums).unwrap();
    vec![sums]
}

/// What a rank does with one entry, of the second of two prefixes.
fn ranks(place: &mut Place) -> Vec<Vec<u8>> {
    let (at, n) = (place.at as u32, place.at + 1);
    let mut all = vec![];
    let entry = [
        place.rows(&narrow(2)),
        U32_D,
        place.rows(&[at]),
        place.rows(&[0.5f32]),
        place.rows(&[at]),
        place.rows(&[1u32]),
        place.front(&[at, at + 1]),
        Arg::U32(2),
    ];
    let planes = place.planes(n, &values(D, 9));
    place.launch("own_parts_bf16", 1, 0, &[&entry[..], &[place.arg(planes)]].concat());
    all.extend(place.both(planes, n, 4 * D));

    let planes = place.planes(n, &values(D, 5));
    let grad = place.rows_to_read(&[9f32]);
    let args = [&entry[..], &[place.arg(planes), Arg::U32(1), place.step(), place.arg(grad)]].concat();
    place.launch("own_dots_bf16", 1, 0, &args);
    all.push(place.row(grad));

    let n_rows = place.n_rows();
    let facts = place.block(3 * 8 * n, place.at * 8, &2.5f64.to_ne_bytes());
    let (out, soft) = (place.planes(n, &narrow(9)), place.rows_to_read(&[soft_row()]));
    let rows = [
        place.rows_to_read(&values(D, 6)),
        place.rows_to_read(&narrow(9)),
        place.rows_to_read(&values(D, 9)),
        place.rows_to_read(&[0u8; ROW_LOSS]),
    ];
    let mut args = decoder_args(place)[..6].to_vec();
    args.extend([place.front(&values(D, 3)), U32_D, Arg::U32(2), place.rows(&values(D, 7)), place.arg(soft)]);
    args.extend([place.step_of(n_rows, f64::from(n_rows)), place.control(), place.arg(facts)]);
    args.extend([place.arg(planes), place.arg(rows[0]), place.arg(out)]);
    args.extend(rows[1..].iter().map(|&block| place.arg(block)));
    place.launch("reconstruct_bf16", 1, 0, &args);
    all.extend(place.both(planes, n, 4 * D));
    all.extend(place.both(out, n, 2 * D));
    all.extend(rows.map(|block| place.row(block)));
    all.push(place.row(soft));
    all
}

type Run = fn(&mut Place) -> Vec<Vec<u8>>;

/// Fails unless the kernel gives the same far out as at the front.
fn same_far_out<N: AsRef<str>, T: AsRef<str>>(sources: &[(N, T)], run: Run) {
    let near = run(&mut Place::new(sources, 0));
    let far = run(&mut Place::new(sources, FAR));
    assert!(near.iter().flatten().any(|&byte| byte != 0));
    for (i, (near, far)) in near.iter().zip(&far).enumerate() {
        assert!(near == far, "output {i} differs beyond 2^32 values");
    }
}

/// Every pair of a kernel's run and a way to compute an offset in 32 bits in it.
const PLANTED: [(&str, Run, &str, &str); 31] = [
    ("gather_norm.cu", gather_norm, "u64 x = (u64)rows[n] * d;", "u64 x = rows[n] * d;"),
    ("gather_norm.cu", gather_norm, "u64 n = (u64)blockIdx.x", "u32 n = (u64)blockIdx.x"),
    ("topk_stream.cu", topk, "u64 n = blockIdx.x;", "u32 n = blockIdx.x;"),
    ("entries.cuh", decode, "w + (u64)row * pitch", "w + row * pitch"),
    ("entries.cuh", decode_by_prefix, "w + (u64)row * pitch", "w + row * pitch"),
    ("decode.cu", decode, "grad_recon[n * pitch + c]", "grad_recon[(u32)n * pitch + c]"),
    ("decode.cu", decode, "aux_recon[n * pitch + c]", "aux_recon[(u32)n * pitch + c]"),
    ("decode.cu", decode, " recon[n * pitch + c]", " recon[(u32)n * pitch + c]"),
    (
        "decode.cu",
        decode_by_prefix,
        "grad_recon + s * plane + n * pitch",
        "grad_recon + s * plane + (u32)n * pitch",
    ),
    ("decode.cu", decode_by_prefix, "plane = (u64)step->n_rows * pitch", "plane = step->n_rows * pitch"),
    (
        "decode.cu",
        decode_by_prefix,
        "soft_recon + s * plane + n * pitch",
        "soft_recon + s * plane + (u32)n * pitch",
    ),
    ("decode.cu", evaluate_by_prefix, "plane = (u64)gridDim.x * pitch", "plane = gridDim.x * pitch"),
    ("decode.cu", decode, "soft_recon[n * pitch + c]", "soft_recon[(u32)n * pitch + c]"),
    (
        "decode.cu",
        evaluate,
        "dense_recon[s * plane + n * pitch + i + l]",
        "dense_recon[s * plane + (u32)n * pitch + i + l]",
    ),
    ("above.cu", above, "u64 n = blockIdx.x;", "u32 n = blockIdx.x;"),
    ("above.cu", above, "(u64)blockIdx.x * tile_pitch", "blockIdx.x * tile_pitch"),
    ("batch_topk.cu", batch_topk, "u64 n = blockIdx.x;", "u32 n = blockIdx.x;"),
    (
        "batch_topk.cu",
        batch_topk,
        "u64 n,\n                                u32 low",
        "u32 n,\n                                u32 low",
    ),
    ("latent_update.cu", latent_update, "(u64)n_rows * pitch", "n_rows * pitch"),
    ("latent_update.cu", list_runs, "(u64)r * pitch", "r * pitch"),
    (
        "soft_tiles.cu",
        soft_tiles,
        "u64 place = n * tile_pitch + at;",
        "u64 place = (u32)n * tile_pitch + at;",
    ),
    ("latent_update.cu", latent_update, "u64 row = (u64)j * pitch;", "u64 row = j * pitch;"),
    ("latent_update.cu", latent_update, "(u64)staged->row[e] * pitch", "staged->row[e] * pitch"),
    ("latent_update.cu", latent_update, "u64 from = (u64)at * pitch", "u64 from = at * pitch"),
    ("latent_update.cu", latent_update, "kept.dec + (u64)at * pitch", "kept.dec + at * pitch"),
    ("reduce.cu", column_sums, "(u64)row * pitch", "row * pitch"),
    ("ranks.cu", ranks, "plane = (u64)gridDim.x * pitch", "plane = gridDim.x * pitch"),
    (
        "ranks.cu",
        ranks,
        "planes + s * plane + n * pitch + i + l",
        "planes + s * plane + (u32)n * pitch + i + l",
    ),
    ("ranks.cu", ranks, "u64 at = n * pitch + c;", "u32 at = n * pitch + c;"),
    ("ranks.cu", ranks, "x = (u64)rows[n] * d;", "x = rows[n] * d;"),
    ("ranks.cu", ranks, "*dy = planes + n * pitch;", "*dy = planes + (u32)n * pitch;"),
];

#[test]
fn rows_and_latents_beyond_four_billion_values_are_where_they_should_be() {
    // The sanitizers have nothing to add: a wrong place lies in the same block of memory.
    if sanitizer::inside() || emulation_only("offsets of 64 bits") {
        return;
    }
    let runs: [Run; 13] = [
        gather_norm,
        topk,
        decode,
        decode_by_prefix,
        evaluate,
        evaluate_by_prefix,
        soft_tiles,
        above,
        batch_topk,
        latent_update,
        list_runs,
        column_sums,
        ranks,
    ];
    for run in runs {
        same_far_out(SOURCES, run);
    }
}

#[test]
fn an_offset_of_32_bits_is_found() {
    if sanitizer::inside() || emulation_only("planted offsets of 32 bits") {
        return;
    }
    for (file, run, from, to) in PLANTED {
        // Some stand there twice, and both are changed.
        let change = |&(name, text): &(&str, &str)| {
            assert!(name != file || text.contains(from), "{file}: {from}");
            (name.to_owned(), if name == file { text.replace(from, to) } else { text.to_owned() })
        };
        let sources: Vec<(String, String)> = SOURCES.iter().map(change).collect();
        // What the compiler refuses is found by no check.
        drop(Emulator::with_sources(&sources));
        let passed = catch_unwind(AssertUnwindSafe(|| same_far_out(&sources, run))).is_ok();
        assert!(!passed, "{file}: {to}");
    }
}
