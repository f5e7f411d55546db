//! Defaults that belong together.

use super::{InitKind, NumberOr, Options, Word};
use crate::spec::{LrSchedule, PreBias, Relaxation, choices};

choices! {
    /// A set of defaults with a source.
    pub enum Preset {
        /// Latents that start from training rows, LapSum warm-up annealed to exact top-k, moving average: the best of the
        /// study of recipes
        DataTopk = "data-topk",
        /// Gumbel-softmax warm-up annealed to exact top-k, PyTorch's start
        RelaxedTopk = "relaxed-topk",
        /// Exact top-k from the first step, with the options of Gao et al. 2024: AuxK (of 64 latents), unit-norm decoder,
        /// b_pre from the geometric median, clipping, moving average; at a higher learning rate than theirs
        Topk = "topk",
        /// L1 and top-k, full batches, no normalisation and no pre-bias
        SparseL1 = "sparse-l1",
    }
}

impl Preset {
    /// The one that is taken where none is named.
    pub const DEFAULT: Self = Self::DataTopk;

    /// Whether it repeats a published model to the letter, whose results depend on the data's unit.
    pub fn is_literal(self) -> bool {
        matches!(self, Self::RelaxedTopk | Self::SparseL1)
    }

    /// What the preset sets, for rows of `d_in` values. What it leaves open has one default for all presets, in
    /// [`super::Config::resolve`].
    pub fn options(self, d_in: usize) -> Options {
        match self {
            Self::DataTopk => Options {
                init: Some(InitKind::Data),
                pre_bias: Some(PreBias::Mean),
                lr: Some(NumberOr::Number(3e-3)),
                weight_decay: Some(0.1),
                adam_b2: Some(0.99),
                // Of a loss divided by the variance. Less of it and latents that fire rarely are moved until they die.
                adam_eps: Some(8e-6),
                relaxation: Some(Relaxation::Lapsum),
                tau_start: Some(0.5),
                ema: Some(0.999),
                early_stop: Some(5),
                ..Options::default()
            },
            Self::RelaxedTopk => Options { relaxation: Some(Relaxation::Softmax), ..Options::default() },
            Self::Topk => Options {
                // Not `auto`, Gao et al.'s, which is too low for the few steps that embeddings get: test FVU on MiniLM, ProtT5
                // and UniRep falls by 19 to 46 % in 300 steps, by 6 % in 2000.
                lr: Some(NumberOr::Number(3e-3)),
                init: Some(InitKind::UnitNorm),
                pre_bias: Some(PreBias::Median),
                clip_norm: Some(1.0),
                ema: Some(0.999),
                adam_eps: Some(6.25e-10),
                // Not D / 2: as good a model, in half of the time where most latents are dead.
                aux_k: Some(64.min(d_in / 2)),
                unit_norm_decoder: Some(true),
                ..Options::default()
            },
            Self::SparseL1 => Options {
                latents: Some(2048),
                k: Some(30),
                normalize: Some(false),
                init: Some(InitKind::Xavier),
                init_gain: Some(0.1),
                pre_bias: Some(PreBias::None),
                epochs: Some(200.0),
                batch_size: Some(NumberOr::Word(Word::Full)),
                lr: Some(NumberOr::Number(5e-4)),
                lr_schedule: Some(LrSchedule::Cosine),
                l1: Some(0.1),
                l1_warmup: Some(50),
                clip_norm: Some(1.0),
                ..Options::default()
            },
        }
    }
}
