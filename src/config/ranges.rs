//! The check of every real-valued option against its range.

use super::Options;
use super::options::{ABOVE_0, MOST};
use super::table::OptionValue;
use crate::error::{Error, Result};

impl Options {
    /// Refuses numbers that are not finite or out of range. Options that are not given are left to their defaults.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the flag, its value and what would do.
    pub fn check_ranges(&self) -> Result<()> {
        for row in Self::table() {
            let Some((low, high)) = row.range else { continue };
            let Some(value) = self.real(&row.key).filter(|value| !(low..=high).contains(value)) else {
                continue;
            };
            let flag = format!("--{}", row.key);
            let finite = if value.is_finite() { "" } else { "a finite number, " };
            let least = if low == ABOVE_0 { "above 0".to_owned() } else { format!("at least {low}") };
            let most = match high {
                MOST if value.is_finite() && value > high => format!(" and at most {MOST:.1e}"),
                MOST => String::new(),
                _ => format!(" and at most {high}"),
            };
            let shown = value.show();
            return Err(Error::Usage(format!("{flag} {shown} must be {finite}{least}{most}")));
        }
        Ok(())
    }
}
