//! Every option of a run: as a person gives it ([`Options`], all optional, the same names on the command line
//! and in a TOML file) and as it is used ([`Config`], everything settled once the data are known).

mod options;
mod preset;
mod ranges;
mod settings;
mod sparsity;
mod table;

use options::DEFAULTS;
pub use options::{InitKind, NumberOr, Options, PrefixList, RowMemory, StoredAs, Word};
pub use preset::Preset;
pub use settings::Settings;
pub use table::{OptionRow, OptionValue, options_chapter};

use crate::data::LoadOptions;
use crate::error::{Error, Result};
use crate::model::file::{ModelMeta, Provenance};
use crate::schedule;
use crate::spec::{
    Architecture, Forward, Init, ModelSpec, NORM_EPS, Objective, Optimizer, PreBias, Precision, Relaxation,
    Schedule, Training, Warmup,
};
use std::path::PathBuf;

/// A run with everything settled.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Data files, absolute.
    pub data: Vec<PathBuf>,
    /// How they are read.
    pub reading: LoadOptions,
    /// Table of groups that stay in one split.
    pub groups: Option<String>,
    /// Its columns are group and id.
    pub groups_reversed: bool,
    /// Table of a split.
    pub splits: Option<String>,
    /// Where the defaults came from.
    pub preset: Preset,
    /// D.
    pub d_in: usize,
    /// M.
    pub n_latents: usize,
    /// One tensor for encoder and decoder.
    pub tied: bool,
    /// Start of the weights.
    pub init: Init,
    /// The pre-bias.
    pub pre_bias: PreBias,
    /// What the backend needs to know.
    pub spec: ModelSpec,
    /// How training goes over its steps.
    pub schedule: Schedule,
    /// Training rows.
    pub n_train: usize,
    /// Memory for rows that stay in their files: the order in which they are seen depends on it. `None` where all are in
    /// memory.
    pub memory: Option<RowMemory>,
    /// Evaluations without improvement before stopping; 0 is never.
    pub early_stop: u64,
    /// Seed of start, order and noise.
    pub seed: u64,
    /// Seed of the split.
    pub split_seed: u64,
    /// Steps between evaluations.
    pub eval_every: u64,
    /// Most rows of a split in an evaluation on the way.
    pub eval_rows: usize,
    /// Most rows of a split in the figures at the end.
    pub final_rows: usize,
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
    /// Checkpoints kept.
    pub keep_checkpoints: usize,
    /// Events for TensorBoard are written.
    pub tensorboard: bool,
    /// Arithmetic.
    pub precision: Precision,
}

/// Rows of each of three splits that an evaluation on the way measures, as a share of those trained since the one before:
/// 8 % in all. A row costs about half a training row, so this takes 4 % of the time of training; the final figures take 6 %.
const EVAL_SHARE: f64 = 0.08 / 3.0;
/// The same of the figures at the end, of all rows trained.
const FINAL_SHARE: f64 = 0.12 / 3.0;
/// Fewer rows say nothing, and more say nothing more while training goes on.
const LEAST_EVAL: usize = 200;
const MOST_EVAL: usize = 20_000;
const LEAST_FINAL: usize = 1000;

/// A share of the rows of `steps` steps. It depends on no clock, so that figures do not depend on speed.
fn measured(steps: u64, batch_size: usize, share: f64) -> usize {
    (steps as f64 * batch_size as f64 * share) as usize
}

/// A number of rows, all, or what `auto` gives.
fn most_rows(flag: &str, given: Option<NumberOr<usize>>, auto: impl Fn() -> usize) -> Result<usize> {
    match given {
        Some(NumberOr::Number(rows)) => Ok(rows),
        Some(NumberOr::Word(Word::All)) => Ok(usize::MAX),
        Some(NumberOr::Word(Word::Auto)) | None => Ok(auto()),
        Some(NumberOr::Word(Word::Full)) => usage(format!("{flag} takes a number or `all`")),
    }
}

fn rows_or_all(rows: usize) -> NumberOr<usize> {
    if rows == usize::MAX { NumberOr::Word(Word::All) } else { NumberOr::Number(rows) }
}

fn usage<T>(message: String) -> Result<T> {
    Err(Error::Usage(message))
}

impl Config {
    /// How the file of a run's configuration begins.
    pub const FIRST_WORDS: &str = "# Resolved by sae";

    /// Settles `o` for data of width `d_in` with `n_train` training rows. Whether the device has the precision is
    /// asked of [`crate::backend::Selected::check`].
    ///
    /// # Errors
    /// [`Error::Usage`] naming the flag, its value and what would do.
    pub fn resolve(o: &Options, d_in: usize, n_train: usize) -> Result<Self> {
        let preset = o.preset.unwrap_or(DEFAULTS.preset);
        let (given, given_k) = (o, o.k);
        let o = &o.clone().or(preset.options(d_in));
        o.check_ranges()?;

        let n_latents = o.latents.unwrap_or(8 * d_in);
        // A default adapts to few latents; a k that was asked for is refused below.
        let k = given_k.unwrap_or(o.k.unwrap_or(DEFAULTS.k).min(n_latents));
        let batch_size = batch_size(o, n_train)?;
        let steps = match o.epochs {
            Some(e) => steps_of(e, n_train, batch_size)?,
            None => o.steps.unwrap_or(DEFAULTS.steps),
        };
        let activation = o.activation.unwrap_or(DEFAULTS.activation);
        let relaxation = sparsity::relaxation(o, given, activation)?;
        let normalize = o.normalize.unwrap_or(DEFAULTS.normalize);
        let loss_scale = o.loss_scale.unwrap_or(1.0);
        let sparse = sparsity::Settled::new(o, given, activation, n_latents, steps)?;
        let anneal_steps = match (relaxation, o.anneal_steps) {
            (Relaxation::None, Some(given)) if given > 0 => {
                return usage(format!(
                    "--anneal-steps {given} needs something to anneal: drop it, or give a --relaxation other than none"
                ));
            }
            (Relaxation::None, _) => 0,
            (_, given) => given.unwrap_or(2000.min(steps / 2)),
        };
        let pool = pool(o, relaxation, k, n_latents)?;
        let lr = match o.lr.unwrap_or(DEFAULTS.lr) {
            NumberOr::Number(lr) => lr,
            NumberOr::Word(Word::Auto) => schedule::auto_learning_rate(n_latents),
            NumberOr::Word(_) => return usage("--lr takes a number or `auto`".into()),
        };
        let gain = o.init_gain.unwrap_or(DEFAULTS.init_gain) as f32;
        let init = match o.init.unwrap_or(DEFAULTS.init) {
            InitKind::Linear => Init::Linear,
            InitKind::Xavier => Init::Xavier { gain },
            InitKind::UnitNorm => Init::UnitNorm,
            InitKind::Data => Init::Data,
        };
        let pre_bias = o.pre_bias.unwrap_or(DEFAULTS.pre_bias);
        let clip = o.clip_norm.unwrap_or(DEFAULTS.clip_norm);
        let ema = o.ema.unwrap_or(DEFAULTS.ema);
        let two_epochs = u32::try_from(2 * n_train.max(1)).unwrap_or(u32::MAX);
        let eval_every = o.eval_every.unwrap_or((steps / 20).max(1));
        let config = Self {
            data: o.data.clone().unwrap_or_default(),
            reading: o.reading(),
            groups: o.groups.clone(),
            groups_reversed: o.groups_reversed.unwrap_or(DEFAULTS.groups_reversed),
            splits: o.splits.clone(),
            preset,
            d_in,
            n_latents,
            tied: o.tied.unwrap_or(DEFAULTS.tied),
            init,
            pre_bias,
            spec: ModelSpec {
                forward: Forward {
                    k,
                    activation,
                    inference: sparse.inference,
                    normalize,
                    norm_eps: o.norm_eps.unwrap_or(NORM_EPS),
                    prefixes: sparse.prefixes,
                },
                objective: Objective {
                    loss_scale,
                    aux_k: o.aux_k.unwrap_or(DEFAULTS.aux_k),
                    aux_coef: o.aux_coef.unwrap_or(DEFAULTS.aux_coef),
                    dead_after: o.dead_after.unwrap_or(two_epochs.min(10_000_000)),
                    penalty: sparse.penalty,
                    seeks_k: sparse.seeks_k,
                    bandwidth: o
                        .bandwidth
                        .unwrap_or_else(|| sparsity::bandwidth(d_in, normalize, loss_scale)),
                },
                warmup: Warmup { relaxation, pool },
                optimizer: Optimizer {
                    beta1: o.adam_b1.unwrap_or(DEFAULTS.adam_b1),
                    beta2: o.adam_b2.unwrap_or(DEFAULTS.adam_b2),
                    adam_eps: o.adam_eps.unwrap_or(DEFAULTS.adam_eps),
                    weight_decay: o.weight_decay.unwrap_or(DEFAULTS.weight_decay),
                    clip_norm: (clip > 0.0).then_some(clip),
                    train_pre_bias: pre_bias != PreBias::None,
                    unit_norm_decoder: o.unit_norm_decoder.unwrap_or(DEFAULTS.unit_norm_decoder),
                    ema: (ema > 0.0).then_some(ema),
                },
            },
            schedule: Schedule {
                steps,
                batch_size,
                lr,
                lr_schedule: o.lr_schedule.unwrap_or(DEFAULTS.lr_schedule),
                lr_warmup: o.lr_warmup.unwrap_or(DEFAULTS.lr_warmup),
                anneal_steps,
                tau_start: o.tau_start.unwrap_or(DEFAULTS.tau_start),
                tau_end: o.tau_end.unwrap_or(DEFAULTS.tau_end),
                l1: sparse.weight,
                l1_warmup: o.l1_warmup.unwrap_or(DEFAULTS.l1_warmup),
                l0_warmup: sparse.l0_warmup,
            },
            n_train,
            memory: o.memory.filter(|&memory| memory != RowMemory::All),
            early_stop: o.early_stop.unwrap_or(DEFAULTS.early_stop),
            seed: o.seed.unwrap_or(DEFAULTS.seed),
            split_seed: o.seed_of_split(),
            eval_every,
            eval_rows: most_rows("--eval-rows", o.eval_rows, || {
                measured(eval_every, batch_size, EVAL_SHARE).clamp(LEAST_EVAL, MOST_EVAL)
            })?,
            final_rows: most_rows("--final-rows", o.final_rows, || {
                measured(steps, batch_size, FINAL_SHARE).max(LEAST_FINAL)
            })?,
            checkpoint_every: o.checkpoint_every.unwrap_or(eval_every),
            keep_checkpoints: o.keep_checkpoints.unwrap_or(DEFAULTS.keep_checkpoints),
            tensorboard: o.tensorboard.unwrap_or(DEFAULTS.tensorboard),
            precision: o.precision.unwrap_or(DEFAULTS.precision),
        };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        let s = &self.spec.forward;
        let (d, m, k) = (self.d_in, self.n_latents, s.k);
        if m == 0 || m > u32::MAX as usize || m.checked_mul(d).is_none_or(|all| all > usize::MAX / 64) {
            return usage(format!("--latents {m} with {d} inputs is not a size that can be trained"));
        }
        if k == 0 || k > m {
            return usage(format!(
                "--k {k} must lie between 1 and the number of latents, {m}: lower --k or raise --latents"
            ));
        }
        if d < 2 && s.normalize {
            return usage("rows of one value cannot be normalised: add --no-normalize".into());
        }
        if self.schedule.steps == 0 {
            return usage("--steps 0 trains nothing: give at least 1".into());
        }
        for (flag, value) in
            [("--eval-every", self.eval_every), ("--checkpoint-every", self.checkpoint_every)]
        {
            if value == 0 {
                return usage(format!("{flag} 0: give at least 1"));
            }
        }
        if self.eval_rows == 0 || self.final_rows == 0 || self.keep_checkpoints == 0 {
            return usage("--eval-rows, --final-rows and --keep-checkpoints must be at least 1".into());
        }
        Ok(())
    }

    /// Name, in a checkpoint, of the average whose rows are kept at length 1.
    pub fn unit_average(&self) -> Option<&'static str> {
        let kept = self.spec.optimizer.unit_norm_decoder && self.spec.optimizer.ema.is_some();
        kept.then_some(if self.tied { "ema.w_enc" } else { "ema.w_dec" })
    }

    /// The options that resolve to this configuration again.
    pub fn to_options(&self) -> Options {
        let ModelSpec { forward, objective, warmup, optimizer } = &self.spec;
        let (s, literal) = (&self.schedule, self.preset.is_literal());
        let counts = objective.penalty.counts();
        let (init, gain) = match self.init {
            Init::Linear => (InitKind::Linear, None),
            Init::Xavier { gain } => (InitKind::Xavier, Some(f64::from(gain))),
            Init::UnitNorm => (InitKind::UnitNorm, None),
            Init::Data => (InitKind::Data, None),
        };
        Options {
            data: Some(self.data.clone()),
            dataset: self.reading.dataset.clone(),
            ids: self.reading.ids.clone(),
            index: Some(self.reading.index.clone()).filter(|picks| !picks.0.is_empty()),
            // Left out where they are off: files of earlier versions do without them.
            transpose: self.reading.transpose.then_some(true),
            stored_as: self.reading.bfloat16.then_some(StoredAs::Bfloat16),
            group_by: self.reading.group_by.clone(),
            groups: self.groups.clone(),
            groups_reversed: self.groups_reversed.then_some(true),
            splits: self.splits.clone(),
            skip_bad_rows: Some(self.reading.bad_rows),
            memory: self.memory,
            preset: Some(self.preset),
            latents: Some(self.n_latents),
            k: Some(forward.k),
            tied: Some(self.tied),
            normalize: Some(forward.normalize),
            // The literal presets take these values where they are left out; the others take them from the data.
            norm_eps: (!literal || forward.norm_eps != NORM_EPS).then_some(forward.norm_eps),
            loss_scale: (!literal || objective.loss_scale != 1.0).then_some(objective.loss_scale),
            activation: Some(forward.activation),
            inference: Some(forward.inference),
            prefixes: (!forward.prefixes.is_empty()).then_some(PrefixList::Given(forward.prefixes)),
            init: Some(init),
            init_gain: gain,
            pre_bias: Some(self.pre_bias),
            steps: Some(s.steps),
            epochs: None,
            batch_size: Some(NumberOr::Number(s.batch_size)),
            lr: Some(NumberOr::Number(s.lr)),
            lr_schedule: Some(s.lr_schedule),
            lr_warmup: Some(s.lr_warmup),
            relaxation: Some(warmup.relaxation),
            pool: warmup.relaxation.has_candidates().then_some(warmup.pool),
            anneal_steps: Some(s.anneal_steps),
            tau_start: Some(s.tau_start),
            tau_end: Some(s.tau_end),
            // Left out where there is nothing to choose: files of earlier versions do without them.
            penalty: counts.then_some(objective.penalty),
            l1: (!counts && !objective.seeks_k).then_some(s.l1),
            l1_warmup: Some(s.l1_warmup),
            l0_weight: counts.then_some(s.l1),
            l0_warmup: counts.then_some(s.l0_warmup),
            bandwidth: counts.then_some(objective.bandwidth),
            clip_norm: Some(optimizer.clip_norm.unwrap_or(0.0)),
            weight_decay: Some(optimizer.weight_decay),
            adam_b1: Some(optimizer.beta1),
            adam_b2: Some(optimizer.beta2),
            adam_eps: Some(optimizer.adam_eps),
            aux_k: Some(objective.aux_k),
            aux_coef: Some(objective.aux_coef),
            dead_after: Some(objective.dead_after),
            unit_norm_decoder: Some(optimizer.unit_norm_decoder),
            ema: Some(optimizer.ema.unwrap_or(0.0)),
            early_stop: Some(self.early_stop),
            seed: Some(self.seed),
            split_seed: Some(self.split_seed),
            eval_every: Some(self.eval_every),
            eval_rows: Some(rows_or_all(self.eval_rows)),
            final_rows: Some(rows_or_all(self.final_rows)),
            checkpoint_every: Some(self.checkpoint_every),
            keep_checkpoints: Some(self.keep_checkpoints),
            tensorboard: self.tensorboard.then_some(true),
            precision: Some(self.precision),
        }
    }

    /// As TOML, for `config.toml`.
    ///
    /// # Errors
    /// A path that is not UTF-8 cannot be written as TOML.
    pub fn to_toml(&self) -> Result<String> {
        let body = toml::to_string(&self.to_options())
            .map_err(|e| Error::Failed(format!("the configuration cannot be written as TOML: {e}")))?;
        Ok(format!(
            "{} {}; `sae train --config` with this file gives the same run.\n{body}",
            Self::FIRST_WORDS,
            env!("CARGO_PKG_VERSION")
        ))
    }

    /// What a training needs of it.
    pub fn training(&self) -> Training {
        Training {
            d_in: self.d_in,
            n_latents: self.n_latents,
            tied: self.tied,
            model: self.spec.clone(),
            schedule: self.schedule,
            init: self.init,
            pre_bias: self.pre_bias,
            seed: self.seed,
            precision: self.precision,
            eval_every: self.eval_every,
            eval_rows: self.eval_rows,
            final_rows: self.final_rows,
            early_stop: self.early_stop,
            checkpoint_every: self.checkpoint_every,
        }
    }

    /// What a model file says of a model of this run, trained for `steps` steps on rows of this mean.
    pub fn model_meta(&self, steps: u64, train_mean: &[f64]) -> ModelMeta {
        let options = match serde_json::to_value(self.to_options()) {
            Ok(serde_json::Value::Object(options)) => options,
            _ => serde_json::Map::new(),
        };
        ModelMeta {
            architecture: self.architecture(),
            provenance: Provenance {
                version: format!("sae {}", env!("CARGO_PKG_VERSION")),
                preset: self.preset.to_string(),
                seed: self.seed,
                split_seed: Some(self.split_seed),
                steps,
                options,
            },
            train_mean: train_mean.iter().map(|&v| v as f32).collect(),
        }
    }

    /// What it takes to run the model.
    pub fn architecture(&self) -> Architecture {
        Architecture {
            d_in: self.d_in,
            n_latents: self.n_latents,
            tied: self.tied,
            forward: self.spec.forward,
        }
    }
}

/// Steps of `epochs` passes over the training rows.
fn steps_of(epochs: f64, n_train: usize, batch_size: usize) -> Result<u64> {
    // Above this, neighbouring whole numbers are one float64.
    const MOST: f64 = (1u64 << f64::MANTISSA_DIGITS) as f64;
    let steps = (epochs * n_train as f64 / batch_size as f64).ceil();
    if steps > MOST {
        return usage(format!("--epochs {epochs:?} is more steps than can be counted: give fewer"));
    }
    Ok(steps as u64)
}

/// Candidates per row; k where the relaxation has none.
fn pool(o: &Options, relaxation: Relaxation, k: usize, n_latents: usize) -> Result<usize> {
    match o.pool {
        Some(pool) if !relaxation.has_candidates() => usage(format!(
            "--pool {pool} belongs to --relaxation lapsum or anneal-k: drop it, or choose one of them"
        )),
        Some(pool) if pool < k || pool > n_latents => {
            usage(format!("--pool {pool} must lie between k, {k}, and the number of latents, {n_latents}"))
        }
        Some(pool) => Ok(pool),
        None if relaxation.has_candidates() => Ok((4 * k).min(1024).max(k).min(n_latents)),
        None => Ok(k),
    }
}

fn batch_size(o: &Options, n_train: usize) -> Result<usize> {
    if n_train == 0 {
        return usage("the training split is empty: more rows, or another --seed, are needed".into());
    }
    match o.batch_size {
        Some(NumberOr::Number(0)) => usage("--batch-size 0: give at least 1, or `full`".into()),
        Some(NumberOr::Number(n)) if n > n_train => usage(format!(
            "--batch-size {n} is larger than the {n_train} training rows: give at most {n_train}, or `full`"
        )),
        Some(NumberOr::Number(n)) => Ok(n),
        Some(NumberOr::Word(Word::Full)) => Ok(n_train),
        Some(NumberOr::Word(Word::All)) => usage("--batch-size takes a number or `full`".into()),
        Some(NumberOr::Word(Word::Auto)) | None => Ok(n_train.min(512)),
    }
}
