//! What a finished run leaves for people and programs.

use crate::config::{Config, Preset};
use crate::error::{Error, Result};
use crate::files;
use crate::report::plots::{Curve, CurvePlot, render_png};
use crate::report::table::{number, table};
use crate::train::folder::{RunFolder, names};
use crate::train::metrics::{MetricRow, Quality, null_is_nan};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// `summary.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// All rows of the training split.
    pub train: Option<Quality>,
    /// All rows of the validation split.
    pub val: Option<Quality>,
    /// All rows of the test split.
    pub test: Option<Quality>,
    /// Share of latents active on no row of the training split.
    #[serde(deserialize_with = "null_is_nan")]
    pub dead_fraction: f64,
    /// Training rows a second in steps alone, without start-up and evaluation.
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
}

impl Summary {
    /// The table of final metrics.
    pub fn table(&self) -> String {
        let header = ["split", "rows", "MSE", "MAE", "FVU", "L0", "cosine"];
        let splits = [("train", &self.train), ("val", &self.val), ("test", &self.test)];
        let rows = splits.iter().filter_map(|(name, q)| q.as_ref().map(|q| quality_row(name, q)));
        let rows: Vec<Vec<String>> = rows.collect();
        let dead = 100.0 * self.dead_fraction;
        format!(
            "{}\ndead latents: {} % of {} on the training split; {} training rows/s on {} ({})\n",
            table(&header, &rows).trim_end(),
            number(dead),
            self.n_latents,
            number(self.rows_per_second),
            self.device,
            self.precision
        )
    }
}

/// Share of dead latents from which on a person is told what helps.
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

/// Draws the two errors, the share of latents alive, and the parts of the loss where it has several. A curve point is an
/// evaluation on the way.
///
/// # Errors
/// A plot that cannot be drawn or written.
pub fn write_plots(folder: &RunFolder, config: &Config, metrics: &[MetricRow]) -> Result<()> {
    let (preset, mse, mae) = match config.preset {
        Preset::DataTopk => ("top-k", names::RELAXED_MSE_PNG, names::RELAXED_MAE_PNG),
        Preset::RelaxedTopk => ("relaxed top-k", names::RELAXED_MSE_PNG, names::RELAXED_MAE_PNG),
        Preset::Topk => ("top-k", names::MSE_PNG, names::MAE_PNG),
        Preset::SparseL1 => ("sparse L1 + top-k", names::MSE_PNG, names::MAE_PNG),
    };
    let sizes = format!(
        "{preset} autoencoder, D = {}, M = {}, k = {}",
        config.d_in, config.n_latents, config.spec.forward.k
    );
    let annealed_until = (config.schedule.anneal_steps > 0).then_some(config.schedule.anneal_steps);
    let draw = |file: &str, title: &str, y_label: &str, must_show: &'static [f64], curves: Vec<Curve>| {
        let (title, y_label) = (format!("{title}, {sizes}"), y_label.to_owned());
        let plot = CurvePlot { title, y_label, annealed_until, must_show, curves };
        files::write_whole(&folder.path(file), &render_png(&plot)?)
    };
    type Pick = fn(&Quality) -> f64;
    let kinds: [(&str, &str, Pick); 2] = [
        (mse, "MSE (mean over rows and values, squared data units)", |q| q.mse),
        (mae, "MAE (mean over rows and values, data units)", |q| q.mae),
    ];
    for (file, y_label, pick) in kinds {
        let split = |name, of: fn(&MetricRow) -> &Option<Quality>| {
            curve(name, metrics, |row| of(row).as_ref().map(pick))
        };
        let curves = vec![
            split("train", |row| &row.train),
            split("validation", |row| &row.val),
            split("test", |row| &row.test),
        ];
        draw(file, "Reconstruction error", y_label, &[], curves)?;
    }
    let alive = curve("alive", metrics, |row| Some(1.0 - row.dead_fraction));
    let y_label = "share of latents active on some training row";
    draw(names::ALIVE_PNG, "Latents alive", y_label, &[0.0, 1.0], vec![alive])?;
    let parts = loss_curves(
        curve("total", metrics, |row| row.train_loss),
        curve("reconstruction", metrics, |row| row.parts.recon),
        curve("mean |code|", metrics, |row| row.parts.l1),
        curve("AuxK", metrics, |row| row.parts.aux),
    );
    if parts.is_empty() {
        return Ok(());
    }
    draw(names::LOSS_PARTS_PNG, LOSS_TITLE, "training loss and parts before their weights", &[], parts)
}

/// Title of the plot of [`loss_curves`].
pub const LOSS_TITLE: &str = "Training loss and its parts";

/// The curves of a loss that has an L1 or auxiliary part; none for one that is the squared error alone. Zeros (no latent
/// is dead yet) are left out, so that the axis can be logarithmic.
pub fn loss_curves(total: Curve, recon: Curve, l1: Curve, aux: Curve) -> Vec<Curve> {
    if l1.points.is_empty() && aux.points.is_empty() {
        return vec![];
    }
    let mut curves = vec![total, recon, l1, aux];
    curves.iter_mut().for_each(|curve| curve.points.retain(|(_, value)| *value > 0.0));
    curves.retain(|curve| !curve.points.is_empty());
    curves
}

fn curve(name: &'static str, metrics: &[MetricRow], value: impl Fn(&MetricRow) -> Option<f64>) -> Curve {
    Curve { name, points: metrics.iter().filter_map(|row| Some((row.step as f64, value(row)?))).collect() }
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
