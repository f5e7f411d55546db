//! What plots show, as plain data: what draws them is a feature of its own.

/// One line of a plot.
#[derive(Debug, Clone)]
pub struct Curve {
    /// `train`, `validation` or `test`; decides nothing, is shown in the legend.
    pub name: &'static str,
    /// (optimizer step, value), in the order of steps; points that are not finite are left out.
    pub points: Vec<(f64, f64)>,
}

/// A plot of one quantity over the optimizer steps.
#[derive(Debug, Clone)]
pub struct CurvePlot {
    /// Above the plot.
    pub title: String,
    /// The quantity with its unit.
    pub y_label: String,
    /// Steps `0..T` of the warm-up are shaded and labelled "annealing".
    pub annealed_until: Option<u64>,
    /// Values that the axis must show, such as both ends of a share.
    pub must_show: &'static [f64],
    /// Drawn in this order; colour, dashes and marker follow the position.
    pub curves: Vec<Curve>,
}

/// A run.
#[derive(Debug, Clone)]
pub struct Point {
    /// Written beside the point.
    pub name: String,
    /// Active latents per row.
    pub l0: f64,
    /// Fraction of variance unexplained.
    pub fvu: f64,
    /// Drawn filled; runs that are not finished are open circles.
    pub finished: bool,
}

/// The plot of several runs.
#[derive(Debug, Clone)]
pub struct Frontier {
    /// The runs; points that are not finite are left out.
    pub points: Vec<Point>,
}

/// A latent in two groups.
#[derive(Debug, Clone, Copy)]
pub struct Dot {
    /// Share of the rows of the first group and of the second that activate it.
    pub shares: (f64, f64),
    /// Whether it counts as active in each.
    pub active: (bool, bool),
}

/// Two groups.
#[derive(Debug, Clone)]
pub struct Panel {
    /// Names of the first group (x) and the second (y).
    pub names: (String, String),
    /// Written above.
    pub caption: String,
    /// Smaller shares, 0 among them, are drawn at this value: the axes are logarithmic.
    pub least: f64,
    /// The latents; those that neither group activates are left out.
    pub dots: Vec<Dot>,
}

/// A latent along the rows of an id.
#[derive(Debug, Clone)]
pub struct Strip {
    /// Written above.
    pub name: String,
    /// Its activation on each row (L).
    pub activations: Vec<f32>,
}

/// Latents along the rows of an id, one below the other.
#[derive(Debug, Clone)]
pub struct Strips {
    /// Above the plot.
    pub title: String,
    /// Place of each row (L) in the sequence, rising.
    pub positions: Vec<u32>,
    /// The latents.
    pub strips: Vec<Strip>,
}
