//! What a latent fires on, row by row.

use super::{Feature, TopRow};

/// What a latent has done on the rows so far.
#[derive(Debug, Clone, Default)]
pub struct Firing {
    /// Rows that it is active on.
    rows: u64,
    /// Sum of its activations, in the order of the rows.
    sum: f64,
    largest: f32,
    top: Vec<Top>,
}

/// The highest row of a group.
#[derive(Debug, Clone)]
struct Top {
    group: u64,
    id: Box<str>,
    activation: f32,
}

impl Firing {
    /// Adds the activation of a row. `group` is what its id counts as in the list of the `count` highest.
    pub fn add(&mut self, activation: f32, id: &str, group: u64, count: usize) {
        self.largest = if self.rows == 0 { activation } else { self.largest.max(activation) };
        self.rows += 1;
        self.sum += f64::from(activation);
        // Most rows are not among the highest.
        let full = self.top.len() >= count;
        if full && self.top.last().is_none_or(|last| activation <= last.activation) {
            return;
        }
        if let Some(at) = self.top.iter().position(|top| top.group == group) {
            if self.top[at].activation >= activation {
                return;
            }
            self.top.remove(at);
        }
        // Of equals the first row stays first.
        let at = self.top.partition_point(|top| top.activation >= activation);
        self.top.insert(at, Top { group, id: id.into(), activation });
        self.top.truncate(count);
    }

    /// What latent `latent` did on `n_rows` rows, without neighbours and labels.
    pub fn feature(self, latent: u32, n_rows: u64) -> Feature {
        let fires = self.rows > 0;
        let top = self.top.into_iter();
        Feature {
            latent,
            active_rows: self.rows,
            firing_rate: self.rows as f64 / n_rows as f64,
            mean_activation: fires.then(|| self.sum / self.rows as f64),
            max_activation: fires.then_some(self.largest),
            top: top.map(|t| TopRow { id: t.id.into_string(), activation: t.activation }).collect(),
            neighbours: vec![],
            best: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_rows_are_those_of_sorting_all_and_taking_the_first_of_each_group() {
        // Few values, so that there are ties; rows of a group follow one another.
        for (seed, per_group) in [(1u32, 1u32), (2, 3), (3, 7), (4, 60)] {
            let value = |row: u32| (row.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 7) % 23 + 1;
            for count in [0, 1, 2, 5, 1000] {
                let mut firing = Firing::default();
                let mut all = vec![];
                for row in 0..60 {
                    let (group, value) = (u64::from(row / per_group), value(row) as f32);
                    firing.add(value, &row.to_string(), group, count);
                    all.push((row, group, value));
                }
                let feature = firing.feature(3, 120);
                assert_eq!((feature.latent, feature.active_rows, feature.firing_rate), (3, 60, 0.5));
                let sum: f64 = all.iter().map(|a| f64::from(a.2)).sum();
                assert_eq!(feature.mean_activation, Some(sum / 60.0));
                all.sort_by(|a, b| b.2.total_cmp(&a.2).then(a.0.cmp(&b.0)));
                assert_eq!(feature.max_activation, Some(all[0].2));
                let mut seen = vec![];
                all.retain(|a| !seen.contains(&a.1) && (seen.push(a.1), true).1);
                let want: Vec<(String, f32)> =
                    all.iter().take(count).map(|a| (a.0.to_string(), a.2)).collect();
                let got: Vec<(String, f32)> = feature.top.into_iter().map(|t| (t.id, t.activation)).collect();
                assert_eq!(got, want, "{per_group} rows per group, the highest {count}");
            }
        }
    }

    #[test]
    fn a_latent_that_never_fires_has_no_mean() {
        let feature = Firing::default().feature(0, 4);
        assert_eq!((feature.firing_rate, feature.mean_activation, feature.max_activation), (0.0, None, None));
    }
}
