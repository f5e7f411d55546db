//! The ground floor: what a model is and how it is trained, as plain data. Nothing here knows files, devices, options
//! or a command line, and everything above may use it.
//!
//! | type | holds |
//! | --- | --- |
//! | [`Architecture`] | all it takes to run a model, beside its tensors |
//! | [`Forward`] | the part of it that has no shapes: normalisation and activation |
//! | [`Objective`] | the loss |
//! | [`Warmup`] | what stands in for the exact top k at the start of training |
//! | [`Optimizer`] | Adam, clipping, decay, the moving average |
//! | [`ModelSpec`] | all that a backend needs for a step |
//! | [`Schedule`] | how long, and the learning rate, temperature and weights over the steps |
//! | [`Training`] | all of it |

mod choice;
mod prefixes;

pub use choice::Choice;
pub(crate) use choice::choices;
pub use prefixes::{MOST_PREFIXES, Prefixes};

use serde::{Deserialize, Serialize};

/// Added to the standard deviation of a row, outside the root, unless the rows are small beside it.
pub const NORM_EPS: f64 = 1e-5;

choices! {
    /// What makes a code of scores.
    pub enum Activation {
        /// relu of the k largest scores
        Topk = "topk",
        /// The k scores that are largest in magnitude, with their signs (sparsify's `signed`)
        AbsTopk = "abs-topk",
        /// relu of the N k largest scores of a batch; outside training, of the scores above one threshold
        BatchTopk = "batch-topk",
        /// Scores above a threshold per latent, which is trained
        JumpRelu = "jumprelu",
        /// relu of all scores, kept few by an L1 part of the loss
        Relu = "relu",
    }
}

impl Activation {
    /// By what a score competes for a place among the k.
    pub fn rank(self, z: f64) -> f64 {
        match self {
            Self::AbsTopk => z.abs(),
            _ => z,
        }
    }

    /// The value of a score that has a place; 0 is no entry.
    pub fn value(self, z: f64) -> f64 {
        match self {
            Self::AbsTopk => z,
            _ if z <= 0.0 => 0.0,
            _ => z,
        }
    }

    /// True where each row has k places, in training and outside it.
    pub fn is_per_row(self) -> bool {
        matches!(self, Self::Topk | Self::AbsTopk)
    }

    /// How codes are made outside training, unless another way is asked for.
    pub fn inference(self) -> Inference {
        match self {
            Self::Topk | Self::AbsTopk => Inference::Topk,
            Self::BatchTopk | Self::JumpRelu => Inference::Threshold,
            Self::Relu => Inference::Relu,
        }
    }

    /// The penalty that keeps codes sparse, unless another one is asked for.
    pub fn penalty(self) -> Penalty {
        match self {
            Self::Topk | Self::AbsTopk | Self::BatchTopk => Penalty::MeanCode,
            Self::JumpRelu => Penalty::L0Target,
            Self::Relu => Penalty::L1,
        }
    }
}

choices! {
    /// How codes are made outside training.
    pub enum Inference {
        /// The k scores of the activation
        Topk = "topk",
        /// relu on all scores (what the sparse-l1 source does)
        Relu = "relu",
        /// The scores above the latents' thresholds
        Threshold = "threshold",
    }
}

choices! {
    /// The part of the loss that keeps codes sparse; the formulas are in [`crate::backend`].
    pub enum Penalty {
        /// Mean absolute value over N M of the code
        MeanCode = "mean-code",
        /// Sum of the code's values, each times the length of its decoder row
        L1 = "l1",
        /// (L0 / k - 1)^2 of the batch's mean number of active latents
        L0Target = "l0-target",
        /// Active latents per row
        L0 = "l0",
        /// 2 / k (L0 - k)^2 of each row's number of active latents
        L0Rows = "l0-rows",
    }
}

impl Penalty {
    /// True where the gradient goes to thresholds alone, through the kernel of their bandwidth.
    pub fn counts(self) -> bool {
        matches!(self, Self::L0Target | Self::L0 | Self::L0Rows)
    }
}

choices! {
    /// What stands in for the exact top k during the warm-up; the formulas are in [`crate::backend::relaxation`].
    pub enum Relaxation {
        /// Gumbel softmax times the sum of positive scores, mixed with the top k (dense)
        Softmax = "softmax",
        /// Weights that sum to k over the candidates, by the Laplace distribution (LapSum, 2025)
        Lapsum = "lapsum",
        /// The exact top k of a larger k that falls to k
        AnnealK = "anneal-k",
        /// No warm-up: the exact top k from the first step
        None = "none",
    }
}

impl Relaxation {
    /// True where a row's largest scores beyond the top k take part.
    pub fn has_candidates(self) -> bool {
        self.is_gated() || self == Self::AnnealK
    }

    /// True where weights are computed among candidates.
    pub fn is_gated(self) -> bool {
        self == Self::Lapsum
    }
}

choices! {
    /// Shape of the learning rate after its warm-up.
    pub enum LrSchedule {
        /// Stays
        Constant = "constant",
        /// Half a cosine down to 0 at the last step
        Cosine = "cosine",
        /// A line down to 0 at the last step
        Linear = "linear",
    }
}

choices! {
    /// Arithmetic of the dense products.
    pub enum Precision {
        /// float32
        F32 = "f32",
        /// TensorFloat-32 (GPU only)
        Tf32 = "tf32",
        /// bfloat16 operands, float32 sums and weights (GPU only)
        Bf16 = "bf16",
    }
}

choices! {
    /// What b_pre is.
    pub enum PreBias {
        /// No bias: zero and never trained
        None = "none",
        /// Starts at zero
        Zero = "zero",
        /// Starts at the mean of (normalised) training rows
        Mean = "mean",
        /// Starts at their geometric median
        Median = "median",
    }
}

/// How weights start.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// PyTorch's linear layers.
    Linear,
    /// Xavier uniform; the decoder starts as the encoder's transpose.
    Xavier {
        /// Factor of the bound.
        gain: f32,
    },
    /// Encoder rows on the unit sphere; the decoder starts as the encoder's transpose.
    UnitNorm,
    /// Encoder rows are training rows less b_pre, or what the other latents leave of them; the decoder starts as the
    /// encoder's transpose, both as long as makes the first reconstructions fit best.
    Data,
}

/// How a row becomes its reconstruction, beside the tensors.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Forward {
    /// Active latents, k.
    pub k: usize,
    /// What makes a code of scores.
    pub activation: Activation,
    /// Codes outside training.
    pub inference: Inference,
    /// Per-sample LayerNorm on or off.
    pub normalize: bool,
    /// Added to a row's standard deviation.
    pub norm_eps: f64,
    /// Numbers of latents that reconstruct on their own (Matryoshka); empty where only all of them do.
    #[serde(default, skip_serializing_if = "Prefixes::is_empty")]
    pub prefixes: Prefixes,
}

impl Forward {
    /// True where the model has a threshold per latent.
    pub fn has_threshold(&self) -> bool {
        self.inference == Inference::Threshold
    }

    /// What is added to a row's standard deviation; none where rows are not normalised.
    pub fn row_eps(&self) -> Option<f64> {
        self.normalize.then_some(self.norm_eps)
    }
}

/// What it takes to run a model, beside the values of its tensors.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Architecture {
    /// Inputs, D.
    pub d_in: usize,
    /// Latents, M.
    pub n_latents: usize,
    /// True: the decoder is the encoder's transpose.
    pub tied: bool,
    /// Normalisation and activation.
    #[serde(flatten)]
    pub forward: Forward,
}

/// Usual length of a row as the encoder sees it: sqrt(D) where rows are normalised, else that of the training rows about
/// their mean, whose variance is one over the scale of the loss.
pub fn row_length(d_in: usize, normalize: bool, loss_scale: f64) -> f64 {
    let variance = if normalize { 1.0 } else { 1.0 / loss_scale };
    (d_in as f64 * variance).sqrt()
}

/// The loss, but for the weight of its penalty, which a [`Schedule`] has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Objective {
    /// Gradients are those of this many times the loss.
    pub loss_scale: f64,
    /// Dead latents that the auxiliary loss uses per row; 0 is none.
    pub aux_k: usize,
    /// Weight of the auxiliary loss.
    pub aux_coef: f64,
    /// Rows without firing after which a latent is dead to the auxiliary loss.
    pub dead_after: u32,
    /// What keeps codes sparse beside, or in place of, a number of places.
    pub penalty: Penalty,
    /// The penalty's weight is not that of the [`Schedule`] but rises while a batch has more than k active latents per row,
    /// and falls while it has fewer: [`crate::schedule::next_weight`].
    pub seeks_k: bool,
    /// Width eps of the kernel through which thresholds are trained, in units of the scores.
    pub bandwidth: f64,
}

/// The start of training, where the code is not the exact top k yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Warmup {
    /// What stands in for the exact top k.
    pub relaxation: Relaxation,
    /// Candidates per row where the relaxation has them; less than k counts as k.
    pub pool: usize,
}

/// How gradients change weights, but for the learning rate, which a [`Schedule`] has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Optimizer {
    /// Adam's decay of the first moment.
    pub beta1: f64,
    /// Adam's decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub adam_eps: f64,
    /// Decoupled weight decay on the matrices; 0 is none.
    pub weight_decay: f64,
    /// Largest global gradient norm.
    pub clip_norm: Option<f64>,
    /// False keeps `b_pre` at its start.
    pub train_pre_bias: bool,
    /// Decoder rows kept at length 1.
    pub unit_norm_decoder: bool,
    /// Decay of the weights' moving average, where there is one.
    pub ema: Option<f64>,
}

/// What stays the same for all steps of a run: all that a backend needs.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSpec {
    /// Normalisation and activation.
    pub forward: Forward,
    /// The loss.
    pub objective: Objective,
    /// The relaxed start.
    pub warmup: Warmup,
    /// The update.
    pub optimizer: Optimizer,
}

impl ModelSpec {
    /// The plain model: normalised rows, a trained pre-bias, Adam as published, and nothing else switched on.
    pub fn plain(k: usize) -> Self {
        let (activation, inference) = (Activation::Topk, Inference::Topk);
        let prefixes = Prefixes::default();
        let forward = Forward { k, activation, inference, normalize: true, norm_eps: NORM_EPS, prefixes };
        let warmup = Warmup { relaxation: Relaxation::Softmax, pool: 8 * k };
        Self { warmup, ..Self::to_run(forward) }
    }

    /// True where the number of active latents per row is not fixed, but aims at k.
    pub fn seeks_k(&self) -> bool {
        match self.forward.activation {
            Activation::Topk | Activation::AbsTopk => false,
            Activation::BatchTopk => true,
            Activation::JumpRelu => matches!(self.objective.penalty, Penalty::L0Target | Penalty::L0Rows),
            Activation::Relu => self.objective.seeks_k,
        }
    }

    /// The same with what `change` changes.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// What it takes to run a model. Training with it would be as with [`ModelSpec::plain`], without a warm-up.
    pub fn to_run(forward: Forward) -> Self {
        Self {
            forward,
            objective: Objective {
                loss_scale: 1.0,
                aux_k: 0,
                aux_coef: 1.0 / 32.0,
                dead_after: u32::MAX,
                penalty: forward.activation.penalty(),
                seeks_k: false,
                bandwidth: 0.05,
            },
            warmup: Warmup { relaxation: Relaxation::None, pool: forward.k },
            optimizer: Optimizer {
                beta1: 0.9,
                beta2: 0.999,
                adam_eps: 1e-8,
                weight_decay: 0.0,
                clip_norm: None,
                train_pre_bias: true,
                unit_norm_decoder: false,
                ema: None,
            },
        }
    }
}

/// How training goes over its steps; the functions are in [`crate::schedule`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// Steps in all.
    pub steps: u64,
    /// Rows per step, N.
    pub batch_size: usize,
    /// Learning rate.
    pub lr: f64,
    /// Its shape.
    pub lr_schedule: LrSchedule,
    /// Its warm-up in steps.
    pub lr_warmup: u64,
    /// Steps of the relaxed warm-up, T.
    pub anneal_steps: u64,
    /// Temperature at step 0.
    pub tau_start: f64,
    /// Temperature at step T.
    pub tau_end: f64,
    /// Weight of the penalty.
    pub l1: f64,
    /// Its warm-up in epochs.
    pub l1_warmup: u64,
    /// Its warm-up in steps.
    pub l0_warmup: u64,
}

/// A whole training: the model, how it starts, how it goes, and how often it is looked at.
#[derive(Debug, Clone, PartialEq)]
pub struct Training {
    /// Inputs, D.
    pub d_in: usize,
    /// Latents, M.
    pub n_latents: usize,
    /// True: the decoder is the encoder's transpose.
    pub tied: bool,
    /// What a step computes.
    pub model: ModelSpec,
    /// How it goes over the steps.
    pub schedule: Schedule,
    /// Start of the weights.
    pub init: Init,
    /// Start of the pre-bias.
    pub pre_bias: PreBias,
    /// Seed of start, order and noise.
    pub seed: u64,
    /// Arithmetic of the dense products.
    pub precision: Precision,
    /// Steps between evaluations.
    pub eval_every: u64,
    /// Most rows of a split in an evaluation on the way.
    pub eval_rows: usize,
    /// Most rows of a split in the figures at the end.
    pub final_rows: usize,
    /// Evaluations without a better validation FVU before stopping; 0 is never.
    pub early_stop: u64,
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
}

impl Training {
    /// Number of weights and biases.
    pub fn n_params(&self) -> u64 {
        // `Config` keeps the product far below the limit.
        let matrices = if self.tied { 1 } else { 2 };
        let biases = if self.model.forward.has_threshold() { 2 } else { 1 };
        (matrices * self.n_latents * self.d_in + biases * self.n_latents + self.d_in) as u64
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_is_written_alike_everywhere() {
        for &choice in Relaxation::ALL {
            assert_eq!(Relaxation::from_name(choice.name()), Ok(choice));
            assert_eq!(serde_json::to_string(&choice).unwrap(), format!("\"{choice}\""));
            assert!(!choice.about().is_empty());
        }
        let error = Precision::from_name("f16").unwrap_err();
        assert_eq!(error, "`f16` is not one of f32, tf32, bf16");
    }

    #[test]
    fn an_architecture_is_one_flat_object() {
        let forward = ModelSpec::plain(3).forward;
        let json =
            serde_json::to_string(&Architecture { d_in: 5, n_latents: 7, tied: true, forward }).unwrap();
        let want = r#"{"d_in":5,"n_latents":7,"tied":true,"k":3,"activation":"topk","inference":"topk","normalize":true,"norm_eps":0.00001}"#;
        assert_eq!(json, want);
    }
}
