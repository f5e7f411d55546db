//! The curves of a run.

use super::plots::render_png;
use super::views::{Curve, CurvePlot};
use crate::config::{Config, Preset};
use crate::error::Result;
use crate::files;
use crate::run::folder::names;
use crate::train::metrics::{MetricRow, Quality};
use std::path::Path;

/// Draws, into a run's folder, the two errors, the share of latents alive, and the parts of the loss where it has
/// several. A curve point is an evaluation on the way.
///
/// # Errors
/// A plot that cannot be drawn or written.
pub fn write_plots(folder: &Path, config: &Config, metrics: &[MetricRow]) -> Result<()> {
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
        files::write_whole(&folder.join(file), &render_png(&plot)?)
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
        curve("penalty", metrics, |row| row.parts.l1),
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
