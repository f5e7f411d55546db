//! Options as a person gives them, on the command line or in a TOML file.

use super::table::{OptionRow, OptionValue, options};
use super::{Config, Preset};
use crate::data::{AxisPicks, BadRows, LoadOptions};
use crate::error::{Error, Result};
use crate::spec::{
    Activation, Inference, LrSchedule, NORM_EPS, Penalty, PreBias, Precision, Prefixes, Relaxation, choices,
};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::str::FromStr;

choices! {
    /// How weights start; the gain of `xavier` is an option of its own.
    pub enum InitKind {
        /// PyTorch's linear layers
        Linear = "linear",
        /// Xavier uniform with a gain; the decoder starts as the encoder's transpose
        Xavier = "xavier",
        /// Encoder rows on the unit sphere; the decoder starts as the encoder's transpose
        UnitNorm = "unit-norm",
        /// Encoder rows are training rows less b_pre, or what the other latents leave of them; the decoder starts as the
        /// encoder's transpose, both as long as makes the first reconstructions fit best
        Data = "data",
    }
}

choices! {
    /// Types of values that a file does not name.
    pub enum StoredAs {
        /// The bits of bfloat16 numbers
        Bfloat16 = "bfloat16",
    }
}

/// How much memory rows may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "SizeText")]
pub enum RowMemory {
    /// As much as they need.
    All,
    /// At most this many bytes.
    Bytes(u64),
}

impl RowMemory {
    /// Bytes, at most; `u64::MAX` where there is no limit.
    pub fn bytes(self) -> u64 {
        match self {
            Self::All => u64::MAX,
            Self::Bytes(bytes) => bytes,
        }
    }
}

/// As a configuration file has it.
#[derive(Deserialize)]
#[serde(untagged)]
enum SizeText {
    Bytes(u64),
    Text(String),
}

impl TryFrom<SizeText> for RowMemory {
    type Error = String;
    fn try_from(text: SizeText) -> std::result::Result<Self, String> {
        match text {
            SizeText::Bytes(bytes) => Ok(Self::Bytes(bytes)),
            SizeText::Text(text) => text.parse(),
        }
    }
}

impl From<RowMemory> for String {
    fn from(memory: RowMemory) -> Self {
        memory.to_string()
    }
}

impl FromStr for RowMemory {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        if text == "all" {
            return Ok(Self::All);
        }
        let wrong = || format!("`{text}` is not a size such as 8G or 500M, nor `all`");
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let (letter, rest) = unit.split_at(unit.len().min(1));
        let power = match letter.to_ascii_uppercase().as_str() {
            "" | "B" => 0,
            "K" => 1,
            "M" => 2,
            "G" => 3,
            "T" => 4,
            _ => return Err(wrong()),
        };
        // Decimal where it is written so: GB.
        let base: f64 = match rest {
            "" | "iB" => 1024.0,
            "B" => 1000.0,
            _ => return Err(wrong()),
        };
        let bytes = number * base.powi(power);
        if bytes < 1.0 || bytes >= u64::MAX as f64 { Err(wrong()) } else { Ok(Self::Bytes(bytes as u64)) }
    }
}

impl std::fmt::Display for RowMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Bytes(bytes) => write!(f, "{bytes}"),
        }
    }
}

/// Which latents reconstruct on their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum PrefixList {
    /// Those of the published demo.
    Auto,
    /// Rising numbers of latents; all of them are added.
    Given(Prefixes),
}

impl FromStr for PrefixList {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        if text == "auto" { Ok(Self::Auto) } else { text.parse().map(Self::Given) }
    }
}

impl TryFrom<String> for PrefixList {
    type Error = String;
    fn try_from(text: String) -> std::result::Result<Self, String> {
        text.parse()
    }
}

impl std::fmt::Display for PrefixList {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Given(prefixes) => write!(f, "{prefixes}"),
        }
    }
}

impl From<PrefixList> for String {
    fn from(list: PrefixList) -> Self {
        list.to_string()
    }
}

/// A number or a word that stands for one found later.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum NumberOr<T> {
    /// The number.
    Number(T),
    /// `auto`, `full` or `all`: settled from the data.
    Word(Word),
}

choices! {
    /// The words of [`NumberOr`].
    pub enum Word {
        /// Found from the model's size
        Auto = "auto",
        /// All training rows
        Full = "full",
        /// All rows of each split
        All = "all",
    }
}

impl<T: FromStr> FromStr for NumberOr<T> {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "auto" => Ok(Self::Word(Word::Auto)),
            "full" => Ok(Self::Word(Word::Full)),
            "all" => Ok(Self::Word(Word::All)),
            _ => text
                .parse()
                .map(Self::Number)
                .map_err(|_| format!("`{text}` is neither a number nor a word known here")),
        }
    }
}

/// Weights and steps are float32, so a larger number would become infinite there.
pub(super) const MOST: f64 = f32::MAX as f64;
/// Stands for "above 0".
pub(super) const ABOVE_0: f64 = f32::MIN_POSITIVE as f64;

options! {
    "Data" {
        /// Dataset or group inside the files that holds the rows; `*` stands for one component of a path
        dataset: String, "PATTERN", depends [("", "found by itself")];
        /// Ids of the rows: a dataset beside the matrix, @ and an attribute, a .txt file with one on each line, a .npy array,
        /// `row` for row numbers, or `file` for the file's name
        ids: String, "NAME", depends [("", "found by itself")];
        /// Take an axis at one index, as in 0=33 (both count from 0); several with commas
        index: AxisPicks, "AXIS=I", depends [("", "none")];
        /// Rows are the last axis of a matrix
        transpose: bool, default false, switch "";
        /// What integers of 16 bits stand for
        stored_as: StoredAs, "TYPE", depends [("", "integers")];
        /// What says which ids stay in one split: a dataset beside the matrix, or @ and an attribute of each dataset
        group_by: String, "NAME", depends [("", "each id alone")];
        /// Table of id and group (or group and id, as MMseqs2 writes it): a group stays in one split
        groups: String, "FILE", depends [("", "each id alone")];
        /// The columns of --groups are group and id
        groups_reversed: bool, default false, switch "";
        /// Table of id and split (train, val, test), in place of a split by the ids' hashes
        splits: String, "FILE", depends [("", "by hash")];
        /// Drop and count rows that are not finite or have an id seen before: up to a tenth of all, or `all` that there are
        skip_bad_rows: BadRows, "[=all]", default BadRows::Stop;
        /// Memory for rows, such as 8G, or `all`; rows that need more stay in their files and are read in windows
        memory: RowMemory, "SIZE", depends [("", "half of what is free")];
        /// Seed of the split alone, for runs of several seeds on the same split
        split_seed: u64, "SEED", depends [("", "as --seed")];
    }
    "Model" {
        /// Defaults to start from
        preset: Preset, "PRESET", default Preset::DEFAULT;
        /// Latents, M
        latents: usize, "M", depends [("", "8 D")];
        /// Decoder and encoder are one tensor
        tied: bool, default false, switch "untied";
        /// Normalise each row before the encoder and undo it after the decoder
        normalize: bool, default true, switch "no-normalize";
        /// Added to each row's standard deviation
        norm_eps: f64, "EPS",
            depends [("", "1e-5, or 2e-4 of the usual deviation where that is below 0.01"), ("relaxed-topk", "1e-5")],
            range ABOVE_0, MOST;
        /// The pre-bias
        pre_bias: PreBias, "START", default PreBias::Zero;
        /// Start of the weights
        init: InitKind, "START", default InitKind::Linear;
        /// Gain of --init xavier
        init_gain: f64, "GAIN", default 1.0, range ABOVE_0, MOST;
    }
    "Sparsity" {
        /// Active latents per row, k; their mean where the activation has no places per row
        #[short('k')]
        k: usize, "K", default 32;
        /// What makes a code of scores
        activation: Activation, "ACTIVATION", default Activation::Topk;
        /// Codes outside training: those of the activation, or, with topk, relu of all scores
        inference: Inference, "CODES", depends [("", "as the activation")];
        /// Numbers of latents that reconstruct on their own (Matryoshka), rising, as in 256,1024,4096, or `auto` for M/32,
        /// 3M/32, 7M/32, 15M/32; M itself is added
        prefixes: PrefixList, "M1,M2,...", depends [("", "none")];
        /// What stands in for the exact top k during the warm-up
        relaxation: Relaxation, "RELAXATION", depends [("topk", "none"), ("sparse-l1", "none")];
        /// Steps of the relaxed warm-up, T; 0 is none
        anneal_steps: u64, "T",
            depends [("", "2000 or half the steps if fewer"), ("topk", "0"), ("sparse-l1", "0")];
        /// Candidates per row in the warm-up of lapsum and anneal-k
        pool: usize, "P", depends [("", "4 k, at most 1024")];
        /// Temperature at the first step
        tau_start: f64, "TAU", default 1.0, range 1e-3, MOST;
        /// Temperature at the end of the warm-up
        tau_end: f64, "TAU", default 0.05, range 1e-3, MOST;
        /// What keeps codes sparse, beside or in place of k places
        penalty: Penalty, "PENALTY",
            depends [("", "mean-code; with --activation relu l1, with jumprelu l0-target")];
        /// Weight of --penalty mean-code or l1, beside --loss-scale times the squared error
        l1: f64, "LAMBDA", default 0.0, depends [("", "0; with --activation relu what gives k active latents per row"), ("sparse-l1", "0.1")],
            range 0.0, MOST;
        /// Epochs over which the L1 weight rises from 0
        l1_warmup: u64, "EPOCHS", default 0;
        /// Weight of the penalties of --activation jumprelu, beside --loss-scale times the squared error
        l0_weight: f64, "LAMBDA", default 1.0, range 0.0, MOST;
        /// Steps over which that weight rises from 0
        l0_warmup: u64, "STEPS", depends [("", "a tenth of the steps")];
        /// Width of the kernel through which the thresholds of --activation jumprelu are trained, in units of the scores
        bandwidth: f64, "EPS", depends [("", "0.01 times the length of a usual row as the encoder sees it")], range ABOVE_0, MOST;
        /// Dead latents that the auxiliary loss uses per row; 0 is none
        aux_k: usize, "K", default 0, depends [("topk", "64, or D/2 if fewer")];
        /// Weight of the auxiliary loss
        aux_coef: f64, "COEF", default 1.0 / 32.0, range 0.0, MOST;
        /// Rows without firing after which a latent is dead to the auxiliary loss
        dead_after: u32, "ROWS", depends [("", "two epochs, at most 10 million")];
    }
    "Optimiser" {
        /// Learning rate, or `auto` for 2e-4 / sqrt(M / 2^14)
        lr: NumberOr<f64>, "LR", default NumberOr::Number(1e-3), range 0.0, MOST;
        /// Learning rate after its warm-up
        lr_schedule: LrSchedule, "SHAPE", default LrSchedule::Constant;
        /// Steps over which the learning rate rises from 0
        lr_warmup: u64, "STEPS", default 0;
        /// Factor on the loss before gradients are taken, so that they do not depend on the data's unit; reported losses
        /// are without it
        loss_scale: f64, "FACTOR",
            depends [("", "1 / variance of the training rows"), ("relaxed-topk", "1"), ("sparse-l1", "1")],
            range ABOVE_0, MOST;
        /// Largest global gradient norm, of --loss-scale times the loss; 0 is no clipping
        clip_norm: f64, "NORM", default 0.0, range 0.0, MOST;
        /// Decoupled weight decay of the matrices
        weight_decay: f64, "WD", default 0.0, range 0.0, MOST;
        /// Adam's decay of the first moment
        adam_b1: f64, "B1", default 0.9, range 0.0, 0.999_999;
        /// Adam's decay of the second moment
        adam_b2: f64, "B2", default 0.999, range 0.0, 0.999_999_9;
        /// Added to the root of Adam's second moment
        adam_eps: f64, "EPS", default 1e-8, range 0.0, 1.0;
        /// Keep decoder rows at length 1
        unit_norm_decoder: bool, "BOOL", default false;
        /// Decay of a moving average of the weights, used for evaluation and export; 0 is none
        ema: f64, "DECAY", default 0.0, range 0.0, 0.999_999_9;
    }
    "Schedule" {
        /// Training steps
        steps: u64, "S", default 5000, depends [("sparse-l1", "200 epochs")];
        /// Passes over the training rows, instead of --steps
        epochs: f64, "E", range ABOVE_0, MOST;
        /// Rows per step, N, or `full` for all training rows
        batch_size: NumberOr<usize>, "N", depends [("", "512, or all rows if fewer")];
        /// Stop after this many evaluations without a better validation FVU and keep the best; 0 is never
        early_stop: u64, "EVALS", default 0;
    }
    "Run" {
        /// Seed of split, start, order and noise
        seed: u64, "SEED", default 0;
        /// Steps between evaluations
        eval_every: u64, "STEPS", depends [("", "a twentieth of the steps")];
        /// Most rows of each split in an evaluation on the way, or `all`
        eval_rows: NumberOr<usize>, "ROWS",
            depends [("", "2.7 % of the rows trained since the last one, 200 to 20,000")];
        /// Most rows of each split in the figures at the end, or `all`
        final_rows: NumberOr<usize>, "ROWS", depends [("", "4 % of the rows trained, at least 1000")];
        /// Steps between checkpoints
        checkpoint_every: u64, "STEPS", depends [("", "as --eval-every")];
        /// Checkpoints kept beside the best one
        keep_checkpoints: usize, "COUNT", default 2;
        /// Write the figures of metrics.csv as events for TensorBoard too: `tensorboard --logdir RUN`
        tensorboard: bool, default false, switch "";
        /// Arithmetic of the dense products; tf32 and bf16 on a GPU only. Weights and moments are float32 always
        precision: Precision, "TYPE", default Precision::F32;
    }
}

impl Options {
    /// How data files are to be read.
    pub fn reading(&self) -> LoadOptions {
        LoadOptions {
            dataset: self.dataset.clone(),
            ids: self.ids.clone(),
            index: self.index.clone().unwrap_or_default(),
            transpose: self.transpose.unwrap_or(DEFAULTS.transpose),
            bfloat16: self.stored_as == Some(StoredAs::Bfloat16),
            group_by: self.group_by.clone(),
            bad_rows: self.skip_bad_rows.unwrap_or(DEFAULTS.skip_bad_rows),
        }
    }

    /// The seed that makes the split.
    pub fn seed_of_split(&self) -> u64 {
        self.split_seed.or(self.seed).unwrap_or(0)
    }

    /// Reads a run's own `config.toml` as far as this version understands it: for what is asked of a run that is done,
    /// whatever version made it. A run that goes on is read by [`Options::from_toml`].
    ///
    /// # Errors
    /// A file that cannot be read, or is no TOML.
    pub fn of_run(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path, "read"))?;
        let table: toml::Table = text.parse().map_err(|e: toml::de::Error| {
            Error::Usage(format!("{}: {}", path.display(), e.message().replace('\n', " ")))
        })?;
        let mut options = Self::default();
        for (key, value) in &table {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            // An option that is gone, or a value of it.
            let _ = options.set(key, &text);
        }
        let data = table.get("data").and_then(toml::Value::as_array);
        options.data = data.map(|all| all.iter().filter_map(|path| Some(path.as_str()?.into())).collect());
        options.settle_as_0_1_0();
        Ok(options)
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
            let what = if what.ends_with("`subset`") {
                "the relaxation subset is gone: no data set gained by it; train with `relaxation = \"lapsum\"`"
            } else {
                what
            };
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

    /// Gives the settings that version 0.1.0 did not have the values of its arithmetic and of its final figures. For options
    /// that are resolved:
    /// a file that leaves these out was written by 0.1.0, or has these values.
    pub fn settle_as_0_1_0(&mut self) {
        self.loss_scale.get_or_insert(1.0);
        self.norm_eps.get_or_insert(NORM_EPS);
        self.final_rows.get_or_insert(NumberOr::Word(Word::All));
        // Written down where rows stayed in their files.
        self.memory.get_or_insert(RowMemory::All);
    }
}
