//! Curves and histograms as inline SVG, coloured by the page's style so that they follow light, dark and print.

use super::escape;
use crate::report::scale::Scale;
use crate::report::views::{Curve, CurvePlot};
use crate::text::{number, thousands};
use std::fmt::Write;

/// Size of a chart in its own units; text is 13 of them, which a telephone shows at some 10 pixels.
const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 270.0;
/// Where the plane lies: left, top, right, bottom.
const PLANE: (f64, f64, f64, f64) = (58.0, 14.0, 408.0, 222.0);
/// At most this many ticks with a label are drawn on an axis of steps.
const X_TICKS: usize = 6;

/// How often values occur.
#[derive(Debug, Clone)]
pub struct Histogram {
    /// Above it.
    pub title: String,
    /// The quantity with its unit.
    pub x_label: String,
    /// What is counted.
    pub y_label: String,
    /// Lower ends of the bins and the upper end of the last, in data units.
    edges: Vec<f64>,
    /// Values in each bin.
    counts: Vec<u64>,
    /// Where the first bin begins on the axis, and the width of a bin.
    from: f64,
    width: f64,
    x: Scale,
}

impl Histogram {
    /// `bins` equal bins from `low` to `high`, both ends in; they are equal on the axis, which is logarithmic over more
    /// than a decade and a half.
    pub fn new(low: f64, high: f64, bins: usize) -> Self {
        let x = Scale::values(&[low, high]);
        let (from, to) = (x.place(low), x.place(high));
        let width = (to - from) / bins as f64;
        let edge = |i: usize| {
            let place = from + width * i as f64;
            if x.log { 10f64.powf(place) } else { place }
        };
        let edges = (0..=bins).map(edge).collect();
        let none = String::new;
        let counts = vec![0; bins];
        Self { title: none(), x_label: none(), y_label: none(), edges, counts, from, width, x }
    }

    /// Counts a value; one outside is counted in the bin at that end.
    pub fn add(&mut self, value: f64) {
        let at = ((self.x.place(value) - self.from) / self.width).floor();
        let last = self.counts.len() as f64 - 1.0;
        self.counts[at.clamp(0.0, last) as usize] += 1;
    }

    /// The same with its texts.
    pub fn labelled(self, title: &str, x_label: &str, y_label: &str) -> Self {
        Self { title: title.to_owned(), x_label: x_label.to_owned(), y_label: y_label.to_owned(), ..self }
    }

    /// Values in each bin.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }
}

/// Two axes on the plane.
struct Axes<'a> {
    x: &'a Scale,
    y: &'a Scale,
}

impl Axes<'_> {
    fn x(&self, place: f64) -> f64 {
        PLANE.0 + (place - self.x.low) / (self.x.high - self.x.low) * (PLANE.2 - PLANE.0)
    }

    fn y(&self, place: f64) -> f64 {
        PLANE.3 - (place - self.y.low) / (self.y.high - self.y.low) * (PLANE.3 - PLANE.1)
    }

    fn draw(&self, x_label: &str) -> String {
        let mut out = String::new();
        for &tick in &self.y.ticks {
            let y = self.y(tick);
            let _ = write!(
                out,
                "<line class=\"grid\" x1=\"{}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/><text x=\"{}\" y=\"{:.1}\" \
                 text-anchor=\"end\">{}</text>",
                PLANE.0,
                PLANE.2,
                PLANE.0 - 6.0,
                y + 4.5,
                escape(&self.y.label(tick))
            );
        }
        let every = self.x.ticks.len().div_ceil(X_TICKS).max(1);
        for &tick in self.x.ticks.iter().step_by(every) {
            let x = self.x(tick);
            let _ = write!(
                out,
                "<line class=\"axis\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{}\" y2=\"{}\"/><text x=\"{x:.1}\" y=\"{}\" \
                 text-anchor=\"middle\">{}</text>",
                PLANE.3,
                PLANE.3 + 4.0,
                PLANE.3 + 18.0,
                escape(&self.x.label(tick))
            );
        }
        let _ = write!(
            out,
            "<line class=\"axis\" x1=\"{0}\" x2=\"{1}\" y1=\"{2}\" y2=\"{2}\"/><text x=\"{3}\" y=\"{4}\" \
             text-anchor=\"middle\">{5}</text>",
            PLANE.0,
            PLANE.2,
            PLANE.3,
            (PLANE.0 + PLANE.2) / 2.0,
            HEIGHT - 8.0,
            escape(x_label)
        );
        out
    }
}

fn figure(title: &str, below: &str, inside: &str) -> String {
    let title = escape(title);
    format!(
        "<figure><figcaption>{title}</figcaption><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
         aria-label=\"{title}\">{inside}</svg>{below}</figure>\n"
    )
}

/// Curves over the steps, the warm-up shaded.
pub(super) fn curves(plot: &CurvePlot) -> String {
    let finite = |c: &Curve| -> Vec<(f64, f64)> {
        c.points.iter().copied().filter(|p| p.0.is_finite() && p.1.is_finite()).collect()
    };
    let curves: Vec<(&str, Vec<(f64, f64)>)> = plot.curves.iter().map(|c| (c.name, finite(c))).collect();
    let points = || curves.iter().flat_map(|(_, points)| points);
    let values: Vec<f64> = points().map(|p| p.1).chain(plot.must_show.iter().copied()).collect();
    let x = Scale::steps(points().map(|p| p.0).fold(0.0, f64::max));
    let y = Scale::values(&values);
    let axes = Axes { x: &x, y: &y };
    let mut inside = String::new();
    if let Some(until) = plot.annealed_until.filter(|t| *t > 0) {
        let width = axes.x((until as f64).min(x.high)) - PLANE.0;
        let _ = write!(
            inside,
            "<rect class=\"warm\" x=\"{}\" y=\"{}\" width=\"{width:.1}\" height=\"{}\"><title>annealing</title></rect>",
            PLANE.0,
            PLANE.1,
            PLANE.3 - PLANE.1
        );
    }
    inside += &axes.draw(if y.log { "step (values on a log scale)" } else { "step" });
    for (i, (name, points)) in curves.iter().enumerate() {
        let at: Vec<String> =
            points.iter().map(|p| format!("{:.1},{:.1}", axes.x(p.0), axes.y(y.place(p.1)))).collect();
        let _ = write!(inside, "<polyline class=\"c{i}\" points=\"{}\"/>", at.join(" "));
        for p in points {
            let (cx, cy) = (axes.x(p.0), axes.y(y.place(p.1)));
            let _ = write!(
                inside,
                "<circle class=\"c{i}\" cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"2.5\"><title>{name}, step {}: {}</title></circle>",
                thousands(p.0 as u64),
                number(p.1)
            );
        }
    }
    let mut legend: String = curves
        .iter()
        .enumerate()
        .map(|(i, (name, _))| format!("<span class=\"k{i}\">{name}</span>"))
        .collect();
    if plot.annealed_until.is_some_and(|t| t > 0) {
        legend += "<span class=\"kw\">annealing</span>";
    }
    figure(&plot.title, &format!("<div class=\"legend\">{legend}</div>"), &inside)
}

/// Bars from 0 on.
pub(super) fn histogram(h: &Histogram) -> String {
    let most = h.counts.iter().copied().max().unwrap_or(0);
    let y = Scale::values(&[0.0, most as f64]);
    let axes = Axes { x: &h.x, y: &y };
    let mut inside = axes.draw(&h.x_label);
    for (pair, &count) in h.edges.windows(2).zip(&h.counts).filter(|(_, n)| **n > 0) {
        let (left, right) = (axes.x(h.x.place(pair[0])), axes.x(h.x.place(pair[1])));
        // A bin with one value among thousands is to be seen.
        let top = axes.y(count as f64).min(PLANE.3 - 1.0);
        let _ = write!(
            inside,
            "<rect class=\"bar\" x=\"{left:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\"><title>{} to {}: {}</title></rect>",
            (right - left - 0.7).max(0.5),
            PLANE.3 - top,
            number(pair[0]),
            number(pair[1]),
            thousands(count)
        );
    }
    let below = format!("<div class=\"legend\"><span class=\"kb\">{}</span></div>", escape(&h.y_label));
    figure(&h.title, &below, &inside)
}
