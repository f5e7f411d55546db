//! Which labels are compared: those that the user names, or all of a column that has few.

use super::OverlapRequest;
use super::gather::Gathered;
use super::labels::Labels;
use crate::error::{Error, Result};

/// Groups compared when none are named: more make a table that nobody reads.
const MOST_UNNAMED: usize = 8;
/// Groups are bits of a word.
const MOST_GROUPS: usize = 64;
/// Labels listed in a message.
const LISTED: usize = 20;

/// The groups asked for as places in `labels.names`, or all of the column.
///
/// # Errors
/// A label that the column lacks, or a number of groups that cannot be compared; the message has the labels.
pub fn named_groups(request: &OverlapRequest, labels: &Labels) -> Result<Vec<usize>> {
    let listed = || {
        let some = labels.names.iter().take(LISTED).map(String::as_str).collect::<Vec<_>>().join(", ");
        if labels.names.len() > LISTED { format!("{some}, ...") } else { some }
    };
    let column = &labels.column;
    if request.groups.is_empty() {
        let n = labels.names.len();
        if !(2..=MOST_UNNAMED).contains(&n) {
            let unknown = labels.unknown_cells.first().map_or(String::new(), |u| format!(" ({})", u.text()));
            return Err(Error::Usage(format!(
                "{}: column \"{column}\" has {n} labels; name two or more with --groups A,B: {}{unknown}",
                request.labels.display(),
                listed()
            )));
        }
        return Ok((0..n).collect());
    }
    let mut found: Vec<usize> = vec![];
    let place = |name: &str| labels.names.iter().position(|label| label == name);
    for text in &request.groups {
        // A label may hold a comma itself: the whole text comes first.
        let names: Vec<&str> = match place(text.trim()) {
            Some(_) => vec![text.trim()],
            None => text.split(',').map(str::trim).filter(|name| !name.is_empty()).collect(),
        };
        for name in names {
            let Some(at) = place(name) else {
                return Err(Error::Usage(format!(
                    "--groups: column \"{column}\" of {} has no label \"{name}\"; it has: {}",
                    request.labels.display(),
                    listed()
                )));
            };
            if !found.contains(&at) {
                found.push(at);
            }
        }
    }
    if !(2..=MOST_GROUPS).contains(&found.len()) {
        return Err(Error::Usage(format!(
            "--groups names {} groups; give 2 to {MOST_GROUPS} of: {}",
            found.len(),
            listed()
        )));
    }
    Ok(found)
}

/// The groups with their bits. Named groups must have rows; of unnamed ones those without are left out.
///
/// # Errors
/// A table of other ids than the data's; a named group without rows, or fewer than two groups with rows.
pub fn kept_groups(
    request: &OverlapRequest,
    labels: &Labels,
    gathered: &Gathered,
    named: Vec<usize>,
) -> Result<Vec<(usize, u64)>> {
    if gathered.ids.in_groups + gathered.ids.other_labels + gathered.ids.unlabelled == 0 {
        return Err(labels.no_common_id(gathered.example_id.as_deref().unwrap_or("")));
    }
    let size = |bit: u64| gathered.totals(bit).ids;
    let bits = named.iter().enumerate().map(|(i, label)| (*label, 1u64 << i));
    let (mut kept, empty): (Vec<_>, Vec<_>) = bits.partition(|(_, bit)| size(*bit) > 0);
    let listed = || {
        let counts = labels.names.iter().zip(&gathered.ids_of_label).filter(|(_, n)| **n > 0);
        let mut counts: Vec<(&String, &u64)> = counts.collect();
        counts.sort_by_key(|(_, n)| std::cmp::Reverse(**n));
        counts.iter().take(LISTED).map(|(name, n)| format!("{name} ({n})")).collect::<Vec<_>>().join(", ")
    };
    let wrong = |what: String| {
        let why = if request.exclusive { " (ids in several groups are left out by --exclusive)" } else { "" };
        Error::Usage(format!("{what}{why}; the labels of these data with their ids: {}", listed()))
    };
    if request.groups.is_empty() {
        kept.sort_by_key(|(_, bit)| std::cmp::Reverse(size(*bit)));
        if kept.len() < 2 {
            return Err(wrong("these data have rows of fewer than two groups".to_owned()));
        }
    } else if let Some((label, _)) = empty.first() {
        return Err(wrong(format!("--groups: no row of these data is in \"{}\"", labels.names[*label])));
    }
    Ok(kept)
}
