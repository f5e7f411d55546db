//! What stands in for the drawing of plots in a build without the feature `plots`: every picture is refused.

use super::views::CurvePlot;
use crate::error::{Error, Result};

fn refused() -> Result<Vec<u8>> {
    Err(Error::Usage(
        "this sae was built without the feature `plots`; leave the plot out, or build it with `cargo build --release`".into(),
    ))
}

/// Refuses.
///
/// # Errors
/// Always.
pub fn render_png(_plot: &CurvePlot) -> Result<Vec<u8>> {
    refused()
}

/// Runs as points.
pub mod frontier {
    use crate::error::Result;
    use crate::report::views::Frontier;

    /// Refuses.
    ///
    /// # Errors
    /// Always.
    pub fn render_frontier(_plot: &Frontier) -> Result<Vec<u8>> {
        super::refused()
    }
}

/// Latents as points.
pub mod groups {
    use crate::error::Result;
    use crate::report::views::Panel;

    /// Refuses.
    ///
    /// # Errors
    /// Always.
    pub fn render_panels(_panels: &[Panel], _threshold: f64) -> Result<Vec<u8>> {
        super::refused()
    }
}

/// Latents along the rows of an id.
pub mod strips {
    use crate::error::Result;
    use crate::report::views::Strips;

    /// Refuses.
    ///
    /// # Errors
    /// Always.
    pub fn render_strips(_plot: &Strips) -> Result<Vec<u8>> {
        super::refused()
    }
}
