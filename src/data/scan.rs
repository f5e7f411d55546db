//! Lists the datasets of a file, with type, shape and place, in the order of their names' bytes.

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::FileExt;

use rayon::prelude::*;

use super::file::{Dataset, File, Kind, Place, place};
use super::h5::Link;
use super::header::{self, Contiguous, HEADER_BYTES};
use super::kind::Stored;
use crate::error::{Error, Result};
use crate::interrupt;

/// Datatype messages whose meaning the library gave; `None` where it disagreed with the header.
type KnownTypes = HashMap<Vec<u8>, Option<Stored>>;

/// What a file holds, before anything is decided.
pub(super) struct Survey {
    /// In the order of their paths' bytes.
    pub datasets: Vec<Dataset>,
    /// Links that lead nowhere.
    pub dangling: Vec<String>,
}

/// A group or dataset that a soft or external link names.
struct Alias {
    path: String,
    identity: (u64, u64),
    is_group: bool,
}

/// The datasets of a file, with their types, shapes and places. No values are read.
///
/// Groups are entered once, however many links lead there (groups may loop), hard links before others. A dataset in
/// several groups counts once if all but one of its links are soft or external; within one group each link is a name of
/// its own, as for proteins of one sequence.
pub(super) fn survey(file: &File) -> Result<Survey> {
    if let Some(datasets) = file.listed() {
        return Ok(Survey { datasets: datasets.to_vec(), dangling: vec![] });
    }
    let mut known = KnownTypes::new();
    let mut found = Survey { datasets: vec![], dangling: vec![] };
    let root = file.identity("");
    let mut seen: HashSet<(u64, u64)> = root.into_iter().collect();
    // Groups, and whether they lie in this very file.
    let mut waiting = vec![(String::new(), file.is_own(""))];
    let mut aliases: Vec<Alias> = Vec::new();
    loop {
        let Some((group, own)) = waiting.pop() else {
            // Shortest paths first, so that the name of what has several does not depend on the order in the file.
            aliases.sort_by(|a, b| (b.path.len(), &b.path).cmp(&(a.path.len(), &a.path)));
            let Some(alias) = aliases.pop() else { break };
            if alias.is_group {
                if seen.insert(alias.identity) {
                    let own = file.is_own(&alias.path);
                    waiting.push((alias.path, own));
                }
            } else {
                add_alias(file, &alias, &mut found.datasets)?;
            }
            continue;
        };
        let links = file.links(&group)?;
        let headers = if own && file.is_plain() { read_headers(file, &links) } else { Vec::new() };
        let mut headers = headers.into_iter();
        found.datasets.reserve(links.len());
        for link in links {
            interrupt::check()?;
            let path = join(&group, &link.name);
            let header = headers.next().flatten();
            if link.address.is_none() {
                match file.object(&path) {
                    Some((identity, is_group)) => aliases.push(Alias { path, identity, is_group }),
                    None => found.dangling.push(path),
                }
                continue;
            }
            if let Some(dataset) = by_header(file, &path, header, &mut known)? {
                found.datasets.push(dataset);
                continue;
            }
            match file.object(&path) {
                Some((identity, true)) => {
                    if seen.insert(identity) {
                        waiting.push((path, own));
                    }
                }
                // Committed types are no datasets.
                _ => found.datasets.extend(file.describe(&path, own)?),
            }
        }
    }
    found.datasets.sort_by(|a, b| a.path.as_bytes().cmp(b.path.as_bytes()));
    found.dangling.sort();
    Ok(found)
}

/// Adds the dataset that a soft or external link names, unless another group has it already.
fn add_alias(file: &File, alias: &Alias, datasets: &mut Vec<Dataset>) -> Result<()> {
    let Some(dataset) = file.describe(&alias.path, false)? else { return Ok(()) };
    let same = |d: &Dataset| {
        d.shape == dataset.shape
            && group_of(&d.path) != group_of(&alias.path)
            && file.identity(&d.path) == Some(alias.identity)
    };
    // Texts may go by several names: one of them can be that of ids.
    if dataset.kind == Kind::Text || !datasets.iter().any(same) {
        datasets.push(dataset);
    }
    Ok(())
}

/// The group of a path, "" for the root.
pub(super) fn group_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(group, _)| group)
}

/// `group/name`, without a leading slash.
pub(super) fn join(group: &str, name: &str) -> String {
    if group.is_empty() { name.to_owned() } else { format!("{group}/{name}") }
}

fn read_headers(file: &File, links: &[Link]) -> Vec<Option<Contiguous>> {
    let read = |link: &Link| {
        let address = link.address?;
        let mut bytes = [0u8; HEADER_BYTES];
        let n = file.raw.read_at(&mut bytes, address).ok()?;
        header::parse(&bytes[..n])
    };
    links.par_iter().with_min_len(256).map(read).collect()
}

/// The dataset that `header` describes, if its datatype is known or the library confirms it.
fn by_header(
    file: &File,
    path: &str,
    header: Option<Contiguous>,
    known: &mut KnownTypes,
) -> Result<Option<Dataset>> {
    let Some(header) = header else {
        return Ok(None);
    };
    let stored = match known.get(&header.datatype) {
        Some(stored) => *stored,
        None => {
            let stored = match file.describe(path, true)? {
                Some(Dataset { shape, kind: Kind::Float(stored), place: Place::At(offset), .. })
                    if shape == header.shape && offset == header.offset =>
                {
                    Some(stored)
                }
                _ => None,
            };
            known.insert(header.datatype, stored);
            stored
        }
    };
    let Some(stored) = stored else {
        return Ok(None);
    };
    let needed = byte_len(&header.shape, stored.dtype.size());
    if needed != Some(header.bytes) {
        return Ok(None);
    }
    Ok(Some(Dataset {
        path: path.to_owned(),
        shape: header.shape,
        kind: Kind::Float(stored),
        place: Place::At(header.offset),
    }))
}

fn byte_len(shape: &[u64], size: usize) -> Option<u64> {
    shape.iter().try_fold(size as u64, |product, &n| product.checked_mul(n))
}

/// A float dataset must lie inside the file.
pub(super) fn check_extent(file: &File, dataset: &Dataset) -> Result<()> {
    let Kind::Float(stored) = dataset.kind else {
        return Ok(());
    };
    let Some(bytes) = byte_len(&dataset.shape, stored.dtype.size()).filter(|&b| b < 1 << 62) else {
        return Err(Error::data(
            &file.path,
            place(dataset),
            format!(
                "claims the impossible shape {:?}; the file is damaged: download or copy it again",
                dataset.shape
            ),
        ));
    };
    if let Place::At(offset) = dataset.place
        && offset.checked_add(bytes).is_none_or(|end| end > file.len)
    {
        return Err(Error::data(
            &file.path,
            place(dataset),
            format!(
                "its values end past the file's {} bytes; the file is cut short: download or copy it again",
                file.len
            ),
        ));
    }
    Ok(())
}
