//! Axis ranges, ticks and their labels: pure functions, so that the drawing holds no arithmetic.

#[cfg(feature = "plots")]
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};

use crate::text::thousands;

/// A logarithmic axis is used when the values span more than this many decades.
const LOG_SPAN: f64 = 1.5;

/// One axis: values are placed at `Scale::place(value)`, which runs over `low..high`.
#[derive(Debug, Clone)]
pub(super) struct Scale {
    /// Whether places are `log10(value)`.
    pub log: bool,
    /// Place of the lower end.
    pub low: f64,
    /// Place of the upper end.
    pub high: f64,
    /// Places of the labelled ticks.
    pub ticks: Vec<f64>,
    /// Places of the unlabelled grid lines.
    #[cfg_attr(not(feature = "plots"), allow(dead_code))]
    pub minor: Vec<f64>,
    /// Distance of two ticks in data units (linear axes), which decides the digits of the labels.
    step: f64,
}

impl Scale {
    /// An axis of optimizer steps from 0 to at least `last`.
    pub fn steps(last: f64) -> Self {
        let high = if last > 0.0 { last } else { 1.0 };
        let mut scale = Self::linear(0.0, high * 1.02, 8);
        // Steps are whole: below 8 steps a tick at 0.5 would name a step that does not exist.
        if scale.step < 1.0 {
            scale = Self::with_step(0.0, high * 1.02, 1.0);
        }
        scale
    }

    /// An axis that holds every one of `values` (all finite); logarithmic where they span decades.
    pub fn values(values: &[f64]) -> Self {
        let low = values.iter().copied().fold(f64::INFINITY, f64::min);
        let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if values.is_empty() {
            return Self::linear(0.0, 1.0, 8);
        }
        if low > 0.0 && (high / low).log10() > LOG_SPAN {
            return Self::logarithmic(low, high);
        }
        // A constant still needs a range: 10 % either side of it, or one unit around zero.
        let span = high - low;
        let pad = if span > low.abs().max(high.abs()) * 1e-9 {
            span * 0.06
        } else if low == 0.0 {
            1.0
        } else {
            low.abs() * 0.1
        };
        // An error cannot be negative: do not let the padding suggest it.
        let floor = if low >= 0.0 { 0.0 } else { f64::MIN };
        Self::linear((low - pad).max(floor), high + pad, 8)
    }

    fn linear(low: f64, high: f64, about: usize) -> Self {
        let raw = (high - low) / about as f64;
        let decade = 10f64.powf(raw.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0]
            .into_iter()
            .map(|m| m * decade)
            .find(|s| *s >= raw * 0.999)
            .unwrap_or(decade * 10.0);
        Self::with_step(low, high, step)
    }

    fn with_step(low: f64, high: f64, step: f64) -> Self {
        let multiples = |step: f64| -> Vec<f64> {
            let first = (low / step - 1e-9).ceil();
            let count = ((high / step + 1e-9).floor() - first).max(-1.0) as usize;
            (0..count.saturating_add(1).min(1000)).map(|i| (first + i as f64) * step).collect()
        };
        Self { log: false, low, high, ticks: multiples(step), minor: multiples(step / 2.0), step }
    }

    fn logarithmic(low: f64, high: f64) -> Self {
        let (low, high) = (low.log10(), high.log10());
        let pad = (high - low) * 0.04;
        let (low, high) = (low - pad, high + pad);
        let decades = high - low;
        // 1, 2, 5 on every decade; over many decades only every n-th power of ten.
        let labelled: &[f64] = if decades < 3.0 { &[1.0, 2.0, 5.0] } else { &[1.0] };
        let every = (decades / 9.0).ceil().max(1.0) as i64;
        let inside = |place: &f64| (low..=high).contains(place);
        let exponents = || (low.floor() as i64)..=(high.ceil() as i64);
        let ticks = exponents()
            .filter(|e| e.rem_euclid(every) == 0)
            .flat_map(|e| labelled.iter().map(move |m| e as f64 + m.log10()))
            .filter(inside)
            .collect();
        let minor = exponents()
            .flat_map(|e| (1..10).map(move |m| e as f64 + f64::from(m).log10()))
            .filter(inside)
            .filter(|_| decades < 6.0)
            .collect();
        Self { log: true, low, high, ticks, minor, step: 0.0 }
    }

    /// Where a value lies between `low` and `high`.
    pub fn place(&self, value: f64) -> f64 {
        if self.log { value.log10() } else { value }
    }

    /// The label of the tick at `place`.
    pub fn label(&self, place: f64) -> String {
        if self.log {
            let value = 10f64.powf(place);
            return if (1e-3..1e5).contains(&value) {
                trimmed(value, (-place.floor()).max(0.0) as usize)
            } else {
                scientific(value, 0)
            };
        }
        let largest = self.low.abs().max(self.high.abs());
        let digits = |scale: f64| (-(self.step / scale).log10() - 1e-9).ceil().max(0.0) as usize;
        if place.abs() < self.step * 1e-6 {
            "0".to_owned()
        } else if !(1e-3..1e7).contains(&largest) {
            let exponent = place.abs().log10().floor();
            scientific(place, digits(10f64.powf(exponent)).min(6))
        } else if self.step >= 1.0 {
            let sign = if place < 0.0 { "-" } else { "" };
            format!("{sign}{}", thousands(place.abs().round() as u64))
        } else {
            format!("{place:.*}", digits(1.0))
        }
    }
}

/// What plotters needs of an axis; its values are places.
#[cfg(feature = "plots")]
impl Ranged for Scale {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, place: &f64, limit: (i32, i32)) -> i32 {
        let at = (place - self.low) / (self.high - self.low);
        limit.0 + (at * f64::from(limit.1 - limit.0)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() { self.minor.clone() } else { self.ticks.clone() }
    }

    fn range(&self) -> std::ops::Range<f64> {
        self.low..self.high
    }
}

fn trimmed(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// `1.5×10⁻⁴`.
fn scientific(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let raised: String = exponent
        .chars()
        .map(|c| match c.to_digit(10) {
            Some(d) => ['⁰', '¹', '²', '³', '⁴', '⁵', '⁶', '⁷', '⁸', '⁹'][d as usize],
            None => '⁻',
        })
        .collect();
    match mantissa {
        "1" => format!("10{raised}"),
        _ => format!("{mantissa}×10{raised}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(scale: &Scale) -> Vec<String> {
        scale.ticks.iter().map(|t| scale.label(*t)).collect()
    }

    #[test]
    fn steps_are_labelled_with_whole_round_numbers() {
        assert_eq!(labels(&Scale::steps(3.0)), ["0", "1", "2", "3"]);
        let wide = labels(&Scale::steps(20_000.0));
        assert!(wide.contains(&"5,000".to_owned()), "{wide:?}");
        assert!(wide.len() <= 10, "{wide:?}");
    }

    #[test]
    fn values_over_more_than_a_decade_and_a_half_get_a_logarithmic_axis() {
        let scale = Scale::values(&[0.01, 2.0]);
        assert!(scale.log);
        assert_eq!(labels(&scale), ["0.01", "0.02", "0.05", "0.1", "0.2", "0.5", "1", "2"]);
        assert!(!Scale::values(&[0.1, 2.0]).log);
        assert!(!Scale::values(&[0.0, 2.0]).log, "zero has no logarithm");
    }

    #[test]
    fn tiny_values_are_labelled_in_scientific_notation() {
        let linear = labels(&Scale::values(&[1.0e-6, 4.0e-6]));
        assert!(linear.contains(&"2.0×10⁻⁶".to_owned()), "{linear:?}");
        let log = labels(&Scale::values(&[1e-9, 1e-3]));
        assert!(log.contains(&"10⁻⁶".to_owned()), "{log:?}");
    }

    #[test]
    fn every_axis_has_a_few_ticks_inside_its_range() {
        for values in [
            vec![],
            vec![0.0],
            vec![5.0],
            vec![-3.0],
            vec![1e-300, 1e300],
            vec![0.3, 0.30001],
            vec![f64::MIN_POSITIVE],
            vec![1e8, 1.1e8],
            vec![-1.0, 1.0],
        ] {
            let scale = Scale::values(&values);
            assert!(scale.low < scale.high, "{values:?}: {scale:?}");
            assert!((2..=12).contains(&scale.ticks.len()), "{values:?}: {scale:?}");
            for v in values {
                let place = scale.place(v);
                assert!((scale.low..=scale.high).contains(&place), "{v}: {scale:?}");
            }
        }
    }
}
