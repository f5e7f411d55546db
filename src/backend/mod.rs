//! The one seam between the training loop and the arithmetic.
//!
//! A backend owns the weights and the optimizer's state; the loop names rows and a [`StepPlan`]. The formulas
//! that every backend computes, with N rows, D inputs, M latents, k active latents:
//!
//! ```text
//! mu   = mean_j x_j                                  per row; 0 without normalisation
//! std  = sqrt( sum_j (x_j - mu)^2 / (D - 1) )        per row; 1 without normalisation
//! x'   = (x - mu) / (std + eps)                      x itself without normalisation; eps is 1e-5 for most data
//! z    = (x' - b_pre) W_enc^T + b_lat
//! h    = relaxed top-k of z (below)
//! y'   = h W_dec + b_pre
//! y    = y' std + mu
//! loss = mean over N D of (y - x)^2  +  weight / scale * penalty  +  aux_coef * aux
//! penalty = mean over N M of |h|                     the others are below
//!
//! r    = relu(z),  g = -ln(-ln(U + 1e-9) + 1e-9),  p = softmax((r + g) / tau),  S = sum_j r_j
//! hard = r on the k largest z of the row, else 0 (the lowest index wins a tie)
//! h    = (1 - alpha) p S + alpha hard
//! ```
//!
//! and backwards, for `scale` times the loss, with `a = weight / (N M)` on entries with h > 0. The scale is 1 in the presets
//! that repeat published models, and else one over the variance of the training rows, so that Adam's epsilon, the
//! clipping and the penalty's weight meet gradients that do not depend on the data's unit:
//!
//! ```text
//! dy'  = 2 scale (y - x) std / (N D)
//! dh   = dy' W_dec^T + a
//! c    = (1 - alpha) sum_j p_j dh_j
//! dz_j = [z_j > 0] ( p_j S ((1 - alpha) dh_j - c) / tau + c + alpha dh_j [j in top k] )
//! dW_dec = h^T dy',  dW_enc = dz^T (x' - b_pre),  db_lat = sum_n dz,  db_pre = sum_n dy' - db_lat W_enc
//! ```
//!
//! With [`Activation::AbsTopk`](crate::spec::Activation::AbsTopk), `hard = z` on the k largest |z| of the row, the L1 part is
//! `a sign(h)`, and `dz_j = dh_j [j in top k]`; it has no warm-up.
//!
//! With [`Activation::BatchTopk`](crate::spec::Activation::BatchTopk) (Bussmann, Leask & Nanda 2024, arXiv 2412.06410) the
//! places belong to the batch: `hard = relu(z)` on the N k largest z of all rows (a tie goes to the lowest row, then to the
//! lowest latent), backwards as above. Outside training no row depends on others: `h_j = z_j [z_j > threshold]`, with the
//! one threshold at which the weights give k active latents per row on rows that were not trained on
//! ([`Backend::calibrate`]). The paper and its libraries average the smallest kept score of the batches instead, which
//! lags behind the weights, is not that of their moving average, and leaves rows that were not trained on with more than k.
//!
//! With [`Activation::JumpRelu`](crate::spec::Activation::JumpRelu) (Rajamanoharan et al. 2024, arXiv 2407.14435) every latent
//! has a threshold t_j, kept at 0 or above by the update:
//!
//! ```text
//! h_j  = z_j [z_j > t_j],   dz_j = [z_j > t_j] dh_j,   K(u) = [|u| < 1/2]
//! dt_j = - sum_n K((z_nj - t_j) / eps) (t_j dh_nj + c_n) / eps
//! ```
//!
//! where dh is that of the squared error, and `c_n` the penalty's gradient by row n's number of active latents L0_n:
//!
//! ```text
//! l0-target:  penalty = (mean L0 / k - 1)^2,        c_n = weight 2 (mean L0 / k - 1) / (k N)
//! l0:         penalty = mean L0,                    c_n = weight / N
//! l0-rows:    penalty = 2/k mean (L0_n - k)^2,      c_n = weight 4 (L0_n - k) / (k N)
//! ```
//!
//! A threshold whose kernel no score reaches gets no gradient. With `l0-target` and `l0-rows`, whose aim is k, the update
//! therefore also moves all thresholds together ([`penalty::common_move`]), after Adam and before they are kept at 0 or above:
//!
//! ```text
//! t_j <- max(0, t_j - Adam's step + 0.01 length clamp(ln(mean L0 / k), -1, 1))
//! ```
//!
//! where `length` is that of a usual row as the encoder sees it ([`crate::spec::row_length`]). Adam's moments do not see the move.
//!
//! With [`Activation::Relu`](crate::spec::Activation::Relu) (Bricken et al. 2023; the norm as in SAELens) `h = relu(z)` and
//! `penalty = mean over rows of sum_j h_j |W_dec_j|`: `dh_j` gets `weight |W_dec_j| / N` on entries with h > 0, and `dW_dec_j`
//! gets `weight / N  sum_n h_nj  W_dec_j / |W_dec_j|`. Where the weight seeks k, that of a step is
//! [`crate::schedule::seeking_weight`].
//!
//! With prefixes `m_1 < ... < m_P = M` (Matryoshka; Bussmann, Nabeshima, Karvonen & Nanda 2025, arXiv 2503.17547), each
//! reconstructs on its own, `y'_p = sum_{j < m_p} h_j W_dec_j + b_pre`, and the squared error of the loss is the mean of
//! those of all y_p. The paper and SAELens add them up; the mean leaves the weights beside it what they mean without
//! prefixes. Backwards, `dy'_p = 2 scale (y_p - x) std / (N D P)`, an entry in the segment s, `m_{s-1} <= j < m_s`, meets
//! `G_s = sum_{p >= s} dy'_p` in place of dy', and `db_pre = sum_n G_1 - db_lat W_enc`. The auxiliary loss takes what y_P leaves.
//!
//! The mix above is the warm-up with [`Relaxation::Softmax`](crate::spec::Relaxation::Softmax); [`relaxation`] has the others.
//!
//! The auxiliary loss (Gao et al. 2024, "Scaling and evaluating sparse autoencoders", section 2.3 and A.2) lets
//! dead latents explain what the live ones left over: with `e = x - y` held constant and `h_aux` the `aux_k`
//! largest positive z of the row among latents idle for `dead_after` rows,
//! `aux = mean over N D of (h_aux W_dec std - e)^2`. No bias is added to `h_aux W_dec`.
//!
//! Optimizer: gradient of a unit-norm decoder row is freed of its part along the row; global-norm clipping by
//! `min(1, clip / (norm + 1e-6))`; Adam (Kingma & Ba 2015) with bias correction; decoupled weight decay on the
//! matrices (Loshchilov & Hutter 2019); unit-norm rows are scaled back to length 1; moving average, whose unit-norm rows
//! are scaled back as well.

pub mod calibrate;
mod choice;
mod codes;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(not(feature = "cuda"))]
#[path = "no_cuda.rs"]
pub mod cuda;
pub mod largest;
mod look;
pub mod penalty;
pub mod relaxation;

pub use choice::{DeviceChoice, OnPaper, Selected, memory, on_paper, open, open_rank};
pub use codes::Codes;
pub use look::{Look, Pass};
pub use relaxation::Phase;

use crate::error::{Error, Result};
use crate::model::{Fill, TrainState, Weights};
use crate::noise::Noise;
use crate::rows::RowSource;
use crate::spec::{MOST_PREFIXES, ModelSpec};
use std::sync::Arc;

/// What the schedules say of one step.
#[derive(Debug, Clone, Copy)]
pub struct StepPlan<'a> {
    /// Step from 0; with the seed it names the noise.
    pub step: u64,
    /// Share of the hard code in the mix; from 1 on the soft branch is not computed.
    pub alpha: f64,
    /// Temperature of the softmax.
    pub tau: f64,
    /// Learning rate.
    pub lr: f64,
    /// Weight of the penalty, warm-up included; where the weight seeks k, a factor on it.
    pub l1: f64,
    /// The uniform numbers.
    pub noise: Noise<'a>,
}

impl ModelSpec {
    /// The whole loss in the data's unit, from its parts and the penalty's weight.
    pub fn loss(&self, weight: f64, mse: f64, penalty: f64, aux: f64) -> f64 {
        mse + weight / self.objective.loss_scale * penalty + self.objective.aux_coef * aux
    }
}

impl StepPlan<'_> {
    /// False once the mix is exactly the hard code.
    pub fn soft(&self) -> bool {
        self.alpha < 1.0
    }
}

/// What a step reports.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct StepStats {
    /// The whole loss before the update.
    pub loss: f64,
    /// Its mean squared error.
    pub mse: f64,
    /// The penalty before its weight; known without one too.
    pub l1: f64,
    /// The auxiliary loss before its weight.
    pub aux: f64,
    /// Global gradient norm before clipping, of `loss_scale` times the loss; NaN where clipping is off and it was not needed.
    pub grad_norm: f64,
}

/// Sums over evaluated rows; the caller divides.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct EvalSums {
    /// Rows.
    pub rows: u64,
    /// Sum over N D of (y - x)^2.
    pub squared: f64,
    /// Sum over N D of |y - x|.
    pub absolute: f64,
    /// Sum over rows of the cosine of x and y (0 where either is zero).
    pub cosine: f64,
    /// Active latents, summed over rows.
    pub active: u64,
    /// As `squared`, of the reconstruction by each prefix; zeros beyond the last, and where there is none.
    pub by_prefix: [f64; MOST_PREFIXES],
    /// Prefixes, P; 0 where only all latents reconstruct.
    pub prefixes: usize,
}

/// When a backend asks the source of the rows for those of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asks {
    /// In the step.
    InStep,
    /// Before it, where they are announced ([`Backend::expect`]): they are sent to a device.
    Ahead,
    /// Not at all: it has all rows.
    Never,
}

/// The arithmetic of training and evaluation. Rows are row numbers of the data the backend was made with.
///
/// Everything happens in the order of the calls: [`Backend::evaluate`] and [`Backend::state`]
/// see what all steps before them have done, collected or not.
pub trait Backend: Send {
    /// What computes: `cpu`, or a device's number and name, as in `cuda:0 NVIDIA H100`.
    fn device(&self) -> String;

    /// When it asks the source of the rows for those of a step.
    fn asks_for_rows(&self) -> Asks {
        Asks::InStep
    }

    /// Announces the rows of the next step: one that asks [`Asks::Ahead`] has them gathered and sent while the steps before
    /// are computed. Only time depends on it, and another batch may come.
    ///
    /// # Errors
    /// As for [`Backend::step`]; what the source of the rows gives.
    fn expect(&mut self, _rows: &[u32]) -> Result<()> {
        Ok(())
    }

    /// Seconds in which a device had computed all steps that were queued and the rows of the next, announced, one had not
    /// come yet: in the steps that were collected since this was last asked. 0 where nothing is announced.
    ///
    /// # Errors
    /// As for [`Backend::step`].
    fn idle(&mut self) -> Result<f64> {
        Ok(0.0)
    }

    /// Queues one training step on `rows` (N row numbers); a device may do it later, the CPU does it at once.
    /// What is borrowed is not looked at after the call.
    ///
    /// From a step on whose loss is not finite, the weights stay as they were: that step and all that follow are
    /// reported, the later ones with their own loss or with NaN, and change nothing. The first such loss is the sign; going
    /// on needs another state ([`Backend::set_state`]).
    ///
    /// # Errors
    /// Only what the device itself refuses; the CPU never fails here.
    fn step(&mut self, rows: &[u32], plan: &StepPlan<'_>) -> Result<()>;

    /// Waits for all queued steps; the statistics of each since the last call, in order.
    ///
    /// # Errors
    /// As for [`Backend::step`].
    fn collect(&mut self) -> Result<Vec<StepStats>>;

    /// Reconstructs `rows` with the inference code. Adds to `fired[j]` the number of rows on which latent `j`
    /// is active (M values).
    ///
    /// # Errors
    /// As for [`Backend::step`].
    fn evaluate(&mut self, rows: &[u32], weights: Weights, fired: &mut [u64]) -> Result<EvalSums> {
        self.evaluate_checked(rows, weights, fired, &mut || Ok(()))
    }

    /// As [`Backend::evaluate`], to the same bits; `check` is asked every few hundred rows and may end it.
    ///
    /// # Errors
    /// As for [`Backend::step`]; what `check` gives.
    fn evaluate_checked(
        &mut self,
        rows: &[u32],
        weights: Weights,
        fired: &mut [u64],
        check: &mut dyn FnMut() -> Result<()>,
    ) -> Result<EvalSums>;

    /// The inference codes of `rows`, in their order. Memory grows with the active latents: ask for some
    /// thousand rows at a time.
    ///
    /// # Errors
    /// As for [`Backend::step`].
    fn encode(&mut self, rows: &[u32], weights: Weights) -> Result<Codes>;

    /// Gives `weights` k active latents per row on average over `rows` (or as many as scores that differ allow, where some
    /// are equal) by one number: the threshold of a model of [`BatchTopk`](crate::spec::Activation::BatchTopk), what is
    /// added to the thresholds of [`JumpRelu`](crate::spec::Activation::JumpRelu), which stay at 0 or above, or taken from the
    /// biases of [`Relu`](crate::spec::Activation::Relu). Does nothing to a model that has k places per row, or does not aim at k
    /// ([`ModelSpec::seeks_k`]).
    ///
    /// # Errors
    /// As for [`Backend::step`].
    fn calibrate(&mut self, rows: &[u32], weights: Weights) -> Result<()>;

    /// Goes on with other data: row numbers are those of `data` from here on. Width (D) and type of the values must
    /// be those of the data before.
    ///
    /// # Errors
    /// As for [`Backend::step`]; data of another width or type.
    fn set_data(&mut self, data: Arc<dyn RowSource>) -> Result<()>;

    /// The whole state, as a checkpoint holds it.
    ///
    /// # Errors
    /// As for [`Backend::step`].
    fn state(&mut self) -> Result<std::borrow::Cow<'_, TrainState>>;

    /// Goes on from another state of the same shape, that after `step` steps: `fill` gives each tensor, which is written
    /// into the memory that the old one has. A loss that was not finite is forgotten.
    ///
    /// # Errors
    /// What `fill` gives: the state is then a mixture, of no use until another one is set. As for [`Backend::step`].
    fn set_state(&mut self, step: u64, fill: &mut Fill<'_>) -> Result<()>;
}

/// Fails unless `new` can take the place of `old` in a backend.
fn check_same_kind(old: &dyn RowSource, new: &dyn RowSource) -> Result<()> {
    if (old.d_in(), old.dtype()) == (new.d_in(), new.dtype()) {
        return Ok(());
    }
    Err(Error::Failed(format!(
        "rows of {} {} values came after rows of {} {}; please report this",
        new.d_in(),
        new.dtype(),
        old.d_in(),
        old.dtype()
    )))
}

/// Decay of the moving average at a step: it starts low, so that the average forgets the start weights
/// (`min(decay, (1 + s) / (10 + s))`, as in TensorFlow's moving average).
pub fn ema_decay(decay: f64, step: u64) -> f64 {
    decay.min((1.0 + step as f64) / (10.0 + step as f64))
}
