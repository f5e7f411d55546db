//! Options as a person gives them, on the command line or in a TOML file.

use super::{Config, Preset};
use crate::backend::{Inference, NORM_EPS, Relaxation};
use crate::error::{Error, Result};
use crate::schedule::LrSchedule;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// How weights start (command-line form; the gain is an option of its own).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum InitKind {
    /// PyTorch's linear layers.
    Linear,
    /// Xavier uniform with a gain; the decoder starts as the encoder's transpose.
    Xavier,
    /// Encoder rows on the unit sphere; the decoder starts as the encoder's transpose.
    UnitNorm,
    /// Encoder rows are training rows less b_pre, or what the other latents leave of them; the decoder starts as the
    /// encoder's transpose, both as long as makes the first reconstructions fit best.
    Data,
}

/// What b_pre is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum PreBias {
    /// No bias: zero and never trained.
    None,
    /// Starts at zero.
    Zero,
    /// Starts at the mean of (normalised) training rows.
    Mean,
    /// Starts at their geometric median.
    Median,
}

/// Arithmetic of the dense products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// float32.
    F32,
    /// TensorFloat-32 (GPU only).
    Tf32,
    /// bfloat16 operands, float32 sums and weights (GPU only).
    Bf16,
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Tf32 => "tf32",
            Self::Bf16 => "bf16",
        })
    }
}

/// A number or a word that stands for one found later.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum NumberOr<T> {
    /// The number.
    Number(T),
    /// `auto` or `full`: settled from the data.
    Word(Word),
}

/// The words of [`NumberOr`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Word {
    /// Found from the model's size.
    Auto,
    /// All training rows.
    Full,
}

impl<T: FromStr> FromStr for NumberOr<T> {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "auto" => Ok(Self::Word(Word::Auto)),
            "full" => Ok(Self::Word(Word::Full)),
            _ => text
                .parse()
                .map(Self::Number)
                .map_err(|_| format!("`{text}` is neither a number nor a word known here")),
        }
    }
}

/// What a person may set; the same keys in a configuration file (`latents = 4096`, `lr-schedule = "cosine"`).
/// Real numbers take hyphens, as clap does not see that -1e-3 is one; what is out of range is told by [`super::Config`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Options {
    /// Data files, set by position on the command line
    #[arg(skip)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<Vec<PathBuf>>,
    /// Dataset or group inside the files [default: found by itself]
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dataset: Option<String>,
    #[allow(missing_docs)]
    #[arg(skip)]
    pub skip_bad_rows: Option<bool>,
    /// Defaults to start from [default: data-topk]
    #[arg(long)]
    pub preset: Option<Preset>,
    /// Latents, M [default: 8 D; sparse-l1: 2048]
    #[arg(long, value_name = "M")]
    pub latents: Option<usize>,
    /// Active latents a row, k [default: 32; sparse-l1: 30]
    #[arg(short, long, value_name = "K")]
    pub k: Option<usize>,
    #[allow(missing_docs)]
    #[arg(skip)]
    pub tied: Option<bool>,
    #[allow(missing_docs)]
    #[arg(skip)]
    pub normalize: Option<bool>,
    /// Added to each row's standard deviation [default: 1e-5, or 2e-4 of the usual deviation where that is below 0.01; relaxed-topk: 1e-5]
    #[arg(long, value_name = "EPS", allow_hyphen_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub norm_eps: Option<f64>,
    /// Factor on the loss before gradients are taken, so that they do not depend on the data's unit; reported losses are without it [default: 1 / variance of the training rows; relaxed-topk, sparse-l1: 1]
    #[arg(long, value_name = "FACTOR", allow_hyphen_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<f64>,
    /// Codes outside training: relu of the k largest scores, or of all [default: topk]
    #[arg(long)]
    pub inference: Option<Inference>,
    /// Start of the weights [default: data; relaxed-topk: linear; topk: unit-norm; sparse-l1: xavier]
    #[arg(long)]
    pub init: Option<InitKind>,
    /// Gain of --init xavier [default: 1; sparse-l1: 0.1]
    #[arg(long, value_name = "GAIN", allow_hyphen_values = true)]
    pub init_gain: Option<f64>,
    /// The pre-bias [default: mean; relaxed-topk: zero; topk: median; sparse-l1: none]
    #[arg(long)]
    pub pre_bias: Option<PreBias>,
    /// Training steps [default: 5000; sparse-l1: 200 epochs]
    #[arg(long, value_name = "S", conflicts_with = "epochs")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// Passes over the training rows, instead of --steps
    #[arg(long, value_name = "E", allow_hyphen_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epochs: Option<f64>,
    /// Rows a step, N, or `full` [default: 512 or all rows if fewer; sparse-l1: full]
    #[arg(long, value_name = "N")]
    pub batch_size: Option<NumberOr<usize>>,
    /// Learning rate, or `auto` for 2e-4 / sqrt(M / 2^14) [default: 0.003; relaxed-topk: 0.001; topk: auto; sparse-l1: 0.0005]
    #[arg(long, value_name = "LR", allow_hyphen_values = true)]
    pub lr: Option<NumberOr<f64>>,
    /// Learning rate after its warm-up [default: constant; sparse-l1: cosine]
    #[arg(long)]
    pub lr_schedule: Option<LrSchedule>,
    /// Steps over which the learning rate rises from 0 [default: 0]
    #[arg(long, value_name = "STEPS")]
    pub lr_warmup: Option<u64>,
    /// What stands in for the exact top k during the warm-up [default: lapsum; relaxed-topk: softmax; topk, sparse-l1: none]
    #[arg(long)]
    pub relaxation: Option<Relaxation>,
    /// Candidates a row in the warm-up of subset, lapsum and anneal-k [default: 4 k, at most 1024]
    #[arg(long, value_name = "P")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<usize>,
    /// Steps of the relaxed warm-up, T; 0 is none [default: 2000 or half the steps if fewer; without a relaxation 0]
    #[arg(long, value_name = "T")]
    pub anneal_steps: Option<u64>,
    /// Temperature at the first step [default: 0.5; other presets: 1]
    #[arg(long, value_name = "TAU", allow_hyphen_values = true)]
    pub tau_start: Option<f64>,
    /// Temperature at the end of the warm-up [default: 0.05]
    #[arg(long, value_name = "TAU", allow_hyphen_values = true)]
    pub tau_end: Option<f64>,
    /// Weight of the mean absolute code, beside --loss-scale times the squared error [default: 0; sparse-l1: 0.1]
    #[arg(long, value_name = "LAMBDA", allow_hyphen_values = true)]
    pub l1: Option<f64>,
    /// Epochs over which the L1 weight rises from 0 [default: 0; sparse-l1: 50]
    #[arg(long, value_name = "EPOCHS")]
    pub l1_warmup: Option<u64>,
    /// Largest global gradient norm, of --loss-scale times the loss; 0 is no clipping [default: 0; topk, sparse-l1: 1]
    #[arg(long, value_name = "NORM", allow_hyphen_values = true)]
    pub clip_norm: Option<f64>,
    /// Decoupled weight decay of the matrices [default: 0.1; other presets: 0]
    #[arg(long, value_name = "WD", allow_hyphen_values = true)]
    pub weight_decay: Option<f64>,
    /// Adam's decay of the first moment [default: 0.9]
    #[arg(long, value_name = "B1", allow_hyphen_values = true)]
    pub adam_b1: Option<f64>,
    /// Adam's decay of the second moment [default: 0.99; other presets: 0.999]
    #[arg(long, value_name = "B2", allow_hyphen_values = true)]
    pub adam_b2: Option<f64>,
    /// Added to the root of Adam's second moment [default: 8e-6; topk: 6.25e-10; other presets: 1e-8]
    #[arg(long, value_name = "EPS", allow_hyphen_values = true)]
    pub adam_eps: Option<f64>,
    /// Dead latents a row that the auxiliary loss uses; 0 is none [default: 0; topk: D/2]
    #[arg(long, value_name = "K")]
    pub aux_k: Option<usize>,
    /// Weight of the auxiliary loss [default: 1/32]
    #[arg(long, value_name = "COEF", allow_hyphen_values = true)]
    pub aux_coef: Option<f64>,
    /// Rows without firing after which a latent is dead to the auxiliary loss [default: two epochs, at most 10 million]
    #[arg(long, value_name = "ROWS")]
    pub dead_after: Option<u32>,
    /// Keep decoder rows at length 1 [default: false; topk: true]
    #[arg(long, value_name = "BOOL")]
    pub unit_norm_decoder: Option<bool>,
    /// Decay of a moving average of the weights, used for evaluation and export; 0 is none [default: 0.999; relaxed-topk, sparse-l1: 0]
    #[arg(long, value_name = "DECAY", allow_hyphen_values = true)]
    pub ema: Option<f64>,
    /// Stop after this many evaluations without a better validation FVU and keep the best; 0 is never [default: 5; other presets: 0]
    #[arg(long, value_name = "EVALS")]
    pub early_stop: Option<u64>,
    /// Seed of split, start, order and noise [default: 0]
    #[arg(long, value_name = "SEED")]
    pub seed: Option<u64>,
    /// Seed of the split alone, for runs of several seeds on the same split [default: as --seed]
    #[arg(long, value_name = "SEED")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub split_seed: Option<u64>,
    /// Steps between evaluations [default: a twentieth of the steps]
    #[arg(long, value_name = "STEPS")]
    pub eval_every: Option<u64>,
    /// Most rows of each split in an evaluation on the way; the final one takes all [default: 20000]
    #[arg(long, value_name = "ROWS")]
    pub eval_rows: Option<usize>,
    /// Steps between checkpoints [default: as --eval-every]
    #[arg(long, value_name = "STEPS")]
    pub checkpoint_every: Option<u64>,
    /// Checkpoints kept beside the best one [default: 2]
    #[arg(long, value_name = "COUNT")]
    pub keep_checkpoints: Option<usize>,
    /// Arithmetic of the dense products; tf32 and bf16 on a GPU only. Weights and moments are float32 always [default: f32]
    #[arg(long)]
    pub precision: Option<Precision>,
}

impl Options {
    /// The seed that makes the split.
    pub fn seed_of_split(&self) -> u64 {
        self.split_seed.or(self.seed).unwrap_or(0)
    }

    /// Reads a TOML file.
    ///
    /// # Errors
    /// A file that cannot be read; a key or value that is not an option (the message names line and key).
    pub fn from_toml(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path, "read"))?;
        let options: Result<Self> = toml::from_str(&text).map_err(|e| {
            let line = e.span().map_or(1, |s| text[..s.start].matches('\n').count() + 1);
            // The list of all options that serde adds is better read in the help.
            let message = e.message().replace('\n', " ");
            let what = message.split(", expected one of").next().unwrap_or(&message);
            Error::Usage(format!(
                "{}: line {line}: {what}; `sae train --help` lists the options",
                path.display()
            ))
        });
        let mut options = options?;
        if text.starts_with(Config::FIRST_WORDS) {
            options.settle_as_0_1_0();
        }
        Ok(options)
    }

    /// Gives the settings that version 0.1.0 did not have the values of its arithmetic. For options that are resolved:
    /// a file that leaves these out was written by 0.1.0, or has these values.
    pub fn settle_as_0_1_0(&mut self) {
        self.loss_scale.get_or_insert(1.0);
        self.norm_eps.get_or_insert(NORM_EPS);
    }

    /// Everything set in `self`, then what only `base` sets.
    pub fn or(self, base: Self) -> Self {
        // One way of giving the length hides the other.
        let (steps, epochs) = match (self.steps, self.epochs) {
            (None, None) => (base.steps, base.epochs),
            given => given,
        };
        macro_rules! pick {
            ($($field:ident),*) => { Self { steps, epochs, $($field: self.$field.or(base.$field)),* } };
        }
        pick!(
            data,
            dataset,
            skip_bad_rows,
            preset,
            latents,
            k,
            tied,
            normalize,
            norm_eps,
            loss_scale,
            inference,
            init,
            init_gain,
            pre_bias,
            batch_size,
            lr,
            lr_schedule,
            lr_warmup,
            relaxation,
            pool,
            anneal_steps,
            tau_start,
            tau_end,
            l1,
            l1_warmup,
            clip_norm,
            weight_decay,
            adam_b1,
            adam_b2,
            adam_eps,
            aux_k,
            aux_coef,
            dead_after,
            unit_norm_decoder,
            ema,
            early_stop,
            seed,
            split_seed,
            eval_every,
            eval_rows,
            checkpoint_every,
            keep_checkpoints,
            precision
        )
    }
}
