//! The backend on a device: what is queued for a step, an evaluation, a look inside.
//!
//! A step, hard phase:
//!
//! 1. The step's numbers and row numbers are sent; where the data are not on the device, its rows were sent ahead.
//! 2. Rows are gathered and normalised; `z`, the one dense product; selection of the top k.
//! 3. Reconstruction, loss, dy' and the gradients of sparse entries, row by row.
//! 4. Inverted index; gradients and Adam, latent by latent; the pre-bias; idle counts.
//!
//! In a warm-up by softmax the decoder and the gradients are dense products over tiles of latents, and nothing of size
//! (N, M) exists but the scores. So are those of activations by thresholds, in all of training and in every evaluation: their
//! rows may have any number of active latents. In one over candidates more entries than k are selected, weighed before 3, and their
//! gradients taken through the weights after it. All of 2 to 4 is one record (a CUDA graph on a card); nothing waits
//! until statistics are collected.

use super::all_rows::AllRows;
use super::buffer::{Buffer, Values};
use super::device::{Device, RecordKey};
use super::feed::Feed;
use super::launch::{self, CarriedOver, DeviceBatch};
use super::params::{Control, Outcome, StepParams};
use super::ranks::{Ranks, Shard};
use super::step::{AfterTile, Aim};
use super::tensors::{Operands, Tensors};
use super::work::{self, ROWS_AT, Sizes, WorkBuffers};
use crate::backend::{
    Asks, Backend, Codes, EvalSums, Look, Pass, Phase, StepPlan, StepStats, check_same_kind,
};
use crate::error::{Error, Result};
use crate::model::{Fill, TrainState, Weights};
use crate::noise::Noise;
use crate::rows::{RowSource, Shares};
use crate::spec::{ModelSpec, Precision};
use std::borrow::Cow;
use std::sync::Arc;

/// Steps whose outcomes the device keeps until they are collected.
pub(super) const RING: usize = 4096;
/// Rows of the buffers at least, so that evaluations are not made row by row.
pub const LEAST_ROWS: usize = 256;

/// Bytes of what steps leave for each other, for M latents.
pub(super) fn shared_bytes(n_latents: usize) -> u64 {
    (8 * n_latents + RING * size_of::<Outcome>()) as u64
}

/// A backend on a device.
pub struct Engine {
    name: String,
    pub(super) parts: Parts,
    // Last, so that all memory is freed before the device goes.
    pub(super) device: Box<dyn Device>,
}

/// Everything but the device, so that work can be recorded by it.
pub(super) struct Parts {
    pub(super) data: Arc<dyn RowSource>,
    /// The same as this rank reads them, where ranks share out the reading of files.
    shares: Option<Shares>,
    pub(super) spec: ModelSpec,
    pub(super) sizes: Sizes,
    pub(super) tensors: Tensors,
    /// What ranks do together, where there are any.
    pub(super) others: Option<Box<dyn Ranks>>,
    averages: Option<Averages>,
    pub(super) shared: CarriedOver,
    pub(super) work: Option<WorkBuffers>,
    /// All rows, where there is room for them.
    resident: Option<Arc<AllRows>>,
    /// Batches of rows, where there is none; made with the buffers.
    pub(super) feed: Option<Feed>,
    given: Option<Buffer<f32>>,
    /// Steps whose outcomes wait on the device.
    pending: Vec<u64>,
    /// A loss was not finite: the device changes nothing any more.
    halted: bool,
    done: Vec<StepStats>,
}

/// Rounded copies of the moving averages, for evaluation.
struct Averages {
    enc: Values,
    dec: Option<Values>,
}

impl Engine {
    /// A backend over `data` that goes on from `state`, on a device called `name`.
    ///
    /// # Errors
    /// Options that the kernels cannot serve; not enough memory.
    pub fn new(
        name: String,
        device: Box<dyn Device>,
        data: Arc<dyn RowSource>,
        spec: ModelSpec,
        precision: Precision,
        state: &TrainState,
    ) -> Result<Self> {
        let whole = Shard::whole(state.params.n_latents);
        Self::start(name, device, data, spec, precision, state, whole, None)
    }

    /// One rank of several: `state` has the rank's share of `latents` ([`Shard::latents`]).
    ///
    /// # Errors
    /// As for [`Engine::new`]; too few latents for so many ranks.
    #[allow(clippy::too_many_arguments)]
    pub fn of_rank(
        name: String,
        device: Box<dyn Device>,
        data: Arc<dyn RowSource>,
        spec: ModelSpec,
        precision: Precision,
        state: &TrainState,
        latents: usize,
        ranks: Box<dyn Ranks>,
    ) -> Result<Self> {
        let shard = Shard::of(ranks.rank(), ranks.count(), latents)?;
        let (held, wanted) = (state.params.n_latents, shard.latents().len());
        if held != wanted {
            return Err(Error::Failed(format!(
                "rank {} of {} was given {held} latents where it has {wanted}; please report this",
                shard.rank, shard.ranks
            )));
        }
        Self::start(name, device, data, spec, precision, state, shard, Some(ranks))
    }

    #[allow(clippy::too_many_arguments)]
    fn start(
        name: String,
        mut device: Box<dyn Device>,
        data: Arc<dyn RowSource>,
        spec: ModelSpec,
        precision: Precision,
        state: &TrainState,
        shard: Shard,
        others: Option<Box<dyn Ranks>>,
    ) -> Result<Self> {
        let p = &state.params;
        let (d, m) = (p.d_in, p.n_latents);
        let sizes = Sizes::new(&spec, d, shard.all, p.tied(), precision, data.dtype())?.of_rank(shard);
        sizes.check_row(device.facts()?.shared)?;
        let dev = device.as_mut();
        let tensors = Tensors::load(dev, state, sizes.element)?;
        let shared = CarriedOver::new(dev, m, RING + 1)?;
        let mut parts = Parts {
            shares: Shares::of(&data, shard.rank, shard.ranks),
            data,
            spec,
            sizes,
            tensors,
            others,
            averages: None,
            shared,
            work: None,
            resident: None,
            feed: None,
            given: None,
            pending: vec![],
            halted: false,
            done: vec![],
        };
        parts.upload_data(dev)?;
        parts.refresh(dev)?;
        Ok(Self { name, parts, device })
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Rows that other backends shared are freed after what was queued by those that sent them, and not after this one's
        // work. There is nobody to report an error to.
        let _ = self.device.synchronize();
    }
}

impl Look for Engine {
    fn inspect(&mut self, rows: &[u32], plan: &StepPlan<'_>) -> Result<Pass> {
        self.look(rows, plan)
    }
}

impl Backend for Engine {
    fn device(&self) -> String {
        self.name.clone()
    }

    fn asks_for_rows(&self) -> Asks {
        if self.parts.resident.is_some() { Asks::Never } else { Asks::Ahead }
    }

    fn expect(&mut self, rows: &[u32]) -> Result<()> {
        self.parts.expect(self.device.as_mut(), rows)
    }

    fn idle(&mut self) -> Result<f64> {
        self.device.idle()
    }

    fn step(&mut self, rows: &[u32], plan: &StepPlan<'_>) -> Result<()> {
        let Self { parts, device, .. } = self;
        let dev = device.as_mut();
        if parts.pending.len() == RING {
            parts.drain(dev)?;
        }
        let slot = parts.pending.len();
        let batch = parts.send(dev, rows, plan, slot)?;
        let phase = parts.spec.phase(plan);
        if batch.given != 0 || parts.others.is_some() {
            // Given numbers are a test's: nothing to record. What ranks do together is queued anew for each step, so that it can be
            // abandoned where one of them is gone.
            parts.queue(dev, &batch, phase, Aim::Train, &mut |_, _, _| Ok(()))?;
        } else {
            let kind = if phase == Phase::Hard { "hard step" } else { "warm-up step" };
            dev.record(RecordKey { kind, n_rows: batch.n, slot: batch.slot }, &mut |dev| {
                parts.queue(dev, &batch, phase, Aim::Train, &mut |_, _, _| Ok(()))
            })?;
        }
        parts.pending.push(plan.step);
        parts.done_reading(dev)
    }

    fn collect(&mut self) -> Result<Vec<StepStats>> {
        self.parts.drain(self.device.as_mut())?;
        Ok(std::mem::take(&mut self.parts.done))
    }

    fn evaluate_checked(
        &mut self,
        rows: &[u32],
        weights: Weights,
        fired: &mut [u64],
        check: &mut dyn FnMut() -> Result<()>,
    ) -> Result<EvalSums> {
        let Self { parts, device, .. } = self;
        let dev = device.as_mut();
        let operands = parts.operands(dev, weights)?;
        parts.shared.quality.zero(dev, 1)?;
        parts.shared.fired_rows.zero(dev, parts.sizes.m)?;
        let mut chunks = rows.chunks(parts.room()).peekable();
        while let Some(chunk) = chunks.next() {
            check()?;
            parts.evaluate(dev, chunk, &operands)?;
            if let Some(next) = chunks.peek() {
                parts.expect(dev, next)?;
            }
        }
        let sums = parts.shared.quality.read(dev, 1)?[0];
        let counts = parts.fired_rows(dev)?;
        // What an evaluation waited is not asked for.
        dev.idle()?;
        fired.iter_mut().zip(counts).for_each(|(f, c)| *f += u64::from(c));
        Ok(EvalSums {
            rows: rows.len() as u64,
            squared: sums.squared,
            absolute: sums.absolute,
            cosine: sums.cosine,
            active: sums.active,
            by_prefix: sums.by_prefix,
            prefixes: parts.sizes.prefixes.len(),
        })
    }

    fn calibrate(&mut self, rows: &[u32], weights: Weights) -> Result<()> {
        let Self { parts, device, .. } = self;
        parts.calibrate(device.as_mut(), rows, weights)
    }

    fn encode(&mut self, rows: &[u32], weights: Weights) -> Result<Codes> {
        let Self { parts, device, .. } = self;
        parts.encode(device.as_mut(), rows, weights)
    }

    fn set_data(&mut self, data: Arc<dyn RowSource>) -> Result<()> {
        let Self { parts, device, .. } = self;
        check_same_kind(parts.data.as_ref(), data.as_ref())?;
        parts.set_data(device.as_mut(), data)
    }

    fn state(&mut self) -> Result<Cow<'_, TrainState>> {
        let Self { parts, device, .. } = self;
        // Which steps counted is known with their losses.
        parts.drain(device.as_mut())?;
        Ok(Cow::Owned(parts.tensors.state(device.as_mut())?))
    }

    fn set_state(&mut self, step: u64, fill: &mut Fill<'_>) -> Result<()> {
        let Self { parts, device, .. } = self;
        let dev = device.as_mut();
        parts.drain(dev)?;
        parts.tensors.fill(dev, step, fill)?;
        parts.halted = false;
        parts.shared.control.write(dev, &[Control::default()])?;
        parts.shared.fired.zero(dev, parts.sizes.m)?;
        parts.refresh(dev)
    }
}

impl Parts {
    /// Puts the rows on the device if they leave room for the work; else they travel batch by batch.
    fn upload_data(&mut self, dev: &mut dyn Device) -> Result<()> {
        let work = work::bytes(&self.sizes, &self.spec, LEAST_ROWS.max(4096));
        let row_bytes = self.sizes.d * self.sizes.input.size();
        let fits = |dev: &dyn Device, bytes| Ok(bytes + work <= dev.facts()?.free / 10 * 9);
        let mut agreed = None;
        if let (Some(_), Some(ranks)) = (&self.shares, &mut self.others) {
            // Ranks that bring each other rows must all do so, or none.
            let here = fits(dev, (self.data.n_rows() * row_bytes) as u64)?;
            agreed = Some(launch::is_of_all(dev, ranks, here)?);
        }
        let fits = |dev: &dyn Device, bytes| agreed.map_or_else(|| fits(dev, bytes), Ok);
        self.resident = AllRows::of(dev, &self.data, row_bytes, fits)?;
        Ok(())
    }

    /// What follows from the weights and idle counts after they were written: rounded copies, dead latents.
    fn refresh(&mut self, dev: &mut dyn Device) -> Result<()> {
        let t = &mut self.tensors;
        if let Some(copy) = &mut t.enc_copy {
            launch::narrow_copy(dev, &t.enc.w, copy)?;
        }
        if let (Some(copy), Some(dec)) = (&mut t.dec_copy, &t.dec) {
            launch::narrow_copy(dev, &dec.w, copy)?;
        }
        let (dead_after, others) = (self.spec.objective.dead_after, self.others.as_mut());
        launch::count_idle(dev, &self.sizes, 0, dead_after, others, &mut t.idle, &mut self.shared)
    }

    /// Rows on which each latent of the model was active in an evaluation.
    fn fired_rows(&mut self, dev: &mut dyn Device) -> Result<Vec<u32>> {
        let (m, shard) = (self.sizes.m, self.sizes.shard);
        let Some(ranks) = &mut self.others else { return self.shared.fired_rows.read(dev, m) };
        // Each has places for all; sums with the zeros of the others.
        let own = self.shared.fired_rows.read(dev, m)?;
        let mut placed = vec![0; shard.all];
        placed[shard.latents()].copy_from_slice(&own);
        let mut all = Buffer::zeros(dev, shard.all, "counts of latents")?;
        all.write(dev, &placed)?;
        launch::add_counts(dev, ranks, &all)?;
        all.read(dev, shard.all)
    }

    /// Makes sure that the buffers hold `n` rows.
    pub(super) fn need_rows(&mut self, dev: &mut dyn Device, n: usize) -> Result<()> {
        if self.work.as_ref().is_some_and(|w| w.capacity >= n) {
            return Ok(());
        }
        // Records name the buffers that go now.
        dev.forget();
        (self.work, self.feed) = (None, None);
        let n = n.max(LEAST_ROWS.min(self.data.n_rows()));
        self.work = Some(WorkBuffers::new(dev, &self.sizes, n)?);
        if self.resident.is_none() {
            self.feed = Some(Feed::new(dev, n, self.sizes.d * self.sizes.input.size())?);
        }
        Ok(())
    }

    /// See [`Backend::expect`]. Rows for which there are no buffers yet are gathered with their step.
    pub(super) fn expect(&mut self, dev: &mut dyn Device, rows: &[u32]) -> Result<()> {
        self.check_rows(rows)?;
        match &mut self.feed {
            Some(feed) if feed.holds(rows.len()) => {
                feed.expect(dev, read_from(&self.data, self.shares.as_ref()), rows)
            }
            _ => Ok(()),
        }
    }

    /// All that reads the rows of the batch sent last is queued.
    pub(super) fn done_reading(&mut self, dev: &mut dyn Device) -> Result<()> {
        self.feed.as_mut().map_or(Ok(()), |feed| feed.done(dev))
    }

    fn check_rows(&self, rows: &[u32]) -> Result<()> {
        let n_data = self.data.n_rows();
        match rows.iter().find(|&&row| row as usize >= n_data) {
            Some(bad) => {
                Err(Error::Failed(format!("row {bad} is not among the {n_data} rows; please report this")))
            }
            None => Ok(()),
        }
    }

    /// Sends a batch and its numbers; makes the buffers that the step needs.
    fn send(
        &mut self,
        dev: &mut dyn Device,
        rows: &[u32],
        plan: &StepPlan<'_>,
        slot: usize,
    ) -> Result<DeviceBatch> {
        let (n, m, shard) = (rows.len(), self.sizes.m, self.sizes.shard);
        self.need_rows(dev, n)?;
        let Self { work: Some(work), sizes, spec, .. } = self else { return Err(no_buffers()) };
        let phase = spec.phase(plan);
        if phase == Phase::Softmax || sizes.is_dense() {
            work.need_soft(dev, sizes)?;
        }
        if phase == Phase::Weighed {
            work.need_gates(dev, sizes)?;
        }
        if spec.optimizer.clip_norm.is_some() {
            work.need_kept(dev, sizes)?;
        }
        let given = match plan.noise {
            Noise::Given(u) if plan.soft() => {
                let mut buffer = Buffer::zeros(dev, n * m, "given noise")?;
                let own = u.chunks_exact(shard.all).flat_map(|row| &row[shard.latents()]);
                buffer.write(dev, &own.copied().collect::<Vec<f32>>())?;
                self.given.insert(buffer).address()
            }
            _ => 0,
        };
        let params = StepParams::new(&self.spec, plan, n, (self.sizes.d, &shard), slot as u32);
        let batch = self.send_rows(dev, rows, &params)?;
        Ok(DeviceBatch { given, ..batch })
    }

    /// Sends row numbers with a step's numbers, and rows that were not announced.
    pub(super) fn send_rows(
        &mut self,
        dev: &mut dyn Device,
        rows: &[u32],
        params: &StepParams,
    ) -> Result<DeviceBatch> {
        self.check_rows(rows)?;
        let Self { work: Some(work), data, shares, others, resident, feed, .. } = self else {
            return Err(no_buffers());
        };
        let (n, len) = (rows.len(), work::message_bytes(rows.len()));
        let (data, slot, travel) = match (resident, feed) {
            (Some(all), _) => (all.address(), 0, false),
            (None, Some(feed)) => {
                let fed = feed.take(dev, read_from(data, shares.as_ref()), rows)?;
                if let (Some(_), Some(ranks)) = (shares, others) {
                    launch::add_rows(dev, ranks, (fed.address, fed.bytes))?;
                }
                (fed.address, fed.slot, true)
            }
            (None, None) => return Err(no_buffers()),
        };
        work.message.holds(len)?;
        let base = work.message.address();
        dev.send(work.message.memory(), len, &mut |out| {
            out[..size_of::<StepParams>()].copy_from_slice(bytemuck::bytes_of(params));
            for (i, (&row, out)) in rows.iter().zip(out[ROWS_AT..].chunks_exact_mut(4)).enumerate() {
                // Rows that travel are numbered by their place in the batch.
                let number = if travel { i as u32 } else { row };
                out.copy_from_slice(&number.to_ne_bytes());
            }
        })?;
        Ok(DeviceBatch { n, step: base, rows: base + ROWS_AT as u64, data, slot, given: 0 })
    }

    /// Fetches the outcomes of all queued steps.
    fn drain(&mut self, dev: &mut dyn Device) -> Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        if let Some(feed) = &mut self.feed {
            feed.settle(dev)?;
        }
        let outcomes = self.shared.outcomes.read(dev, self.pending.len())?;
        for (step, outcome) in std::mem::take(&mut self.pending).into_iter().zip(&outcomes) {
            self.halted |= !outcome.loss.is_finite();
            if !self.halted {
                self.tensors.set_step(step + 1);
            }
            self.done.push(stats(outcome));
        }
        Ok(())
    }

    /// Rows that the buffers hold, or will hold.
    pub(super) fn room(&self) -> usize {
        self.work.as_ref().map_or(LEAST_ROWS, |w| w.capacity)
    }

    /// Other rows from here on. Buffers go, because they depend on where the rows are.
    fn set_data(&mut self, dev: &mut dyn Device, data: Arc<dyn RowSource>) -> Result<()> {
        self.drain(dev)?;
        dev.forget();
        (self.work, self.feed, self.resident) = (None, None, None);
        let Shard { rank, ranks, .. } = self.sizes.shard;
        self.shares = Shares::of(&data, rank, ranks);
        self.data = data;
        self.upload_data(dev)
    }

    /// The weights that an evaluation reads.
    pub(super) fn operands(&mut self, dev: &mut dyn Device, weights: Weights) -> Result<Operands> {
        let own = self.tensors.operands()?;
        let t = &self.tensors;
        let (Weights::Averaged, Some(enc)) = (weights, &t.enc.e) else { return Ok(own) };
        let (m, pitch) = (self.sizes.m, self.sizes.pitch);
        let dec = t.dec.as_ref().and_then(|d| d.e.as_ref());
        let (b_lat, b_pre) = (t.lat.weights(weights).address(), t.pre.weights(weights).address());
        let threshold = t.thresholds(weights);
        if self.tensors.enc_copy.is_none() {
            let enc = enc.matrix(0, m, pitch, pitch)?;
            let dec = dec.map_or(Ok(enc), |dec| dec.matrix(0, m, pitch, pitch))?;
            return Ok(Operands { enc, dec, b_lat, b_pre, threshold });
        }
        let element = self.sizes.element;
        let what = "a bfloat16 copy of averages";
        if self.averages.is_none() {
            let dec = dec.map(|_| Values::zeros(dev, element, m * pitch, what)).transpose()?;
            self.averages = Some(Averages { enc: Values::zeros(dev, element, m * pitch, what)?, dec });
        }
        let Some(copies) = &mut self.averages else { return Ok(own) };
        launch::narrow_copy(dev, enc, &mut copies.enc)?;
        let enc = copies.enc.matrix(0, m, pitch, pitch)?;
        let dec = match (dec, &mut copies.dec) {
            (Some(from), Some(to)) => {
                launch::narrow_copy(dev, from, to)?;
                to.matrix(0, m, pitch, pitch)?
            }
            _ => enc,
        };
        Ok(Operands { enc, dec, b_lat, b_pre, threshold })
    }

    /// The pass of a look inside, into `kept` and the batch's buffers; returns the batch and its statistics.
    pub(super) fn look(
        &mut self,
        dev: &mut dyn Device,
        rows: &[u32],
        plan: &StepPlan<'_>,
        after_tile: AfterTile<'_>,
    ) -> Result<(DeviceBatch, StepStats)> {
        self.drain(dev)?;
        let before = self.shared.control.read(dev, 1)?[0];
        self.need_rows(dev, rows.len())?;
        let Some(work) = &mut self.work else { return Err(no_buffers()) };
        work.need_kept(dev, &self.sizes)?;
        // Once: steps that were recorded after a first look name it.
        if work.recon.is_none() {
            work.recon = Some(Buffer::zeros(dev, work.capacity * self.sizes.pitch, "reconstruction")?);
        }
        let batch = self.send(dev, rows, plan, RING)?;
        let result = self.queue(dev, &batch, self.spec.phase(plan), Aim::Look, after_tile);
        result?;
        self.done_reading(dev)?;
        let outcomes = self.shared.outcomes.read(dev, RING + 1)?;
        // A look leaves no trace: neither a stop nor a latent that fired.
        self.shared.fired.zero(dev, self.sizes.m)?;
        self.shared.control.write(dev, &[Control { clip: 1.0, ..before }])?;
        Ok((batch, stats(&outcomes[RING])))
    }
}

/// Where the rows of batches are read.
fn read_from<'a>(data: &'a Arc<dyn RowSource>, shares: Option<&'a Shares>) -> &'a dyn RowSource {
    shares.map_or(data.as_ref(), |shares| shares)
}

pub(super) fn no_buffers() -> Error {
    Error::Failed("buffers of a batch are missing on the GPU; please report this".into())
}

fn stats(o: &Outcome) -> StepStats {
    StepStats { loss: o.loss, mse: o.mse, l1: o.l1, aux: o.aux, grad_norm: o.grad_norm }
}
