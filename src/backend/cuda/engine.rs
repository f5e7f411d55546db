//! The backend on a device: what is queued for a step, an evaluation, a look inside.
//!
//! A step, hard phase:
//!
//! 1. The step's numbers and row numbers are sent (and the rows themselves, where the data are not on the device).
//! 2. Rows are gathered and normalised; `z`, the one dense product; selection of the top k.
//! 3. Reconstruction, loss, dy' and the gradients of sparse entries, row by row.
//! 4. Inverted index; gradients and Adam, latent by latent; the pre-bias; idle counts.
//!
//! In a warm-up by softmax the decoder and the gradients are dense products over tiles of latents, and nothing of size
//! (N, M) exists but the scores. In one over candidates more entries than k are selected, weighed before 3, and their
//! gradients taken through the weights after it. All of 2 to 4 is one record (a CUDA graph on a card); nothing waits
//! until statistics are collected.

use super::buffer::{Buffer, Values};
use super::device::{Device, Memory, RecordKey};
use super::launch::{self, CarriedOver, DeviceBatch};
use super::params::{Control, Outcome, StepParams};
use super::step::{AfterTile, Aim};
use super::tensors::{Operands, Tensors};
use super::work::{self, ROWS_AT, Sizes, WorkBuffers};
use crate::backend::{Backend, Codes, EvalSums, Look, Pass, Phase, StepPlan, StepStats, check_same_kind};
use crate::error::{Error, Result};
use crate::model::{Fill, TrainState, Weights};
use crate::noise::Noise;
use crate::rows::RowSource;
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
    pub(super) spec: ModelSpec,
    pub(super) sizes: Sizes,
    pub(super) tensors: Tensors,
    averages: Option<Averages>,
    pub(super) shared: CarriedOver,
    pub(super) work: Option<WorkBuffers>,
    resident: Option<Memory>,
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
        mut device: Box<dyn Device>,
        data: Arc<dyn RowSource>,
        spec: ModelSpec,
        precision: Precision,
        state: &TrainState,
    ) -> Result<Self> {
        let p = &state.params;
        let (d, m) = (p.d_in, p.n_latents);
        let sizes = Sizes::new(&spec, d, m, p.tied(), precision, data.dtype())?;
        sizes.check_row(device.facts()?.shared)?;
        let dev = device.as_mut();
        let tensors = Tensors::load(dev, state, sizes.element)?;
        let shared = CarriedOver::new(dev, m, RING + 1)?;
        let mut parts = Parts {
            data,
            spec,
            sizes,
            tensors,
            averages: None,
            shared,
            work: None,
            resident: None,
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

impl Look for Engine {
    fn inspect(&mut self, rows: &[u32], plan: &StepPlan<'_>) -> Result<Pass> {
        self.look(rows, plan)
    }
}

impl Backend for Engine {
    fn device(&self) -> String {
        self.name.clone()
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
        if batch.given != 0 {
            // Given numbers are a test's: nothing to record.
            parts.queue(dev, &batch, phase, Aim::Train, &mut |_, _, _| Ok(()))?;
        } else {
            let kind = if phase == Phase::Hard { "hard step" } else { "warm-up step" };
            dev.record(RecordKey { kind, n_rows: batch.n }, &mut |dev| {
                parts.queue(dev, &batch, phase, Aim::Train, &mut |_, _, _| Ok(()))
            })?;
        }
        parts.pending.push(plan.step);
        Ok(())
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
        for chunk in rows.chunks(parts.room()) {
            check()?;
            parts.evaluate(dev, chunk, &operands)?;
        }
        let sums = parts.shared.quality.read(dev, 1)?[0];
        let counts = parts.shared.fired_rows.read(dev, parts.sizes.m)?;
        fired.iter_mut().zip(counts).for_each(|(f, c)| *f += u64::from(c));
        Ok(EvalSums {
            rows: rows.len() as u64,
            squared: sums.squared,
            absolute: sums.absolute,
            cosine: sums.cosine,
            active: sums.active,
        })
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
        let (n, width) = (self.data.n_rows(), self.sizes.d * self.sizes.input.size());
        let bytes = n * width;
        let free = dev.facts()?.free;
        let work = work::bytes(&self.sizes, &self.spec, LEAST_ROWS.max(4096));
        if bytes as u64 + work > free / 10 * 9 {
            return Ok(());
        }
        let mut memory = dev.allocate(bytes.max(1), "the data")?;
        // In runs of some 64 MiB: float64 rows are rounded on the way.
        let run = (64 << 20) / width.max(1) + 1;
        let mut bytes = vec![0u8; run.min(n) * width];
        for first in (0..n).step_by(run) {
            let rows = run.min(n - first);
            // Rows that are in files come by blocks, not one by one.
            let (from, to) =
                (self.data.block_of(first as u32), self.data.block_of((first + rows - 1) as u32));
            self.data.hold(&(from..=to).collect::<Vec<u32>>(), &[])?;
            for (i, out) in bytes[..rows * width].chunks_exact_mut(width).enumerate() {
                self.data.read_stored((first + i) as u32, out)?;
            }
            dev.write(&mut memory, first * width, &bytes[..rows * width])?;
        }
        self.data.hold(&[], &[])?;
        self.resident = Some(memory);
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
        launch::count_idle(dev, &self.sizes, 0, self.spec.objective.dead_after, &mut t.idle, &mut self.shared)
    }

    /// Makes sure that the buffers hold `n` rows.
    pub(super) fn need_rows(&mut self, dev: &mut dyn Device, n: usize) -> Result<()> {
        if self.work.as_ref().is_some_and(|w| w.capacity >= n) {
            return Ok(());
        }
        // Records name the buffers that go now.
        dev.forget();
        self.work = None;
        let staged = self.resident.is_none();
        self.work =
            Some(WorkBuffers::new(dev, &self.sizes, n.max(LEAST_ROWS.min(self.data.n_rows())), staged)?);
        Ok(())
    }

    /// Sends a batch and its numbers; makes the buffers that the step needs.
    fn send(
        &mut self,
        dev: &mut dyn Device,
        rows: &[u32],
        plan: &StepPlan<'_>,
        slot: usize,
    ) -> Result<DeviceBatch> {
        let (n, m) = (rows.len(), self.sizes.m);
        self.need_rows(dev, n)?;
        let Self { work: Some(work), sizes, spec, .. } = self else { return Err(no_buffers()) };
        let phase = spec.phase(plan);
        if phase == Phase::Softmax {
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
                buffer.write(dev, u)?;
                self.given.insert(buffer).address()
            }
            _ => 0,
        };
        let params = StepParams::new(&self.spec, plan, n, m, slot as u32);
        let batch = self.send_rows(dev, rows, &params)?;
        Ok(DeviceBatch { given, ..batch })
    }

    /// Sends row numbers (and rows) with a step's numbers.
    pub(super) fn send_rows(
        &mut self,
        dev: &mut dyn Device,
        rows: &[u32],
        params: &StepParams,
    ) -> Result<DeviceBatch> {
        let n_data = self.data.n_rows();
        if let Some(bad) = rows.iter().find(|&&row| row as usize >= n_data) {
            return Err(Error::Failed(format!(
                "row {bad} is not among the {n_data} rows; please report this"
            )));
        }
        let Self { work: Some(work), data, resident, .. } = self else { return Err(no_buffers()) };
        let (n, width) = (rows.len(), work.row_bytes);
        let len = work::message_bytes(n, width);
        work.message.holds(len)?;
        let base = work.message.address();
        let staged = resident.is_none();
        let mut read = Ok(());
        dev.send(work.message.memory(), len, &mut |out| {
            out[..size_of::<StepParams>()].copy_from_slice(bytemuck::bytes_of(params));
            for (i, &row) in rows.iter().enumerate() {
                // Rows that travel with the batch are numbered by their place in it.
                let number = if staged { i as u32 } else { row };
                let at = ROWS_AT + 4 * i;
                out[at..at + 4].copy_from_slice(&number.to_ne_bytes());
            }
            if staged {
                let mut places = rows.iter().zip(out[work::staged_at(n)..].chunks_exact_mut(width));
                read = places.try_for_each(|(&row, out)| data.read_stored(row, out));
            }
        })?;
        read?;
        let data = resident.as_ref().map_or(base + work::staged_at(n) as u64, Memory::address);
        Ok(DeviceBatch { n, step: base, rows: base + ROWS_AT as u64, data, given: 0 })
    }

    /// Fetches the outcomes of all queued steps.
    fn drain(&mut self, dev: &mut dyn Device) -> Result<()> {
        if self.pending.is_empty() {
            return Ok(());
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
        (self.work, self.resident) = (None, None);
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
        if self.tensors.enc_copy.is_none() {
            let enc = enc.matrix(0, m, pitch, pitch)?;
            let dec = dec.map_or(Ok(enc), |dec| dec.matrix(0, m, pitch, pitch))?;
            return Ok(Operands { enc, dec, b_lat, b_pre });
        }
        let element = self.sizes.element;
        let what = "a bfloat16 copy of averages";
        if self.averages.is_none() {
            let dec = dec.map(|_| Values::zeros(dev, element, m * pitch, what)).transpose()?;
            self.averages = Some(Averages { enc: Values::zeros(dev, element, m * pitch, what)?, dec });
        }
        let Some(copies) = &mut self.averages else { return Ok(own) };
        launch::narrow_copy(dev, enc, &mut copies.enc)?;
        let enc = copies.enc.matrix(m, pitch, pitch)?;
        let dec = match (dec, &mut copies.dec) {
            (Some(from), Some(to)) => {
                launch::narrow_copy(dev, from, to)?;
                to.matrix(m, pitch, pitch)?
            }
            _ => enc,
        };
        Ok(Operands { enc, dec, b_lat, b_pre })
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
        let outcomes = self.shared.outcomes.read(dev, RING + 1)?;
        // A look leaves no trace: neither a stop nor a latent that fired.
        self.shared.fired.zero(dev, self.sizes.m)?;
        self.shared.control.write(dev, &[Control { clip: 1.0, ..before }])?;
        Ok((batch, stats(&outcomes[RING])))
    }
}

pub(super) fn no_buffers() -> Error {
    Error::Failed("buffers of a batch are missing on the GPU; please report this".into())
}

fn stats(o: &Outcome) -> StepStats {
    StepStats { loss: o.loss, mse: o.mse, l1: o.l1, aux: o.aux, grad_norm: o.grad_norm }
}
