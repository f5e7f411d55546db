//! The per-latent table.

use super::{Latent, Overlap};
use crate::text::tsv;
use std::fmt::Write;

impl Overlap {
    /// Names of the groups that a latent is active in.
    pub fn active_in(&self, latent: &Latent) -> Vec<&str> {
        self.groups.iter().zip(&latent.active).filter(|(_, a)| **a).map(|(g, _)| g.name.as_str()).collect()
    }

    /// The latents specific to group `i`, the largest difference of its share to any other group's first.
    pub fn specific(&self, i: usize) -> Vec<(usize, &Latent)> {
        let lead = |latent: &Latent| latent.shares[i] - largest_but(&latent.shares, i);
        let mut found: Vec<(usize, &Latent)> =
            self.latents.iter().enumerate().filter(|(_, l)| l.active[i] && l.class() == "specific").collect();
        // A stable sort: among equals the lower latent comes first.
        found.sort_by(|a, b| lead(b.1).total_cmp(&lead(a.1)));
        found
    }

    /// A tab-separated table with one line per latent: `latent`, `class` (`specific`, `shared`, `some`, `none`),
    /// `active_in` (groups as [`tsv::list`] writes them), and for each group `share_<group>` and `mean_<group>`.
    pub fn latent_table(&self) -> String {
        let mut text = "latent\tclass\tactive_in".to_owned();
        for group in &self.groups {
            // Writing to a string cannot fail.
            let [share, mean] = ["share", "mean"].map(|figure| format!("{figure}_{}", group.name));
            let _ = write!(text, "\t{}\t{}", tsv::field(&share), tsv::field(&mean));
        }
        text.push('\n');
        for (j, latent) in self.latents.iter().enumerate() {
            let _ = write!(
                text,
                "{j}\t{}\t{}",
                latent.class(),
                tsv::field(&tsv::list(self.active_in(latent).iter()))
            );
            for (share, mean) in latent.shares.iter().zip(&latent.means) {
                let _ = write!(text, "\t{share}\t{mean}");
            }
            text.push('\n');
        }
        text
    }
}

/// The largest of `values` other than number `i`.
pub fn largest_but(values: &[f64], i: usize) -> f64 {
    values.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, v)| *v).fold(0.0, f64::max)
}
