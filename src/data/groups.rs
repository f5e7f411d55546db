//! Groups of ids that stay in one split, from a table: families, clusters of sequences, donors.

use std::collections::HashMap;
use std::path::Path;

use crate::error::{Error, Result};
use crate::rows::RowIndex;
use crate::text::thousands;
use crate::text::tsv;

/// Gives `index` the groups of the table at `path`: two columns, id and group. The columns are the other way round with
/// `reversed`, and where the second holds more of the ids than the first, as in the tables of MMseqs2. An id that the
/// table lacks is a group of its own; the answer says how many there are.
///
/// # Errors
/// A file that cannot be read or has other columns; an id in two groups; a table of other ids.
pub(super) fn apply(index: &mut RowIndex, path: &Path, reversed: bool) -> Result<Option<String>> {
    let text = tsv::read_text(path)?;
    let mut pairs: Vec<(usize, String, String)> = vec![];
    tsv::records(path, &text, |line, record| {
        let [first, second] = record.iter().collect::<Vec<_>>()[..] else {
            let what = "must have two columns separated by a tab, an id and its group; write it so";
            return Err(Error::data(path, format!("line {line}"), what));
        };
        pairs.push((line, first.to_owned(), second.to_owned()));
        Ok(())
    })?;
    let at: HashMap<&str, usize> = index.ids.iter().enumerate().map(|(at, id)| (id.as_str(), at)).collect();
    let known = |column: fn(&(usize, String, String)) -> &String| {
        let found: std::collections::HashSet<usize> =
            pairs.iter().filter_map(|pair| at.get(column(pair).as_str()).copied()).collect();
        found.len()
    };
    let (first, second) = (known(|pair| &pair.1), known(|pair| &pair.2));
    let reversed = reversed || second > first;
    let mut groups: Vec<Option<(usize, &str)>> = vec![None; index.ids.len()];
    for (line, first, second) in &pairs {
        let (id, group) = if reversed { (second, first) } else { (first, second) };
        let Some(&at) = at.get(id.as_str()) else { continue };
        match groups[at] {
            Some((other, old)) if old != group => {
                let what = format!(
                    "puts \"{id}\" into the group \"{group}\", and line {other} into \"{old}\"; leave one of the two"
                );
                return Err(Error::data(path, format!("line {line}"), what));
            }
            _ => groups[at] = Some((*line, group)),
        }
    }
    let missing = groups.iter().filter(|group| group.is_none()).count();
    if missing == groups.len() {
        let (theirs, ours) =
            (pairs.first().map_or("", |pair| &pair.1), index.ids.first().map_or("", |id| id));
        let what = format!(
            "has none of the ids of the data: it begins with \"{theirs}\", the data with \"{ours}\"; give a table of these ids"
        );
        return Err(Error::data(path, "", what));
    }
    let own = |(at, group): (usize, &Option<(usize, &str)>)| {
        group.map_or_else(|| index.ids[at].clone(), |(_, group)| group.to_owned())
    };
    let clusters = groups.iter().enumerate().map(own).collect();
    let warning = (missing > 0).then(|| {
        format!(
            "{} of {} ids are not in {} and are groups of their own",
            thousands(missing as u64),
            thousands(index.ids.len() as u64),
            path.display()
        )
    });
    index.clusters = Some(clusters);
    Ok(warning)
}
