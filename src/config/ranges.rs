//! The range of every real-valued option.

use super::{NumberOr, Options};
use crate::error::{Error, Result};

/// Weights and steps are float32, so a larger number would become infinite there.
const MOST: f64 = f32::MAX as f64;
/// Stands for "above 0".
const ABOVE_0: f64 = f32::MIN_POSITIVE as f64;

impl Options {
    /// Refuses numbers that are not finite or out of range. Options that are not given are left to their defaults.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the flag, its value and what would do.
    pub fn check_ranges(&self) -> Result<()> {
        let lr = match self.lr {
            Some(NumberOr::Number(lr)) => Some(lr),
            _ => None,
        };
        let ranges = [
            ("--lr", lr, 0.0, MOST),
            ("--epochs", self.epochs, ABOVE_0, MOST),
            ("--init-gain", self.init_gain, ABOVE_0, MOST),
            ("--tau-start", self.tau_start, 1e-3, MOST),
            ("--tau-end", self.tau_end, 1e-3, MOST),
            ("--norm-eps", self.norm_eps, ABOVE_0, MOST),
            ("--loss-scale", self.loss_scale, ABOVE_0, MOST),
            ("--l1", self.l1, 0.0, MOST),
            ("--weight-decay", self.weight_decay, 0.0, MOST),
            ("--adam-b1", self.adam_b1, 0.0, 0.999_999),
            ("--adam-b2", self.adam_b2, 0.0, 0.999_999_9),
            ("--adam-eps", self.adam_eps, 0.0, 1.0),
            ("--aux-coef", self.aux_coef, 0.0, MOST),
            ("--clip-norm", self.clip_norm, 0.0, MOST),
            ("--ema", self.ema, 0.0, 0.999_999_9),
        ];
        for (flag, value, low, high) in ranges {
            let Some(value) = value.filter(|value| !(low..=high).contains(value)) else { continue };
            let finite = if value.is_finite() { "" } else { "a finite number, " };
            let least = if low == ABOVE_0 { "above 0".to_owned() } else { format!("at least {low}") };
            let most = match high {
                MOST if value.is_finite() && value > high => format!(" and at most {MOST:.1e}"),
                MOST => String::new(),
                _ => format!(" and at most {high}"),
            };
            // `{:?}` writes 1e300 with its exponent, and 5 as 5.0.
            let shown = format!("{value:?}");
            let shown = shown.strip_suffix(".0").unwrap_or(&shown);
            return Err(Error::Usage(format!("{flag} {shown} must be {finite}{least}{most}")));
        }
        Ok(())
    }
}
