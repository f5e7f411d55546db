//! What a finished run leaves for people and programs.

use super::folder::{RunFolder, names};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::files;
use crate::spec::Prefixes;
use crate::text::{number, table};
use crate::train::Trained;
use crate::train::metrics::{Quality, null_is_nan};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// `summary.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The training split: at most `--final-rows` of its rows.
    pub train: Option<Quality>,
    /// The validation split, likewise.
    pub val: Option<Quality>,
    /// The test split, likewise.
    pub test: Option<Quality>,
    /// Rows that each split has, some of which may not have been measured; `None` in a run of version 0.1.0, which measured
    /// all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split_rows: Option<SplitRows>,
    /// Share of latents active on none of the training rows that were measured.
    #[serde(deserialize_with = "null_is_nan")]
    pub dead_fraction: f64,
    /// Training rows per second in steps alone, without start-up and evaluation.
    #[serde(deserialize_with = "null_is_nan")]
    pub rows_per_second: f64,
    /// Steps of the model that was kept.
    pub steps: u64,
    /// Where it was trained.
    pub device: String,
    /// Arithmetic of the dense products.
    pub precision: String,
    /// Seed.
    pub seed: u64,
    /// Version of sae.
    pub version: String,
    /// Latents, M.
    pub n_latents: usize,
    /// Active latents, k.
    pub k: usize,
    /// Step of the best validation FVU seen on the way.
    pub best_step: Option<u64>,
    /// Prefixes of the latents that reconstruct on their own.
    #[serde(default, skip_serializing_if = "Prefixes::is_empty")]
    pub prefixes: Prefixes,
}

/// Rows of the splits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitRows {
    /// Training rows.
    pub train: usize,
    /// Validation rows.
    pub val: usize,
    /// Test rows.
    pub test: usize,
}

impl SplitRows {
    fn new([train, val, test]: [usize; 3]) -> Self {
        Self { train, val, test }
    }
}

impl Summary {
    /// Of a run that is done.
    pub fn new(config: &Config, trained: &Trained) -> Self {
        Self {
            train: trained.train,
            val: trained.val,
            test: trained.test,
            split_rows: Some(SplitRows::new(trained.split_rows)),
            dead_fraction: trained.dead_fraction,
            rows_per_second: trained.rows_per_second,
            steps: trained.steps,
            device: trained.device.clone(),
            precision: config.precision.to_string(),
            seed: config.seed,
            version: env!("CARGO_PKG_VERSION").into(),
            n_latents: config.n_latents,
            k: config.spec.forward.k,
            best_step: trained.best_step,
            prefixes: config.spec.forward.prefixes,
        }
    }

    /// The table of final metrics.
    pub fn table(&self) -> String {
        let header = ["split", "rows", "MSE", "MAE", "FVU", "L0", "cosine"];
        let all = self.split_rows.map(|SplitRows { train, val, test }| [train, val, test]);
        let splits = [("train", &self.train), ("val", &self.val), ("test", &self.test)];
        let rows = splits.iter().enumerate().filter_map(|(i, (name, q))| {
            let mut row = quality_row(name, q.as_ref()?);
            if let Some(all) = all.map(|all| all[i]).filter(|&all| all as u64 > q.map_or(0, |q| q.rows)) {
                row[1] = format!("{} of {all}", row[1]);
            }
            Some(row)
        });
        let rows: Vec<Vec<String>> = rows.collect();
        let dead = 100.0 * self.dead_fraction;
        let measured = splits.iter().filter_map(|(name, q)| Some((*name, q.as_ref()?)));
        let by_prefix = prefix_table(self.prefixes.ends(), &measured.collect::<Vec<_>>());
        format!(
            "{}{by_prefix}\ndead latents: {} % of {} on these training rows; {} training rows/s on {} ({})\n",
            table(&header, &rows).trim_end(),
            number(dead),
            self.n_latents,
            number(self.rows_per_second),
            self.device,
            self.precision
        )
    }
}

/// Share of dead latents from which on a warning says what helps.
const MANY_DEAD: f64 = 0.1;

impl Summary {
    /// A line for a model that is no better than the mean training row.
    pub fn fvu_warning(&self) -> Option<String> {
        let (split, quality) = match (&self.val, &self.train) {
            (Some(val), _) => ("validation", val),
            (None, Some(train)) => ("training", train),
            (None, None) => return None,
        };
        (quality.fvu >= 1.0).then(|| {
            format!(
                "the {split} FVU is {}: the mean training row reconstructs as well as this model; compare --preset \
                 data-topk, a lower --lr, more --steps or a larger --k, and see `sae inspect` for rows that differ in scale",
                number(quality.fvu)
            )
        })
    }

    /// A line for a model of which a good part does nothing.
    pub fn dead_warning(&self) -> Option<String> {
        (self.dead_fraction > MANY_DEAD).then(|| {
            format!(
                "{} % of the latents are dead: compare --preset data-topk, a lower --lr or --latents {}",
                number(100.0 * self.dead_fraction),
                self.n_latents.div_ceil(2)
            )
        })
    }
}

/// A line of the table of metrics.
pub fn quality_row(name: &str, q: &Quality) -> Vec<String> {
    let numbers = [q.mse, q.mae, q.fvu, q.l0, q.cosine].map(number);
    let mut row = vec![name.to_owned(), q.rows.to_string()];
    row.extend(numbers);
    row
}

/// The table of the FVU that each prefix reaches, with an empty line before it; nothing where there are no prefixes.
pub fn prefix_table(ends: &[u32], splits: &[(&str, &Quality)]) -> String {
    if ends.is_empty() {
        return String::new();
    }
    let mut header = vec!["FVU by the first latents".to_owned()];
    header.extend(splits.iter().map(|(name, _)| (*name).to_owned()));
    let rows = ends.iter().enumerate().map(|(p, end)| {
        let mut row = vec![end.to_string()];
        row.extend(
            splits.iter().map(|(_, q)| q.fvu_by_prefix.values().get(p).map_or("-".into(), |v| number(*v))),
        );
        row
    });
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    format!("\n\n{}", table(&header, &rows.collect::<Vec<_>>()).trim_end())
}

/// Writes `summary.json`.
///
/// # Errors
/// As the disk gives them.
pub fn write_summary(folder: &RunFolder, summary: &Summary) -> Result<()> {
    let json = serde_json::to_string_pretty(summary)
        .map_err(|e| Error::Failed(format!("summary.json cannot be written: {e}")))?;
    files::write_whole(&folder.path(names::SUMMARY), format!("{json}\n").as_bytes())
}

/// `summary.json`; `None` where the run is not finished.
///
/// # Errors
/// A file that cannot be read, or is damaged.
pub fn read_summary(path: &Path) -> Result<Option<Summary>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(path, "read")(e)),
    };
    serde_json::from_str(&text).map(Some).map_err(|e| Error::Model {
        path: path.to_owned(),
        what: format!("is damaged or of another version ({e}); run `sae train --resume` on its folder"),
    })
}
