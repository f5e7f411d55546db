//! The training state in device memory: weights, moments, averages, rounded copies, idle counts.
//!
//! A matrix row of D values is stored in `pitch` values, D rounded up to a multiple of 8, so that every row starts
//! at a multiple of 16 bytes; the rest of a row is 0 and stays 0.

use super::buffer::{Buffer, Values};
use super::device::{Device, Element, Matrix};
use super::params::{ModelView, TensorView};
use crate::error::{Error, Result};
use crate::model::{Fill, Params, SETS, TrainState, Weights};

/// Values in a stored row of `d_in`.
pub fn pitch(d_in: usize) -> usize {
    d_in.next_multiple_of(8)
}

/// Bytes of the state of a model of D inputs and M latents on the device.
pub fn bytes(
    d_in: usize,
    n_latents: usize,
    tied: bool,
    ema: bool,
    thresholds: bool,
    element: Element,
) -> u64 {
    let row = pitch(d_in);
    let matrices = n_latents * row * if tied { 1 } else { 2 };
    // Of the weights, and of the averages in evaluations.
    let copies = if element == Element::Bf16 { 2 * matrices * if ema { 2 } else { 1 } } else { 0 };
    let sets = if ema { 4 } else { 3 };
    let vectors = n_latents * if thresholds { 2 } else { 1 } + row;
    (4 * sets * (matrices + vectors) + copies + 4 * n_latents) as u64
}

/// One tensor with all that belongs to it.
#[derive(Debug)]
pub struct Tensor {
    /// Weights.
    pub w: Buffer<f32>,
    m: Buffer<f32>,
    v: Buffer<f32>,
    /// Moving average, where there is one.
    pub e: Option<Buffer<f32>>,
}

impl Tensor {
    fn zeros(device: &mut dyn Device, len: usize, ema: bool, what: &'static str) -> Result<Self> {
        Ok(Self {
            w: Buffer::zeros(device, len, what)?,
            m: Buffer::zeros(device, len, "Adam's first moment")?,
            v: Buffer::zeros(device, len, "Adam's second moment")?,
            e: if ema { Some(Buffer::zeros(device, len, "the moving average")?) } else { None },
        })
    }

    fn view(&self) -> TensorView {
        let e = self.e.as_ref().map_or(0, Buffer::address);
        TensorView { w: self.w.address(), m: self.m.address(), v: self.v.address(), e }
    }

    /// The values that `weights` names.
    pub fn weights(&self, weights: Weights) -> &Buffer<f32> {
        match (weights, &self.e) {
            (Weights::Averaged, Some(e)) => e,
            _ => &self.w,
        }
    }

    /// The same, to be overwritten.
    pub fn weights_mut(&mut self, weights: Weights) -> &mut Buffer<f32> {
        match (weights, &mut self.e) {
            (Weights::Averaged, Some(e)) => e,
            _ => &mut self.w,
        }
    }
}

/// All tensors of a run.
#[derive(Debug)]
pub struct Tensors {
    d_in: usize,
    n_latents: usize,
    pitch: usize,
    /// (M, pitch).
    pub enc: Tensor,
    /// (M, pitch); `None` when tied.
    pub dec: Option<Tensor>,
    /// (M).
    pub lat: Tensor,
    /// (pitch).
    pub pre: Tensor,
    /// (M), where the model has thresholds.
    pub threshold: Option<Tensor>,
    /// One value, where the penalty's weight seeks k: it is carried from step to step.
    pub carried: Option<Buffer<f32>>,
    /// bfloat16 copy of the encoder, where products use one.
    pub enc_copy: Option<Values>,
    /// bfloat16 copy of the decoder.
    pub dec_copy: Option<Values>,
    /// Rows since each latent last fired (M).
    pub idle: Buffer<u32>,
    /// Addresses of all that, for kernels.
    pub view: Buffer<ModelView>,
    step: u64,
}

/// What products and gathers read.
#[derive(Debug, Clone, Copy)]
pub struct Operands {
    /// (M, pitch).
    pub enc: Matrix,
    /// (M, pitch).
    pub dec: Matrix,
    /// Address of (M).
    pub b_lat: u64,
    /// Address of (pitch).
    pub b_pre: u64,
    /// Address of (M) thresholds, or 0.
    pub threshold: u64,
}

impl Tensors {
    /// Device memory with the values of `state`.
    ///
    /// # Errors
    /// Not enough memory, or the device fails.
    pub fn load(device: &mut dyn Device, state: &TrainState, element: Element) -> Result<Self> {
        let p = &state.params;
        let (d_in, n_latents, pitch) = (p.d_in, p.n_latents, pitch(p.d_in));
        let (size, ema) = (n_latents * pitch, state.ema.is_some());
        let enc = Tensor::zeros(device, size, ema, "the encoder")?;
        let dec = if p.tied() { None } else { Some(Tensor::zeros(device, size, ema, "the decoder")?) };
        let copy = |device: &mut dyn Device, wanted: bool| -> Result<Option<Values>> {
            let wanted = wanted && element == Element::Bf16;
            wanted.then(|| Values::zeros(device, element, size, "a bfloat16 copy of weights")).transpose()
        };
        let mut tensors = Self {
            d_in,
            n_latents,
            pitch,
            enc_copy: copy(device, true)?,
            dec_copy: copy(device, !p.tied())?,
            enc,
            dec,
            lat: Tensor::zeros(device, n_latents, ema, "the latents' biases")?,
            pre: Tensor::zeros(device, pitch, ema, "the pre-bias")?,
            threshold: match &p.threshold {
                Some(_) => Some(Tensor::zeros(device, n_latents, ema, "the thresholds")?),
                None => None,
            },
            carried: match state.penalty_weight.is_empty() {
                true => None,
                false => Some(Buffer::zeros(device, 1, "the weight of the penalty")?),
            },
            idle: Buffer::zeros(device, n_latents, "idle counts")?,
            view: Buffer::zeros(device, 1, "addresses of the model")?,
            step: 0,
        };
        tensors.fill(device, state.step, &mut |name, out| state.copy_to(name, out))?;
        Ok(tensors)
    }

    /// Overwrites all values, one tensor after another; what records name stays where it is.
    ///
    /// # Errors
    /// What `fill` gives, or the device fails.
    pub fn fill(&mut self, device: &mut dyn Device, step: u64, fill: &mut Fill<'_>) -> Result<()> {
        let (d, m, pitch) = (self.d_in, self.n_latents, self.pitch);
        let mut host: Vec<f32> = vec![];
        for (set, prefix) in SETS.into_iter().enumerate() {
            for (name, buffer) in self.slots(set) {
                let rows = match name {
                    "b_lat" | "threshold" => None,
                    "b_pre" => Some(1),
                    _ => Some(m),
                };
                host.clear();
                host.resize(rows.map_or(m, |rows| rows * d), 0.0);
                fill(&format!("{prefix}{name}"), bytemuck::cast_slice_mut(&mut host))?;
                match rows {
                    Some(_) if d != pitch => buffer.write(device, &spread(&host, d, pitch))?,
                    _ => buffer.write(device, &host)?,
                }
            }
        }
        if let Some(carried) = &mut self.carried {
            let mut weight = [0.0f32];
            fill("penalty_weight", bytemuck::cast_slice_mut(&mut weight))?;
            carried.write(device, &weight)?;
        }
        let mut idle = vec![0u32; m];
        fill("idle_rows", bytemuck::cast_slice_mut(&mut idle))?;
        self.idle.write(device, &idle)?;
        self.step = step;
        let view = ModelView {
            enc: self.enc.view(),
            dec: self.dec.as_ref().map_or(TensorView::default(), Tensor::view),
            lat: self.lat.view(),
            pre: self.pre.view(),
            threshold: self.threshold.as_ref().map_or(TensorView::default(), Tensor::view),
            enc_copy: self.enc_copy.as_ref().map_or(0, Values::address),
            dec_copy: self.dec_copy.as_ref().map_or(0, Values::address),
        };
        self.view.write(device, &[view])
    }

    /// The buffers of set `which` (weights, first moment, second moment, average) with their tensors' names.
    fn slots(&mut self, which: usize) -> Vec<(&'static str, &mut Buffer<f32>)> {
        let tensors = [
            ("w_enc", Some(&mut self.enc)),
            ("w_dec", self.dec.as_mut()),
            ("b_pre", Some(&mut self.pre)),
            ("b_lat", Some(&mut self.lat)),
            ("threshold", self.threshold.as_mut()),
        ];
        let mut all = vec![];
        for (name, tensor) in tensors {
            let Some(t) = tensor else { continue };
            let buffer = match which {
                0 => Some(&mut t.w),
                1 => Some(&mut t.m),
                2 => Some(&mut t.v),
                _ => t.e.as_mut(),
            };
            all.extend(buffer.map(|buffer| (name, buffer)));
        }
        all
    }

    /// The whole state, from the device.
    ///
    /// # Errors
    /// The device fails.
    pub fn state(&self, device: &mut dyn Device) -> Result<TrainState> {
        let (d, m, pitch) = (self.d_in, self.n_latents, self.pitch);
        let mut set = |pick: &dyn Fn(&Tensor) -> Option<&Buffer<f32>>| -> Result<Option<Params>> {
            let mut read = |tensor: &Tensor, rows: usize| -> Result<Option<Vec<f32>>> {
                let Some(buffer) = pick(tensor) else { return Ok(None) };
                let values = buffer.read(device, if rows == 0 { m } else { rows * pitch })?;
                Ok(Some(if rows == 0 { values } else { gather(&values, d, pitch) }))
            };
            let parts = (read(&self.enc, m)?, read(&self.pre, 1)?, read(&self.lat, 0)?);
            let (Some(w_enc), Some(b_pre), Some(b_lat)) = parts else { return Ok(None) };
            let w_dec = self.dec.as_ref().map_or(Ok(None), |dec| read(dec, m))?;
            let threshold = self.threshold.as_ref().map_or(Ok(None), |threshold| read(threshold, 0))?;
            Ok(Some(Params { d_in: d, n_latents: m, w_enc, w_dec, b_pre, b_lat, threshold }))
        };
        let params = set(&|t| Some(&t.w))?;
        let (first, second) = (set(&|t| Some(&t.m))?, set(&|t| Some(&t.v))?);
        let ema = set(&|t| t.e.as_ref())?;
        let (Some(params), Some(first), Some(second)) = (params, first, second) else {
            return Err(Error::Failed("a tensor is missing on the GPU; please report this".into()));
        };
        let idle_rows = self.idle.read(device, m)?;
        let penalty_weight = match &self.carried {
            Some(carried) => carried.read(device, 1)?,
            None => vec![],
        };
        Ok(TrainState { step: self.step, params, m: first, v: second, ema, idle_rows, penalty_weight })
    }

    /// Steps done.
    pub fn set_step(&mut self, step: u64) {
        self.step = step;
    }

    /// The weights as products read them: the rounded copies where there are any.
    ///
    /// # Errors
    /// None in practice: sizes were settled at loading.
    pub fn operands(&self) -> Result<Operands> {
        let (m, pitch) = (self.n_latents, self.pitch);
        let of = |t: &Tensor, copy: &Option<Values>| match copy {
            Some(copy) => copy.matrix(0, m, pitch, pitch),
            None => t.w.matrix(0, m, pitch, pitch),
        };
        let enc = of(&self.enc, &self.enc_copy)?;
        let dec = match &self.dec {
            Some(dec) => of(dec, &self.dec_copy)?,
            None => enc,
        };
        Ok(Operands {
            enc,
            dec,
            b_lat: self.lat.w.address(),
            b_pre: self.pre.w.address(),
            threshold: self.thresholds(Weights::Last),
        })
    }

    /// Address of the thresholds, or 0 where there are none.
    pub fn thresholds(&self, weights: Weights) -> u64 {
        self.threshold.as_ref().map_or(0, |t| t.weights(weights).address())
    }
}

/// Rows of `d` values with zeros up to `pitch` after each.
fn spread(values: &[f32], d: usize, pitch: usize) -> Vec<f32> {
    let mut out = vec![0.0; values.len() / d * pitch];
    for (to, from) in out.chunks_exact_mut(pitch).zip(values.chunks_exact(d)) {
        to[..d].copy_from_slice(from);
    }
    out
}

/// The inverse of `spread`.
pub fn gather(values: &[f32], d: usize, pitch: usize) -> Vec<f32> {
    values.chunks_exact(pitch).flat_map(|row| &row[..d]).copied().collect()
}
