//! Features and associations as tab-separated tables. Numbers have as many digits as give the same number again.

use super::associate::Association;
use super::{Feature, Features, Finding};
use crate::analysis::labels::choose::Label;
use crate::text::tsv;
use std::io::{self, Write};

const FEATURE: &str = "latent\tactive_rows\tfiring_rate\tmean_activation\tmax_activation\ttop_ids\ttop_activations\t\
                       neighbours\tneighbour_cosines";
const FINDING: &str = "column\tlabel\tthreshold\tchosen_f1\tprecision\trecall\tf1\tauroc\ttrue_positives\t\
                       false_positives\tfalse_negatives\ttrue_negatives\tp\tq";

/// One line per latent, by number. Several ids or latents in a field are separated by `;` ([`tsv::list`]), the strongest first. With
/// labels, columns for the best label follow; they are empty for a latent without a test.
///
/// # Errors
/// What `out` gives.
pub fn write_features(out: &mut impl Write, features: &Features) -> io::Result<()> {
    let with_labels = features.labels.is_some();
    let more = if with_labels { format!("\t{FINDING}") } else { String::new() };
    writeln!(out, "{FEATURE}{more}")?;
    for feature in &features.latents {
        write!(out, "{}", feature_line(feature))?;
        match &feature.best {
            Some(best) => writeln!(out, "\t{}", finding_line(best))?,
            None if with_labels => writeln!(out, "{}", "\t".repeat(FINDING.matches('\t').count() + 1))?,
            None => writeln!(out)?,
        }
    }
    Ok(())
}

/// A line a test, by latent and then by label.
///
/// # Errors
/// What `out` gives.
pub fn write_associations(out: &mut impl Write, tests: &[Association], labels: &[Label]) -> io::Result<()> {
    writeln!(out, "latent\t{FINDING}")?;
    for test in tests {
        writeln!(out, "{}\t{}", test.latent, finding_line(&Finding::new(test, labels)))?;
    }
    Ok(())
}

fn feature_line(f: &Feature) -> String {
    let number = |v: Option<f64>| v.map_or(String::new(), |v| v.to_string());
    [
        f.latent.to_string(),
        f.active_rows.to_string(),
        f.firing_rate.to_string(),
        number(f.mean_activation),
        f.max_activation.map_or(String::new(), |v| v.to_string()),
        tsv::field(&tsv::list(f.top.iter().map(|t| &t.id))).into_owned(),
        tsv::list(f.top.iter().map(|t| t.activation)),
        tsv::list(f.neighbours.iter().map(|n| n.latent)),
        tsv::list(f.neighbours.iter().map(|n| n.cosine)),
    ]
    .join("\t")
}

fn finding_line(f: &Finding) -> String {
    format!(
        "{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\t{:e}\t{:e}",
        tsv::field(&f.column),
        tsv::field(&f.label),
        f.threshold,
        f.chosen_f1,
        f.precision,
        f.recall,
        f.f1,
        f.auroc,
        f.true_positives,
        f.false_positives,
        f.false_negatives,
        f.true_negatives,
        f.p,
        f.q
    )
}
