//! Sizes of a run on the device, and the buffers that a batch needs.

use super::buffer::{Buffer, Values};
use super::device::{Arg, Device, Element, Facts, WARP};
use super::params::{ROW_LOSS, ROW_QUALITY, SoftRow, StepParams};
use super::ranks::Shard;
use super::tensors::pitch;
use crate::error::{Error, Result};
use crate::rows::Dtype;
use crate::spec::{Activation, Inference, ModelSpec, Penalty, Precision, Prefixes, Relaxation};
use std::ops::Range;

/// Most active latents a row that the kernels select (`kernels/topk_stream.cu`).
pub const MOST_ACTIVE: usize = 1024;
/// Most latents of a tile in the warm-up.
const TILE: usize = 2048;
/// Threads of a block.
pub const BLOCK: u32 = 256;
/// Blocks that share out the latents, at most.
pub const BLOCKS: usize = 1024;
/// The least length of the runs that long lists of entries by latent are cut into.
const LEAST_RUN: usize = 32;
/// Runs of rows in column sums.
pub const CHUNKS: usize = 64;
/// Most bytes of static shared memory of a kernel that is given dynamic shared memory besides: both come out of what a
/// card allows a block. `tests/nvrtc.rs` holds the kernels to it.
pub const STATIC_SHARED: usize = 4096;
/// Where the row numbers start in the message of a step.
pub const ROWS_AT: usize = 256;
/// Scores of which the selection over a batch knows the largest (`kernels/batch_topk.cu`).
const RUN: usize = 32;
/// Bins of its histogram.
const BINS: usize = 2048;

/// What stays the same for all batches.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sizes {
    /// D.
    pub d: usize,
    /// Values of a stored row of D.
    pub pitch: usize,
    /// M.
    pub m: usize,
    /// The latents that the device has: all, or a rank's; M is their number.
    pub shard: Shard,
    /// Values of a stored row of scores.
    pub score_pitch: usize,
    /// k.
    pub k: usize,
    /// What makes a code of scores.
    pub activation: Activation,
    /// Prefixes of latents that reconstruct on their own.
    pub prefixes: Prefixes,
    /// What keeps codes sparse.
    pub penalty: Penalty,
    /// Entries a row at most: k, or more during a warm-up over candidates.
    pub pool: usize,
    /// Dead latents per row used by the auxiliary loss; 0 is none.
    pub aux_k: usize,
    /// Latents of a tile: a multiple of 128.
    pub tile: usize,
    /// True where encoder and decoder are one.
    pub tied: bool,
    /// Type of operands and scores.
    pub element: Element,
    /// Type of the rows on the device (float64 rows are rounded to float32 on the way).
    pub input: Dtype,
}

impl Sizes {
    /// Sizes of a run; checks what the kernels cannot do.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the flag and the limit.
    pub fn new(
        spec: &ModelSpec,
        d: usize,
        m: usize,
        tied: bool,
        precision: Precision,
        data: Dtype,
    ) -> Result<Self> {
        let pool = if spec.warmup.relaxation.has_candidates() {
            spec.warmup.pool.max(spec.forward.k)
        } else {
            spec.forward.k
        };
        for (flag, value) in [("--k", spec.forward.k), ("--pool", pool), ("--aux-k", spec.objective.aux_k)] {
            if value > MOST_ACTIVE {
                return Err(Error::Usage(format!(
                    "{flag} {value} is above {MOST_ACTIVE}, the most that the GPU kernels select: lower it, or add --device cpu"
                )));
            }
        }
        let element = if precision == Precision::Bf16 { Element::Bf16 } else { Element::F32 };
        Ok(Self {
            d,
            pitch: pitch(d),
            m,
            shard: Shard::whole(m),
            score_pitch: m.next_multiple_of(8),
            k: spec.forward.k,
            activation: spec.forward.activation,
            prefixes: spec.forward.prefixes,
            penalty: spec.objective.penalty,
            pool,
            aux_k: spec.objective.aux_k,
            tile: m.next_multiple_of(128).min(TILE),
            tied,
            element,
            input: if data == Dtype::F64 { Dtype::F32 } else { data },
        })
    }

    /// True where a code is a matrix (N, M) in training, tile by tile: rows may have any number of active latents.
    pub fn is_dense(&self) -> bool {
        matches!(self.activation, Activation::JumpRelu | Activation::Relu)
    }

    /// True where thresholds get gradients. That of a batch's places is found, not trained.
    pub fn trains_thresholds(&self) -> bool {
        self.activation == Activation::JumpRelu
    }

    /// True where the penalty has the lengths of decoder rows.
    pub fn has_lengths(&self) -> bool {
        self.penalty == Penalty::L1
    }

    /// Entries of a row that a block keeps in shared memory at a time, of lists with `k` places a row.
    pub fn staged(&self, k: usize) -> usize {
        // Rows of a batch's places have k on average, and seldom many times that.
        if self.activation == Activation::BatchTopk { (4 * k).min(MOST_ACTIVE) } else { k }
    }

    /// Bytes of shared memory in which a block that decodes adds up a slab of columns: a float for each value of its threads'
    /// packs of 16 bytes.
    pub fn slab_sums(&self) -> usize {
        4 * BLOCK as usize * (16 / self.element.size())
    }

    /// Threads that own a pack of 16 bytes of a row each.
    pub fn row_block(&self) -> u32 {
        let packs = (self.pitch * self.element.size()).div_ceil(16) as u32;
        packs.next_multiple_of(WARP).clamp(WARP, BLOCK)
    }

    /// Blocks that share out the latents: as many as such a card runs at once. Any more would start when these end, and keep only
    /// a part of the card busy.
    fn places(&self, card: &Facts) -> usize {
        // `latent_update` leaves registers for three blocks of 256 threads; a multiprocessor has little more shared memory
        // than it gives to one block.
        let by_threads = 3 * BLOCK / self.row_block();
        let by_memory = card.shared / (12 * self.pitch + STATIC_SHARED) as u32;
        (card.multiprocessors * by_threads.min(by_memory).max(1)).max(1).min(BLOCKS as u32) as usize
    }

    /// Runs of scores of a row of which the selection over a batch knows the largest.
    pub fn runs(&self) -> usize {
        self.m.div_ceil(RUN)
    }

    /// Checks that what one block keeps of a row fits in its shared memory of `most` bytes: a latent's gradients and
    /// weights, or a row's reconstructions and entries.
    ///
    /// # Errors
    /// [`Error::Usage`]: rows too wide.
    pub fn check_row(&self, most: u32) -> Result<()> {
        let entries = self.staged(self.pool).max(self.aux_k);
        let decode = self.slab_sums() + 4 * (self.prefixes.parts() + 1) * self.pitch + 8 * entries;
        let need = (12 * self.pitch).max(decode) + STATIC_SHARED;
        if need > most as usize {
            return Err(Error::Usage(format!(
                "rows of {} values{} need {need} bytes of shared memory a block, and the GPU has {most}: add --device cpu",
                self.d,
                match self.prefixes.len() {
                    0 => String::new(),
                    parts => format!(" with {parts} --prefixes"),
                }
            )));
        }
        Ok(())
    }

    /// The sizes of one rank of a run of these.
    pub fn of_rank(self, shard: Shard) -> Self {
        let m = shard.latents().len();
        Self { m, shard, score_pitch: m.next_multiple_of(8), tile: m.next_multiple_of(128).min(TILE), ..self }
    }

    /// A number of latents of the whole model, as one of those of the device.
    fn own(&self, latent: usize) -> usize {
        let own = self.shard.latents();
        latent.clamp(own.start, own.end) - own.start
    }

    /// The device's latents of each segment of the prefixes; a rank may have none of some.
    pub fn segments(&self) -> Vec<Range<usize>> {
        let all = self.prefixes.segments(self.shard.all);
        all.into_iter().map(|segment| self.own(segment.start)..self.own(segment.end)).collect()
    }

    /// The segment of a latent of the device.
    pub fn segment(&self, latent: usize) -> usize {
        self.prefixes.segment(self.shard.latents().start + latent)
    }

    /// The prefixes, as numbers of the device's latents.
    fn ends(&self) -> Vec<u32> {
        self.prefixes.ends().iter().map(|&end| self.own(end as usize) as u32).collect()
    }

    /// Tiles of latents: first latent and count of each. None goes beyond a segment of the prefixes.
    pub fn tiles(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let tile = self.tile;
        self.segments().into_iter().flat_map(move |segment| {
            let end = segment.end;
            segment.step_by(tile).map(move |first| (first, tile.min(end - first)))
        })
    }
}

/// Sparse entries of a batch as rows of a CSR matrix that may have gaps: the entries of row n are at `first[n]` to
/// `first[n] + count[n]` of `index`, `value` and `grad`. Only the selection and the sizes of these lists know that every
/// row has room for `k`; what reads entries takes rows of any length up to that.
#[derive(Debug)]
pub struct Entries {
    /// Places of a row in the lists. What queues the selection that fills them sets it, to no more than they were made
    /// for; recorded work keeps the number that it was recorded with.
    pub k: usize,
    /// (N k) latents, ascending in each row.
    pub index: Buffer<u32>,
    /// (N k) values.
    pub value: Buffer<f32>,
    /// (N k) gradients of the scores.
    pub grad: Buffer<f32>,
    /// (N) where each row's entries start; ascending.
    pub first: Buffer<u32>,
    /// (N) entries of each row.
    pub count: Buffer<u32>,
    /// (N k) the row of each entry; made with the inverted index.
    pub row: Buffer<u32>,
    /// (M + 1) where each latent's entries start in `slots`.
    pub offsets: Buffer<u32>,
    /// (M + 1) what the latents before each cost `latent_update`, in entries.
    pub cost: Buffer<u64>,
    /// (N k) entry numbers by latent, ascending.
    pub slots: Buffer<u32>,
    /// Lists of latents that fire on many rows; where a batch has too few rows for one, there is none.
    pub runs: Option<Runs>,
}

/// Long lists of entries by latent, cut into runs, and what each run adds to the gradients.
#[derive(Debug)]
pub struct Runs {
    /// Entries of a run at most; a list of no more than that is not cut.
    pub length: usize,
    /// Runs that there is room for, R. A list that finds none left is taken whole.
    pub most: usize,
    /// (M + 1) the first run of each long list; then the number of runs.
    pub first: Buffer<u32>,
    /// (R) the latent of each run.
    pub latent: Buffer<u32>,
    /// (R, pitch) what each run adds to the gradient of the encoder (of both when tied).
    pub enc: Buffer<f32>,
    /// (R, pitch) and of the decoder; empty when tied.
    pub dec: Buffer<f32>,
    /// (R) and of the bias.
    pub bias: Buffer<f32>,
}

/// Length of the runs of lists of `n` rows with `k` places each, and how many of them there is room for; `None` where no
/// list can be long.
///
/// A list is long from twice the mean on, which blocks that share out the latents even out between them. Of embeddings of
/// sentences a twentieth of all entries are in lists that are cut; there is room for a quarter.
fn cut(n: usize, k: usize, m: usize) -> Option<(usize, usize)> {
    let length = (2 * n * k / m).next_multiple_of(LEAST_RUN).max(LEAST_RUN);
    // A row holds a latent once.
    (n > length).then(|| (length, (n * k / (4 * length)).max(n.div_ceil(length))))
}

impl Runs {
    fn new(device: &mut dyn Device, s: &Sizes, n: usize, k: usize) -> Result<Option<Self>> {
        let Some((length, most)) = cut(n, k, s.m) else { return Ok(None) };
        let dec = if s.tied { 0 } else { most * s.pitch };
        Ok(Some(Self {
            length,
            most,
            first: Buffer::zeros(device, s.m + 1, "runs of entries")?,
            latent: Buffer::zeros(device, most, "runs of entries")?,
            enc: Buffer::zeros(device, most * s.pitch, "gradients of runs of entries")?,
            dec: Buffer::zeros(device, dec, "gradients of runs of entries")?,
            bias: Buffer::zeros(device, most, "gradients of runs of entries")?,
        }))
    }
}

impl Entries {
    fn new(device: &mut dyn Device, s: &Sizes, n: usize, k: usize) -> Result<Self> {
        if n * k > u32::MAX as usize {
            return Err(Error::Usage(format!(
                "{n} rows of {k} active latents are more than the GPU kernels can number: lower --batch-size, --k or --pool"
            )));
        }
        Ok(Self {
            k,
            index: Buffer::zeros(device, n * k, "active latents")?,
            value: Buffer::zeros(device, n * k, "their values")?,
            grad: Buffer::zeros(device, n * k, "their gradients")?,
            first: Buffer::zeros(device, n, "their places")?,
            count: Buffer::zeros(device, n, "their counts")?,
            row: Buffer::zeros(device, n * k, "their rows")?,
            offsets: Buffer::zeros(device, s.m + 1, "entries by latent")?,
            cost: Buffer::zeros(device, s.m + 1, "entries by latent")?,
            slots: Buffer::zeros(device, n * k, "entries by latent")?,
            runs: Runs::new(device, s, n, k)?,
        })
    }

    /// Brings the lists of `n` rows to the host.
    ///
    /// # Errors
    /// The device fails.
    pub fn read(&self, device: &mut dyn Device, n: usize) -> Result<HostEntries> {
        Ok(HostEntries {
            first: self.first.read(device, n)?,
            count: self.count.read(device, n)?,
            index: self.index.read(device, n * self.k)?,
            value: self.value.read(device, n * self.k)?,
            grad: self.grad.read(device, n * self.k)?,
        })
    }
}

/// The lists of [`Entries`] on the host.
#[derive(Debug)]
pub struct HostEntries {
    first: Vec<u32>,
    count: Vec<u32>,
    index: Vec<u32>,
    value: Vec<f32>,
    grad: Vec<f32>,
}

impl HostEntries {
    /// Latent, value and gradient of each entry of row `n`.
    pub fn row(&self, n: usize) -> impl Iterator<Item = (u32, f32, f32)> + '_ {
        let first = self.first[n] as usize;
        (first..first + self.count[n] as usize).map(|at| (self.index[at], self.value[at], self.grad[at]))
    }
}

/// What the warm-up (and inference with relu) needs besides.
#[derive(Debug)]
pub struct Soft {
    /// (N) the softmax of each row.
    pub rows: Buffer<SoftRow>,
    /// (N) key of the k-th largest score.
    pub kth: Buffer<u64>,
    /// (P, N, pitch) dense part of the reconstruction, of each segment; P is 1 without prefixes.
    pub recon: Buffer<f32>,
    /// (N, tile) softmax weights, or dh and then dz.
    pub grad: Values,
    /// (N, tile) code.
    pub code: Values,
    /// (tile, pitch) gradients of a tile of latents.
    pub enc: Buffer<f32>,
    /// (tile, pitch); unused when tied.
    pub dec: Buffer<f32>,
    /// (tile).
    pub bias: Buffer<f32>,
    /// (N, tile) each row's part of the thresholds' gradients, where they are trained.
    pub edge: Buffer<f32>,
    /// (tile) gradients of thresholds, where they are trained.
    pub threshold: Buffer<f32>,
    /// (tile) sums of each latent's code, where the penalty has lengths.
    pub code_sums: Buffer<f32>,
    /// (CHUNKS, tile).
    pub sums: Buffer<f64>,
}

/// What the selection over a batch needs besides (`kernels/batch_topk.cu`).
#[derive(Debug)]
pub struct Batch {
    /// (N, runs) keys of the largest score of each run.
    pub maxima: Buffer<u32>,
    /// Keys by a digit.
    pub histogram: Buffer<u32>,
    /// `Found`: what the search knows.
    pub found: Buffer<u32>,
    /// (N) keys above the last that has a place.
    pub above: Buffer<u32>,
    /// (N) keys that equal it; then those of them that have a place.
    pub equal: Buffer<u32>,
}

/// Words of `Found`, and bins of the histogram.
pub const BATCH_WORDS: (usize, usize) = (4, BINS);

impl Batch {
    fn new(device: &mut dyn Device, s: &Sizes, n: usize) -> Result<Self> {
        Ok(Self {
            maxima: Buffer::zeros(device, n * s.runs(), "the largest scores of runs")?,
            histogram: Buffer::zeros(device, BATCH_WORDS.1, "a histogram of scores")?,
            found: Buffer::zeros(device, BATCH_WORDS.0, "a search over scores")?,
            above: Buffer::zeros(device, n, "counts of rows")?,
            equal: Buffer::zeros(device, n, "counts of rows")?,
        })
    }
}

/// What weighing candidates needs besides; made when first needed.
#[derive(Debug)]
pub struct Gates {
    /// (N, pool) scores of the candidates.
    pub score: Buffer<f32>,
    /// (N, pool) factor of a score in the code, and of dh in dz.
    pub direct: Buffer<f32>,
    /// (N) LapSum's thresholds; else empty.
    pub threshold: Buffer<f32>,
}

/// Gradients of all parameters, where they are kept.
#[derive(Debug)]
pub struct Kept {
    /// (M, pitch).
    pub enc: Buffer<f32>,
    /// (M, pitch); empty when tied.
    pub dec: Buffer<f32>,
    /// (M).
    pub bias: Buffer<f32>,
    /// (M); empty where no thresholds are trained.
    pub threshold: Buffer<f32>,
}

/// Buffers for batches of up to `capacity` rows.
#[derive(Debug)]
pub struct WorkBuffers {
    /// N at most.
    pub capacity: usize,
    /// A step's numbers and its row numbers.
    pub message: Buffer<u8>,
    /// (N, pitch) `x' - b_pre`.
    pub input: Values,
    /// (N).
    pub mean: Buffer<f64>,
    /// (N).
    pub std: Buffer<f32>,
    /// (N, score_pitch): the one buffer of this size.
    pub scores: Values,
    /// (N) whether a score is not finite.
    pub bad: Buffer<u32>,
    /// The top k, or the candidates.
    pub main: Entries,
    /// Of the auxiliary loss.
    pub aux: Option<Entries>,
    /// (M) scratch of the inverted index.
    pub totals: Buffer<u32>,
    /// (M) scratch of the inverted index.
    pub cursor: Buffer<u32>,
    /// (N k) scratch of the inverted index.
    pub unordered: Buffer<u32>,
    /// (P, N, pitch) G of each segment: dy' where there are no prefixes, and P is 1.
    pub grad_recon: Values,
    /// (P) the prefixes, where there are any.
    pub ends: Buffer<u32>,
    /// Of a selection over a batch.
    pub batch: Option<Batch>,
    /// (M) lengths of decoder rows, where the penalty has them.
    pub lengths: Buffer<f32>,
    /// (N, P) squared errors by each prefix, where there are any.
    pub by_prefix: Buffer<f64>,
    /// (N, pitch) gradient of the auxiliary reconstruction.
    pub aux_recon: Option<Values>,
    /// (N) loss parts.
    pub loss: Buffer<u8>,
    /// (N) quality of rows.
    pub quality: Buffer<u8>,
    /// Blocks that share out the latents.
    pub places: usize,
    /// (BLOCKS, pitch) what each block of latents adds to b_pre's gradient.
    pub partial: Buffer<f32>,
    /// (BLOCKS) sums of squares of gradients.
    pub squares: Buffer<f64>,
    /// (CHUNKS, pitch) column sums of dy'.
    pub sums: Buffer<f64>,
    /// (CHUNKS, pitch) column sums of `partial`.
    pub less: Buffer<f64>,
    /// (pitch) gradient of b_pre.
    pub pre_grad: Buffer<f32>,
    /// The dense half; made when first needed.
    pub soft: Option<Soft>,
    /// Of candidates that are weighed; made when first needed.
    pub gates: Option<Gates>,
    /// Gradients; made when first needed.
    pub kept: Option<Kept>,
    /// (N, pitch) reconstruction, for a look inside.
    pub recon: Option<Buffer<f32>>,
    /// What ranks exchange, where latents are shared out.
    pub exchange: Option<Exchange>,
}

/// What ranks exchange, and what comes of it (`kernels/ranks.cu`). The rank's own entries are in [`WorkBuffers::main`] and
/// [`WorkBuffers::aux`], at the places that they have in the lists of all.
#[derive(Debug)]
pub struct Exchange {
    /// (N, K) the best of the rank's latents: K is the larger of the candidates and the auxiliary places per row.
    pub sent: Lists,
    /// (G, N, K) those of all ranks; `first` is unused.
    pub gathered: Lists,
    /// (N, pool) entries of each row among all latents; their values are in `main` or `gates`.
    pub all: Lists,
    /// (N, aux_k) the same of the auxiliary loss.
    pub all_aux: Lists,
    /// (N) active latents of each row.
    pub active: Buffer<u32>,
    /// (G, N) softmaxes of rows, of four words each, where there are any; made with the dense half.
    pub softmaxes: Buffer<u32>,
    /// (3, N) the sum of the code, active latents, scores that are not finite.
    pub facts: Buffer<f64>,
    /// (P, N, pitch) the segments' parts of the reconstruction, and then G of each.
    pub planes: Buffer<f32>,
    /// (N, pitch) the auxiliary code's, where there is one.
    pub aux: Buffer<f32>,
    /// (G, N) ties of each row, in a selection over a batch.
    pub equal: Buffer<u32>,
}

/// Lists of entries without what makes gradients of them; see [`Entries`].
#[derive(Debug)]
pub struct Lists {
    /// Latents.
    pub index: Buffer<u32>,
    /// Values.
    pub value: Buffer<f32>,
    /// Where each row's start.
    pub first: Buffer<u32>,
    /// Entries of each row.
    pub count: Buffer<u32>,
}

impl Soft {
    /// Sums of a rank that has no latents of some segment are 0.
    ///
    /// # Errors
    /// The device fails.
    pub fn clear(&mut self, device: &mut dyn Device, s: &Sizes, n: usize) -> Result<()> {
        if s.segments().iter().any(Range::is_empty) {
            self.recon.zero(device, s.prefixes.parts() * n * s.pitch)?;
        }
        Ok(())
    }
}

impl Lists {
    fn new(device: &mut dyn Device, n: usize, k: usize) -> Result<Self> {
        Ok(Self {
            index: Buffer::zeros(device, n * k, "candidates")?,
            value: Buffer::zeros(device, n * k, "candidates")?,
            first: Buffer::zeros(device, n, "candidates")?,
            count: Buffer::zeros(device, n, "candidates")?,
        })
    }

    fn bytes(n: usize, k: usize) -> usize {
        8 * n * k + 8 * n
    }
}

impl Exchange {
    fn new(device: &mut dyn Device, s: &Sizes, n: usize) -> Result<Self> {
        let (k, ranks) = (s.pool.max(s.aux_k), s.shard.ranks);
        let batch = s.activation == Activation::BatchTopk;
        let lists = s.activation.is_per_row();
        Ok(Self {
            sent: Lists::new(device, n, if lists { k } else { s.aux_k })?,
            gathered: Lists::new(device, ranks * n, if lists { k } else { s.aux_k })?,
            all: Lists::new(device, n, if lists { s.pool } else { 0 })?,
            all_aux: Lists::new(device, n, s.aux_k)?,
            active: Buffer::zeros(device, n, "active latents of rows")?,
            softmaxes: Buffer::zeros(device, 4 * ranks * n, "softmax of rows")?,
            facts: Buffer::zeros(device, 3 * n, "sums of rows")?,
            planes: Buffer::zeros(device, s.prefixes.parts() * n * s.pitch, "parts of reconstructions")?,
            aux: Buffer::zeros(
                device,
                if s.aux_k > 0 { n * s.pitch } else { 0 },
                "parts of reconstructions",
            )?,
            equal: Buffer::zeros(device, if batch { ranks * n } else { 0 }, "counts of rows")?,
        })
    }

    fn bytes(s: &Sizes, n: usize) -> usize {
        let (k, ranks) = (s.pool.max(s.aux_k), s.shard.ranks);
        let lists = s.activation.is_per_row();
        let k = if lists { k } else { s.aux_k };
        let planes = s.prefixes.parts() + usize::from(s.aux_k > 0);
        Lists::bytes(n, k)
            + Lists::bytes(ranks * n, k)
            + Lists::bytes(n, if lists { s.pool } else { 0 })
            + Lists::bytes(n, s.aux_k)
            + n * (4 + 16 * ranks + 24 + 4 * planes * s.pitch)
            + if s.activation == Activation::BatchTopk { 4 * ranks * n } else { 0 }
    }
}

/// Bytes of a step's message: numbers and row numbers.
pub fn message_bytes(n: usize) -> usize {
    ROWS_AT + 4 * n
}

impl WorkBuffers {
    /// Active latents of each of `n` rows, of all ranks.
    ///
    /// # Errors
    /// Fewer rows are held.
    pub fn active(&self, n: usize) -> Result<Arg> {
        self.exchange.as_ref().map_or(&self.main.count, |exchange| &exchange.active).holds(n)
    }

    /// Buffers for `n` rows.
    ///
    /// # Errors
    /// Not enough memory.
    pub fn new(device: &mut dyn Device, s: &Sizes, n: usize) -> Result<Self> {
        const { assert!(size_of::<StepParams>() <= ROWS_AT) };
        let rows = |device: &mut dyn Device, what| Values::zeros(device, s.element, n * s.pitch, what);
        let aux = s.aux_k > 0;
        let (ends, parts) = (s.ends(), s.prefixes.parts());
        let mut on_device = Buffer::zeros(device, ends.len(), "prefixes")?;
        on_device.write(device, &ends)?;
        let batch = s.activation == Activation::BatchTopk;
        Ok(Self {
            capacity: n,
            ends: on_device,
            batch: if batch { Some(Batch::new(device, s, n)?) } else { None },
            lengths: Buffer::zeros(device, if s.has_lengths() { s.m } else { 0 }, "lengths of decoder rows")?,
            by_prefix: Buffer::zeros(device, n * ends.len(), "errors by prefix")?,
            message: Buffer::zeros(device, message_bytes(n), "row numbers of a batch")?,
            input: rows(device, "normalised rows")?,
            mean: Buffer::zeros(device, n, "means of rows")?,
            std: Buffer::zeros(device, n, "deviations of rows")?,
            scores: Values::zeros(device, s.element, n * s.score_pitch, "scores")?,
            bad: Buffer::zeros(device, n, "flags of rows")?,
            main: Entries::new(device, s, n, s.pool)?,
            aux: if aux { Some(Entries::new(device, s, n, s.aux_k)?) } else { None },
            totals: Buffer::zeros(device, s.m, "entries by latent")?,
            cursor: Buffer::zeros(device, s.m, "entries by latent")?,
            unordered: Buffer::zeros(device, n * s.pool.max(s.aux_k), "entries by latent")?,
            grad_recon: Values::zeros(
                device,
                s.element,
                parts * n * s.pitch,
                "gradients of the reconstruction",
            )?,
            aux_recon: if aux {
                Some(rows(device, "gradients of the auxiliary reconstruction")?)
            } else {
                None
            },
            loss: Buffer::zeros(device, n * ROW_LOSS, "loss of rows")?,
            quality: Buffer::zeros(device, n * ROW_QUALITY, "quality of rows")?,
            places: s.places(&device.facts()?),
            partial: Buffer::zeros(device, BLOCKS * s.pitch, "parts of the pre-bias gradient")?,
            squares: Buffer::zeros(device, BLOCKS, "sums of squares")?,
            sums: Buffer::zeros(device, CHUNKS * s.pitch, "column sums")?,
            less: Buffer::zeros(device, CHUNKS * s.pitch, "column sums")?,
            pre_grad: Buffer::zeros(device, s.pitch, "gradient of the pre-bias")?,
            soft: None,
            gates: None,
            kept: None,
            recon: None,
            exchange: if s.shard.is_part { Some(Exchange::new(device, s, n)?) } else { None },
        })
    }

    /// Makes the dense half if it is not there.
    ///
    /// # Errors
    /// Not enough memory.
    pub fn need_soft(&mut self, device: &mut dyn Device, s: &Sizes) -> Result<()> {
        if self.soft.is_some() {
            return Ok(());
        }
        let n = self.capacity;
        let dec = if s.tied { 0 } else { s.tile * s.pitch };
        let edges = usize::from(s.trains_thresholds());
        self.soft = Some(Soft {
            rows: Buffer::zeros(device, n, "softmax of rows")?,
            kth: Buffer::zeros(device, n, "k-th scores")?,
            recon: Buffer::zeros(device, s.prefixes.parts() * n * s.pitch, "dense reconstruction")?,
            grad: Values::zeros(device, s.element, n * s.tile, "a tile of score gradients")?,
            code: Values::zeros(device, s.element, n * s.tile, "a tile of the code")?,
            enc: Buffer::zeros(device, s.tile * s.pitch, "gradients of a tile of latents")?,
            dec: Buffer::zeros(device, dec, "gradients of a tile of latents")?,
            bias: Buffer::zeros(device, s.tile, "gradients of a tile of latents")?,
            edge: Buffer::zeros(device, edges * n * s.tile, "a tile of threshold gradients")?,
            threshold: Buffer::zeros(device, edges * s.tile, "gradients of a tile of thresholds")?,
            code_sums: Buffer::zeros(
                device,
                if s.has_lengths() { s.tile } else { 0 },
                "sums of a tile's code",
            )?,
            sums: Buffer::zeros(device, CHUNKS * s.tile, "column sums of a tile")?,
        });
        Ok(())
    }

    /// Makes what weighing candidates needs if it is not there.
    ///
    /// # Errors
    /// Not enough memory.
    pub fn need_gates(&mut self, device: &mut dyn Device, s: &Sizes) -> Result<()> {
        if self.gates.is_some() {
            return Ok(());
        }
        let n = self.capacity;
        self.gates = Some(Gates {
            score: Buffer::zeros(device, n * s.pool, "scores of candidates")?,
            direct: Buffer::zeros(device, n * s.pool, "factors of candidates")?,
            threshold: Buffer::zeros(device, n, "thresholds of rows")?,
        });
        Ok(())
    }

    /// Makes room for all gradients if it is not there.
    ///
    /// # Errors
    /// Not enough memory.
    pub fn need_kept(&mut self, device: &mut dyn Device, s: &Sizes) -> Result<()> {
        if self.kept.is_some() {
            return Ok(());
        }
        let dec = if s.tied { 0 } else { s.m * s.pitch };
        self.kept = Some(Kept {
            enc: Buffer::zeros(device, s.m * s.pitch, "gradients")?,
            dec: Buffer::zeros(device, dec, "gradients")?,
            bias: Buffer::zeros(device, s.m, "gradients")?,
            threshold: Buffer::zeros(device, if s.trains_thresholds() { s.m } else { 0 }, "gradients")?,
        });
        Ok(())
    }
}

/// Bytes of device memory for batches of `n` rows, without the model: what [`WorkBuffers::new`] and the buffers made later
/// take where `spec` needs them.
pub fn bytes(s: &Sizes, spec: &ModelSpec, n: usize) -> u64 {
    let e = s.element.size();
    let runs = |k: usize| {
        cut(n, k, s.m).map_or(0, |(_, most)| 4 * (s.m + most * (s.pitch * if s.tied { 1 } else { 2 } + 2)))
    };
    let lists = |k: usize| n * k * 20 + 8 * n + 12 * s.m + runs(k);
    let aux = if s.aux_k > 0 { lists(s.aux_k) + n * s.pitch * e } else { 0 };
    let (prefixes, parts) = (s.prefixes.len(), s.prefixes.parts());
    let rows = n
        * ((1 + parts) * s.pitch * e + s.score_pitch * e + ROW_LOSS + ROW_QUALITY + 20 + 8 * prefixes)
        + 4 * prefixes;
    let batch = match s.activation {
        Activation::BatchTopk => 4 * (n * (s.runs() + 2) + BATCH_WORDS.0 + BATCH_WORDS.1),
        _ => 0,
    };
    let lengths = if s.has_lengths() { 4 * s.m } else { 0 };
    let index = 8 * s.m + 4 * n * s.pool.max(s.aux_k);
    let sums = BLOCKS * (4 * s.pitch + 8) + 2 * CHUNKS * s.pitch * 8 + 4 * s.pitch;
    let edges = if s.trains_thresholds() { 4 * s.tile * (n + 1) } else { 0 };
    let code_sums = if s.has_lengths() { 4 * s.tile } else { 0 };
    let dense = if spec.warmup.relaxation == Relaxation::Softmax || spec.forward.inference != Inference::Topk
    {
        2 * n * s.tile * e
            + n * (4 * parts * s.pitch + 24)
            + s.tile * (if s.tied { 4 } else { 8 } * s.pitch + 4 + 8 * CHUNKS)
            + edges
            + code_sums
    } else {
        0
    };
    let gates = match spec.warmup.relaxation {
        Relaxation::Lapsum => 8 * n * s.pool + 4 * n,
        Relaxation::Softmax | Relaxation::AnnealK | Relaxation::None => 0,
    };
    let kept = if spec.optimizer.clip_norm.is_some() {
        4 * s.m * (s.pitch * if s.tied { 1 } else { 2 } + if s.trains_thresholds() { 2 } else { 1 })
    } else {
        0
    };
    let exchange = if s.shard.is_part { Exchange::bytes(s, n) } else { 0 };
    (rows + lists(s.pool) + aux + index + sums + batch + lengths + dense + gates + kept + exchange) as u64
}
